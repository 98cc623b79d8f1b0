"""`lit-vlaa doctor`: whether runs work on this machine, and how much memory a run takes, part by part."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from transformers import PretrainedConfig

from lit_vlaa.backbone.config import BackboneConfig, LoRAConfig
from lit_vlaa.backbone.released import model_config
from lit_vlaa.checks import UsageError, find_problems, one_line
from lit_vlaa.environment import gpu_bytes, look
from lit_vlaa.generation import CachedGenerator
from lit_vlaa.lightning_cli import VLAACLI
from lit_vlaa.memory import OVERHEAD, PHASES, Rollouts, Run, estimate, image_tokens, peak, phase_bytes, tensors_of
from lit_vlaa.strategies import map_strategy_name

_TEXT_TOKENS = 256
"""Of a typical prompt beside its image, with the system prompt."""


class _Parsed(VLAACLI):
    """Parses what `lit-vlaa fit` would and builds nothing."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        try:
            LightningCLI.parse_arguments(self, parser, args)
        except UsageError as error:
            raise UsageError([one_line(problem) for problem in error.problems]) from error

    def _set_seed(self) -> None:
        """Nothing is drawn."""

    def instantiate_classes(self) -> None:
        """Nothing is built."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


class Knob(NamedTuple):
    """A flag that may save memory."""

    flag: str
    turn: Callable[[Run], Run]


def run(words: Sequence[str]) -> int:
    """Reports on the environment and, where a run is described, on its memory.

    Args:
        words: Flags of this tool and those of `lit-vlaa fit`.

    Returns:
        0 if runs work here and the one described fits, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="lit-vlaa doctor",
        allow_abbrev=False,
        description="Tells whether runs work on this machine. With the --config and flags of `lit-vlaa fit` it also "
        "estimates how much memory that run takes on each GPU, says whether it fits, and which flags would save how "
        "much. Nothing is built or downloaded but the model's configuration.",
    )
    parser.add_argument("--memory_gb", type=float, help="memory of a GPU in GiB, such as 80; default: of those visible")
    parser.add_argument(
        "--prompt_tokens",
        type=int,
        help="tokens of a typical prompt with its image; default: the largest image and 256",
    )
    own, rest = parser.parse_known_args([_underscored(word) for word in words])
    fatal = _report_environment()
    if not rest:
        return int(fatal)
    # Lightning warns of arguments that it is given beside those of the process.
    sys.argv = [sys.argv[0], "fit", *rest]
    config: Any = _Parsed().config["fit"]
    for problem in find_problems(config):
        _say(f"as it stands, fit would refuse: {problem}")
    memory = gpu_bytes() if own.memory_gb is None else int(own.memory_gb * 2**30)
    try:
        described, shape = run_of(config, own.prompt_tokens)
    except ValueError as error:
        raise UsageError([str(error)]) from error
    return max(int(fatal), report_memory(described, shape, memory))


def run_of(config: Mapping[str, Any], prompt_tokens: int | None = None) -> tuple[Run, PretrainedConfig]:
    """What of a parsed `fit` configuration decides its memory, and the model's configuration.

    Args:
        config: With `trainer`, `model` and `data`.
        prompt_tokens: Of a typical row; None assumes the largest image.

    Raises:
        ValueError: If the model cannot be found.
    """
    trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
    backbone = _backbone(model["backbone"])
    shape = model_config(backbone)
    strategy, offload = _strategy(trainer["strategy"])
    ranks = _devices(trainer["devices"]) * int(trainer["num_nodes"])
    if strategy != "fsdp2":
        strategy = "ddp" if ranks > 1 else "single"
    group = model.get("group_size")
    rollouts = None
    if group is not None:
        engine = model["generator"] or {}
        most = engine.get("init_args", {}).get("max_rows", CachedGenerator().max_rows)
        rows = min(max(1, most // group), max(1, data["batch_size"] // ranks)) * group
        rollouts = Rollouts(rows=rows, group_size=group, new_tokens=model["sampling"]["max_new_tokens"])
    reference = "none"
    if group is not None and model["kl"]["coefficient"] > 0:
        automatic = "adapter" if backbone.adapters is not None else "copy"
        reference = automatic if model["reference"] == "auto" else model["reference"]
    described = Run(
        backbone=backbone,
        optimizer=model["optim"]["optimizer"],
        strategy=strategy,  # type: ignore[arg-type]  # one of the three by now
        cpu_offload=offload,
        ranks=ranks,
        mixed=str(trainer["precision"]) in {"bf16-mixed", "bf16"},
        tokens=model["max_tokens_per_micro_batch"],
        prompt_tokens=prompt_tokens or image_tokens(shape, backbone) + _TEXT_TOKENS,
        rollouts=rollouts,
        reference=reference,  # type: ignore[arg-type]  # as parsed
    )
    return described, shape


def report_memory(described: Run, shape: PretrainedConfig, memory: int | None) -> int:
    """Prints the parts of a run's memory, whether they fit, and what saves how much; gives the exit code."""
    tensors = tensors_of(shape, described.backbone)
    total, trained = (sum(t.numbers for t in tensors if t.trains or not only) for only in (False, True))
    parts = estimate(described, shape)
    _say(
        f"\n{described.backbone.path}: {total / 1e9:.2f} B parameters, {trained / 1e9:.3f} B of them train; "
        f"{described.strategy} on {described.ranks} GPU(s), {'bf16-mixed' if described.mixed else '32-true'}"
    )
    _say(
        f"estimate for one GPU in GiB, with micro-batches of {described.tokens} tokens and prompts of "
        f"{described.prompt_tokens}"
    )
    width = max(len(part.name) for part in parts)
    for phase in ("always", *PHASES):
        for part in parts:
            if part.phase == phase:
                place = "" if part.on_gpu else "  in main memory"
                _say(f"  {phase:<9}  {part.name:<{width}}  {_gib(part.size)}{place}")
    for phase in PHASES:
        if any(part.phase == phase for part in parts):
            _say(f"  {phase + ' in all':<{width + 11}}  {_gib(phase_bytes(parts, phase) + OVERHEAD)}")
    host = peak(parts, on_gpu=False)
    if host:
        _say(f"  {'main memory for each GPU':<{width + 11}}  {_gib(host)}")
    most = peak(parts)
    if memory is None:
        _say(f"peak {_gib(most).strip()} GiB; no GPU is visible: give --memory_gb to hear whether it fits")
        return 0
    fits = most <= memory
    _say(f"peak {_gib(most).strip()} of {_gib(memory).strip()} GiB: " + ("it fits" if fits else "it does not fit"))
    if not fits:
        _report_knobs(described, shape, memory)
    return int(not fits)


def knobs(described: Run) -> Iterator[Knob]:
    """Flags that this run does not use yet and that may save memory, first those that change no number."""
    backbone = described.backbone
    if not backbone.gradient_checkpointing:
        yield Knob("--model.backbone.gradient_checkpointing true", lambda r: _with(r, gradient_checkpointing=True))
    if described.tokens > 2048:
        half = described.tokens // 2
        yield Knob(f"--model.max_tokens_per_micro_batch {half}", lambda r: replace(r, tokens=half))
    if backbone.logprob_chunk > 512:
        yield Knob("--model.backbone.logprob_chunk 512", lambda r: _with(r, logprob_chunk=512))
    if described.rollouts is not None and described.rollouts.rows > 4 * described.rollouts.group_size:
        fewer = replace(described.rollouts, rows=described.rollouts.rows // 4)
        yield Knob(
            f"--model.generator lit_vlaa.generation.CachedGenerator --model.generator.max_rows {fewer.rows}",
            lambda r: replace(r, rollouts=fewer),
        )
    if described.reference == "copy":
        yield Knob("--model.reference cpu", lambda r: replace(r, reference="cpu"))
    if described.strategy != "fsdp2" and described.ranks > 1:
        yield Knob("--trainer.strategy fsdp2", lambda r: replace(r, strategy="fsdp2", optimizer="adamw"))
    if not described.cpu_offload:
        yield Knob(
            "--trainer.strategy fsdp2_offload",
            lambda r: replace(r, strategy="fsdp2", cpu_offload=True, optimizer="adamw"),
        )
    if described.strategy != "fsdp2" and described.optimizer == "adamw":
        yield Knob("--model.optim.optimizer adamw_8bit", lambda r: replace(r, optimizer="adamw_8bit"))
    if backbone.adapters is None:
        yield Knob("--model.backbone.lora.rank 16", _adapted)
    if backbone.quantize is None:
        yield Knob(
            "--model.backbone.lora.rank 16 --model.backbone.quantize nf4 --model.backbone.dtype bfloat16",
            lambda r: _with(_adapted(r), quantize="nf4", dtype="bfloat16"),
        )


def _report_knobs(described: Run, shape: PretrainedConfig, memory: int) -> None:
    found = [(peak(estimate(knob.turn(described), shape)), knob) for knob in knobs(described)]
    before = peak(estimate(described, shape))
    _say("what each of these alone would make of the peak:")
    for size, knob in found:
        if size < before:
            _say(f"  {_gib(size)}  {knob.flag}" + ("  <- fits" if size <= memory else ""))
    if any(size <= memory for size, _ in found):
        return
    together = described
    flags: list[str] = []
    for _, knob in found:
        turned = knob.turn(together)
        if peak(estimate(turned, shape)) < peak(estimate(together, shape)):
            together, flags = turned, [*flags, knob.flag]
        if (size := peak(estimate(together, shape))) <= memory:
            _say(f"  {_gib(size)}  together: {' '.join(flags)}  <- fits")
            return
    _say("  no combination of these fits: use more GPUs, or a smaller model")


def _adapted(described: Run) -> Run:
    lora = described.backbone.adapters or LoRAConfig(rank=16)
    freeze = tuple(part for part in described.backbone.freeze if part not in lora.parts)
    reference = "none" if described.reference == "none" else "adapter"
    return replace(_with(described, lora=lora, freeze=freeze), reference=reference)  # type: ignore[arg-type]


def _with(described: Run, **settings: Any) -> Run:
    return replace(described, backbone=replace(described.backbone, **settings))


def _backbone(parsed: Namespace) -> BackboneConfig:
    values: dict[str, Any] = parsed.as_dict()
    values["freeze"] = tuple(values["freeze"])
    lora: dict[str, Any] = values.pop("lora")
    lora |= {name: tuple(lora[name]) for name in ("parts", "targets")}
    return BackboneConfig(**values, lora=LoRAConfig(**lora))


def _strategy(parsed: Any) -> tuple[str, bool]:
    if isinstance(parsed, str):
        name = map_strategy_name(parsed)
        return ("fsdp2" if name.startswith("fsdp2") else name), name == "fsdp2_offload"
    sharded = parsed["class_path"].endswith("FSDP2Strategy")
    return ("fsdp2" if sharded else "ddp"), bool(parsed.get("init_args", {}).get("cpu_offload", False))


def _devices(parsed: Any) -> int:
    if isinstance(parsed, int) and parsed > 0:
        return parsed
    if isinstance(parsed, list):
        return len(parsed)
    if isinstance(parsed, str) and parsed not in {"auto", "-1"}:
        return int(parsed) if parsed.isdecimal() else len([part for part in parsed.split(",") if part.strip()])
    import torch  # noqa: PLC0415

    return max(1, torch.cuda.device_count())


def _report_environment() -> bool:
    """Prints what was found; says whether nothing can run."""
    findings = look()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        _say(f"{finding.name:<{width}}  {finding.value}" + (f"  <- {finding.problem}" if finding.problem else ""))
    fatal = any(finding.fatal for finding in findings)
    _say("no run works here before the lines with an arrow are mended" if fatal else "runs work here")
    return fatal


def _gib(size: int) -> str:
    return f"{size / 2**30:7.2f}"


def _underscored(word: str) -> str:
    flag, equals, value = word.partition("=")
    return flag.replace("memory-gb", "memory_gb").replace("prompt-tokens", "prompt_tokens") + equals + value


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
