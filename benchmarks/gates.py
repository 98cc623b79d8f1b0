"""What must hold before any time counts: both sides do the same work and get the same numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks import ours, theirs
from benchmarks.lockstep import Run, Values
from benchmarks.models import Setup
from benchmarks.workload import SEED, lengths, samples
from lit_vlaa.backbone import Backbone
from lit_vlaa.generation import CachedGenerator, RolloutKey
from lit_vlaa.grpo import GRPOModule
from lit_vlaa.types import Completion, Prompt, SamplingParams

STEPS = 3
_RATE = 1e-3
_EPS = 1e-3
"""A large epsilon keeps Adam's first steps from blowing up the rounding of tiny gradients."""
_GREEDY_TOKENS = 32
_LEAST_COSINE = 0.999

Gradients = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Gate:
    """One comparison and its outcome."""

    name: str
    passed: bool
    found: str


def tolerance(setup: Setup) -> float:
    """By how much losses may differ: rounding of float32, or of bfloat16."""
    return 1e-5 if setup.model == "tiny" else 5e-3


def all_gates(setup: Setup) -> Iterator[Gate]:
    """The three comparisons, one after the other."""
    yield sft_gate(setup)
    yield replay_gate(setup)
    yield greedy_gate(setup)


def sft_gate(setup: Setup) -> Gate:
    """The loss of every SFT step, with learning in between."""
    rows = samples(setup.scale.sft_rows, setup.scale)
    size: Any = {"steps": STEPS, "rate": _RATE, "eps": _EPS}
    micro = {"micro_batch": len(rows) // 4, "gradient_checkpointing": False}
    mine = [values["loss"] for values in run_through(ours.sft(setup, rows, settings={}, **size))]
    other = [float(values["loss"]) for values in run_through(theirs.sft(setup, rows, settings=micro, **size))]
    worst = max(abs(a - b) for a, b in zip(mine, other, strict=True))
    passed = worst <= tolerance(setup) and mine[-1] < mine[0]
    return Gate("SFT loss of each step", passed, f"{_list(mine)} and TRL's {_list(other)}; largest gap {worst:.1e}")


def replay_gate(setup: Setup) -> Gate:
    """Loss and gradient of two GRPO steps on one given rollout, the second with ratios off 1."""
    rows = samples(setup.scale.prompts, setup.scale)
    given = made_up_rollout(setup)
    size: Any = {"rate": _RATE, "eps": _EPS}
    two_steps = {"num_iterations": 2}
    micro = {**two_steps, "micro_batch": len(given) // 4, "gradient_checkpointing": False}
    with gradients() as (mine, watch):
        kind = _unbanned(watch)
        generator = Replay(given, setup.scale.group_size)
        run = ours.grpo(setup, rows, steps=1, plan=None, generator=generator, kind=kind, settings=two_steps, **size)
        my_loss = run_through(run)[0]["loss"]
    with gradients() as (other, watch):
        run = theirs.grpo(setup, rows, steps=2, lengths=None, replay=given, on_model=watch, settings=micro, **size)
        their_values = run_through(run)
    # Ours logs the mean over a rollout's steps.
    their_loss = sum(float(values["loss"]) for values in their_values) / 2
    processor = setup.processor()
    encoded = [processor.encode(row).input_ids.tolist() for row in rows]
    repeated = [ids for ids in encoded for _ in range(setup.scale.group_size)]
    same_prompts = their_values[0]["prompts"] == repeated
    cosines = [similarity(a, b) for a, b in zip(mine, other, strict=True)]
    gap = abs(my_loss - their_loss)
    passed = same_prompts and len(cosines) == 2 and min(cosines) > _LEAST_COSINE and gap <= tolerance(setup)
    found = f"losses {my_loss:.6f} and {their_loss:.6f}; gradient cosines {_list(cosines, 7)}"
    return Gate("GRPO on one rollout", passed, found + ("" if same_prompts else "; prompts differ"))


def greedy_gate(setup: Setup) -> Gate:
    """Greedy tokens of our engine against `model.generate`, prompt by prompt and without padding.

    On a GPU in bfloat16 two kernels may round a tie in two ways, so there the share is only reported.
    """
    backbone = setup.backbone().to(setup.device).eval()
    prompts = [backbone.processor.encode(row) for row in samples(setup.scale.prompts, setup.scale)]
    params = SamplingParams(max_new_tokens=_GREEDY_TOKENS, temperature=0.0)
    key = RolloutKey(seed=0, step=0)
    moved = [prompt.to(setup.device) for prompt in prompts]
    groups = CachedGenerator().generate(backbone, moved, group_size=1, params=params, key=key)
    mine = [group[0].token_ids.tolist() for group in groups]
    other = [_greedy(backbone, prompt) for prompt in prompts]
    pairs = [pair for a, b in zip(mine, other, strict=True) for pair in zip(a, b, strict=False)]
    equal = sum(a == b for a, b in pairs)
    passed = mine == other or setup.device == "cuda"
    return Gate("greedy tokens", passed, f"{equal} of {len(pairs)} the same as model.generate's")


class Replay:
    """Gives the completions that it was given (implements `Generator`)."""

    def __init__(self, completions: list[list[int]], group_size: int) -> None:
        """Takes completions in the order of the prompts."""
        self.completions = completions
        self.group_size = group_size

    def generate(self, backbone: Backbone, prompts: Sequence[Prompt], **_: Any) -> list[list[Completion]]:  # noqa: ARG002
        """The completions."""
        made = [Completion(torch.tensor(ids), torch.zeros(len(ids)), "stop") for ids in self.completions]
        return [made[start : start + self.group_size] for start in range(0, len(made), self.group_size)]


def made_up_rollout(setup: Setup) -> list[list[int]]:
    """Random completions of uneven lengths, the end-of-turn token last."""
    scale = setup.scale
    processor = setup.processor()
    rng = random.Random(SEED)
    words = range(max(processor.banned_token_ids) + 1, len(processor.tokenizer))
    planned = lengths("heavy", scale.prompts * scale.group_size, scale.limit)
    return [[*rng.choices(words, k=length - 1), processor.end_token_id] for length in planned]


def run_through(run: Run) -> list[Values]:
    """The values of all steps of a training that nobody waits for."""
    seen: list[Values] = []
    run(seen.append)
    return seen


@contextmanager
def gradients() -> Iterator[tuple[Gradients, Callable[[nn.Module], None]]]:
    """Fills a list with the gradients of each optimiser step, by the names of the model that is shown."""
    steps: Gradients = []
    names: dict[int, str] = {}

    def watch(model: nn.Module) -> None:
        names.update({id(parameter): name for name, parameter in model.named_parameters()})

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        steps.append({names[id(p)]: p.grad.detach().double().cpu() for p in parameters if p.grad is not None})

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield steps, watch
    finally:
        handle.remove()


def similarity(mine: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Cosine of two gradients over all weights; 0 where they are of different weights."""
    if mine.keys() != other.keys():
        return 0.0
    flat = [torch.cat([side[name].flatten() for name in sorted(mine)]) for side in (mine, other)]
    return float(cosine_similarity(flat[0], flat[1], dim=0))


def _unbanned(watch: Callable[[nn.Module], None]) -> type[GRPOModule]:
    class Unbanned(GRPOModule):
        """Gives vision tokens their probability, as TRL does."""

        def configure_model(self) -> None:
            super().configure_model()
            self.backbone._banned = torch.empty(0, dtype=torch.long, device=self.device)
            watch(self.backbone.model)

    return Unbanned


def _greedy(backbone: Backbone, prompt: Prompt) -> list[int]:
    model: Any = backbone.model
    ids = prompt.input_ids[None].to(backbone.device)
    assert prompt.pixel_values is not None  # noqa: S101  # every row of the workload has an image
    assert prompt.image_grid_thw is not None  # noqa: S101
    written = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == backbone.processor.image_token_id).int(),
        pixel_values=prompt.pixel_values.to(backbone.device),
        image_grid_thw=prompt.image_grid_thw.to(backbone.device),
        do_sample=False,
        max_new_tokens=_GREEDY_TOKENS,
        suppress_tokens=list(backbone.processor.banned_token_ids),
    )
    model.model.rope_deltas = None
    return written[0, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


def _list(values: Sequence[float], digits: int = 6) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)
