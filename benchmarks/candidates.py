"""The settings that are tried for either side, its defaults apart, and which of them is fastest here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.gates import run_through
from benchmarks.lockstep import Run
from benchmarks.models import Setup

Settings = dict[str, Any]
Make = Callable[[Settings, int], Run]
"""From settings and a number of steps to a training."""

STEPS = 3
"""Steps of a trial; the first does not count."""

OURS_DEFAULTS: Settings = {}
THEIRS_DEFAULTS: Settings = {"micro_batch": 8}
"""TRL's defaults where both sides may differ: eight rows a forward pass, gradient checkpointing, dynamic cache."""


def ours_candidates(task: str) -> list[Settings]:
    """Our defaults, other sizes of micro-batches, and the slower ways to lay out rows, which may win on small work."""
    sizes = [{"max_tokens_per_micro_batch": tokens} for tokens in (1024, 2048, 32768)]
    layouts = ("padded",) if task == "sft" else ("packed", "padded")
    return [OURS_DEFAULTS, *sizes, *({"batching": layout, **sizes[1]} for layout in layouts)]


def their_sft_candidates(setup: Setup) -> list[Settings]:
    """TRL refuses packing and padding-free batches for rows with images, which leaves the micro-batch.

    Rows of like length share one, and nothing is computed twice.
    """
    micro = [size for size in (2, 4, 8, 16, 32) if size <= setup.scale.sft_rows]
    free: Settings = {"by_length": True, "gradient_checkpointing": False, **_kernels(setup)}
    return [{"micro_batch": size, **free} for size in micro]


def their_grpo_candidates(setup: Setup) -> list[Settings]:
    """Without vLLM it has `generate` with a dynamic or a static cache; continuous batching refuses image models."""
    total = setup.scale.prompts * setup.scale.group_size
    free: Settings = {"gradient_checkpointing": False, **_kernels(setup)}
    micro = [{"micro_batch": size, **free} for size in (8, 16, 32, 64) if size <= total]
    static = [
        {**settings, "cache_implementation": "static"} for settings in micro if settings["micro_batch"] in {16, 64}
    ]
    return [*micro, *static]


def fastest(
    name: str, candidates: Sequence[Settings], make: Make, say: Callable[[str], None]
) -> tuple[Settings, dict[str, float | str]]:
    """Tries each of the settings for two steps, of which the faster counts.

    Returns:
        The fastest settings, and what every trial took in seconds or why it failed.

    Raises:
        RuntimeError: If all failed.
    """
    seconds: dict[str, float | str] = {}
    best: tuple[float, Settings] | None = None
    for settings in candidates:
        label = spelled(settings)
        try:
            steps = run_through(make(settings, STEPS))[1:]
        except torch.OutOfMemoryError as error:
            seconds[label] = f"out of memory: {str(error).splitlines()[0]}"
            continue
        seconds[label] = took = min(float(values["step"]) for values in steps)
        say(f"{name}, {label}: {took:.2f} s a step")
        if best is None or took < best[0]:
            best = (took, settings)
    if best is None:
        raise RuntimeError(f"{name}: none of {len(candidates)} settings fits into memory")
    return best[1], seconds


def spelled(settings: Settings) -> str:
    """Settings in a line."""
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "defaults"


def _kernels(setup: Setup) -> Settings:
    there = setup.device == "cuda" and importlib.util.find_spec("liger_kernel") is not None
    return {"use_liger_kernel": True} if there else {}
