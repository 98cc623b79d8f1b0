"""Which flags would make a run fit into memory, alone and together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Literal, NamedTuple

from transformers import PretrainedConfig

from lit_vlaa.backbone.config import LoRAConfig
from lit_vlaa.memory import Run, estimate, peak
from lit_vlaa.reference import Reference


class Knob(NamedTuple):
    """Flags that may save memory."""

    flags: str
    turn: Callable[[Run], Run]
    changes: Literal["nothing", "rounding", "numbers"]
    """What it does to the run's results."""
    kind: str
    """Of one kind at most one is turned: they set the same flags, or one makes the other useless."""


class Remedies:
    """What the knobs of a run would make of its peak, on a GPU of its own.

    Args:
        described: The run.
        shape: The model's configuration.
    """

    def __init__(self, described: Run, shape: PretrainedConfig) -> None:
        self.knobs = tuple(knobs(described))
        self._described = described
        self._shape = shape

    def peak_with(self, chosen: Sequence[Knob]) -> int | None:
        """The peak in bytes with some knobs turned; None where `fit` would refuse them."""
        turned = turn(self._described, chosen)
        return None if turned is None else peak(estimate(turned, self._shape))

    def best(self, memory: int) -> tuple[Knob, ...] | None:
        """The knobs that make the run fit at the least cost, in their order; None where none do.

        Fewest change the results, then fewest change the rounding, then fewest are turned, then the first of all.

        Args:
            memory: Of a GPU, in bytes.
        """
        for chosen in sorted(combinations(self.knobs), key=self._cost):
            size = self.peak_with(chosen)
            if size is not None and size <= memory:
                return chosen
        return None

    def _cost(self, chosen: tuple[Knob, ...]) -> tuple[int, int, int, list[int]]:
        changes = [knob.changes for knob in chosen]
        places = [self.knobs.index(knob) for knob in chosen]
        return changes.count("numbers"), changes.count("rounding"), len(chosen), places


def combinations(knobs: Sequence[Knob]) -> list[tuple[Knob, ...]]:
    """Every choice of at most one knob of each kind, in their order."""
    kinds: dict[str, list[Knob | None]] = {}
    for knob in knobs:
        kinds.setdefault(knob.kind, [None]).append(knob)
    chosen = (tuple(filter(None, choice)) for choice in product(*kinds.values()))
    return [tuple(sorted(choice, key=knobs.index)) for choice in chosen]


def turn(described: Run, chosen: Sequence[Knob]) -> Run | None:
    """A run with some knobs turned; None where `fit` would refuse it."""
    try:
        for knob in chosen:
            described = knob.turn(described)
        check(described)
    except ValueError:
        return None
    return described


def check(described: Run) -> None:
    """Refuses what `fit` would refuse of the settings that knobs turn; `BackboneConfig` refuses the others.

    Raises:
        ValueError: If so.
    """
    if described.rollouts is not None:
        Reference("auto" if described.reference == "none" else described.reference, described.backbone, None)
    if described.strategy == "fsdp2" and described.optimizer == "adamw_8bit":
        raise ValueError("--model.optim.optimizer adamw_8bit cannot keep states of sharded parameters; use adamw")


def knobs(described: Run) -> Iterator[Knob]:
    """Flags that a run does not use yet: of each kind in turn first those that change least."""
    backbone = described.backbone
    if not backbone.gradient_checkpointing:
        flag = "--model.backbone.gradient_checkpointing true"
        yield Knob(flag, lambda r: _with(r, gradient_checkpointing=True), "nothing", "checkpointing")
    if described.tokens > 2048:
        half = described.tokens // 2
        flag = f"--model.max_tokens_per_micro_batch {half}"
        yield Knob(flag, lambda r: replace(r, tokens=half), "rounding", "tokens")
    if backbone.logprob_chunk > 512:
        flag = "--model.backbone.logprob_chunk 512"
        yield Knob(flag, lambda r: _with(r, logprob_chunk=512), "nothing", "chunk")
    if described.rollouts is not None and described.rollouts.rows > 4 * described.rollouts.group_size:
        fewer = replace(described.rollouts, rows=described.rollouts.rows // 4)
        flag = f"--model.generator lit_vlaa.generation.CachedGenerator --model.generator.max_rows {fewer.rows}"
        yield Knob(flag, lambda r: replace(r, rollouts=fewer), "rounding", "rows")
    if described.reward is not None and not described.reward.offload:
        away = replace(described.reward, offload=True)
        yield Knob("--model.scorer.offload true", lambda r: replace(r, reward=away), "nothing", "scorer")
    if described.kept == "copy" and backbone.adapters is None:
        yield Knob("--model.reference cpu", lambda r: replace(r, reference="cpu"), "nothing", "policy")
    elif described.kept in {"copy", "cpu"} and backbone.adapters is not None:
        yield Knob("--model.reference auto", lambda r: replace(r, reference="auto"), "nothing", "policy")
    yield from _sharding(described)
    if described.optimizer == "adamw":
        flag = "--model.optim.optimizer adamw_8bit"
        yield Knob(flag, lambda r: replace(r, optimizer="adamw_8bit"), "numbers", "optimizer")
    if backbone.adapters is None:
        yield Knob(_adapter_flags(described), _adapted, "numbers", "policy")
    if backbone.quantize is None:
        flag = f"{_adapter_flags(described)} --model.backbone.quantize nf4 --model.backbone.dtype bfloat16".lstrip()
        yield Knob(flag, lambda r: _with(_adapted(r), quantize="nf4", dtype="bfloat16"), "numbers", "policy")


def _sharding(described: Run) -> Iterator[Knob]:
    """FSDP2, with an optimiser that it has."""
    eight = described.optimizer == "adamw_8bit"
    optimizer = " --model.optim.optimizer adamw" if eight else ""
    changes: Literal["rounding", "numbers"] = "numbers" if eight else "rounding"

    def shard(run: Run, *, offload: bool) -> Run:
        sharded = replace(run, strategy="fsdp2", cpu_offload=offload)
        return replace(sharded, optimizer="adamw") if eight else sharded

    if described.strategy != "fsdp2" and described.ranks > 1:
        flag = f"--trainer.strategy fsdp2{optimizer}"
        yield Knob(flag, lambda r: shard(r, offload=False), changes, "strategy")
    if not described.cpu_offload:
        flag = f"--trainer.strategy fsdp2_offload{optimizer}"
        yield Knob(flag, lambda r: shard(r, offload=True), changes, "strategy")


def _adapter_flags(described: Run) -> str:
    """What makes a run train adapters, and the policy without them its reference; nothing where it does already."""
    flags: list[str] = []
    backbone = described.backbone
    if backbone.adapters is None:
        flags.append("--model.backbone.lora.rank 16")
        if (freeze := _adapted(described).backbone.freeze) != backbone.freeze:
            flags.append(f"--model.backbone.freeze [{','.join(freeze)}]")
    if described.rollouts is not None and described.reference not in {"auto", "adapter"}:
        flags.append("--model.reference auto")
    return " ".join(flags)


def _adapted(described: Run) -> Run:
    lora = described.backbone.adapters or LoRAConfig(rank=16)
    freeze = tuple(part for part in described.backbone.freeze if part not in lora.parts)
    adapted = _with(described, lora=lora, freeze=freeze)
    return adapted if described.reference == "none" else replace(adapted, reference="auto")


def _with(described: Run, **settings: Any) -> Run:
    return replace(described, backbone=replace(described.backbone, **settings))
