"""The paper's numbers, to hold one's own against.

From the main results of "SFT or RL? An Early Investigation into Training R1-Like Reasoning Large Vision-Language
Models" (arXiv 2504.11468), accuracies in percent: the worst case of DynaMath, the strict score of WeMath, Vision Only
of MathVerse. Others have measured the same models with VLMEvalKit up to ten points apart, so a base model belongs
beside its offspring, evaluated by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

AVERAGE = "average"
"""Key of the mean over the six benchmarks."""

BENCHMARKS = ("mathvista", "mathvision", "mathverse", "dynamath", "wemath", "logicvista")
"""In the order of the paper's columns."""


def _row(*values: float) -> Mapping[str, float]:
    return MappingProxyType(dict(zip((*BENCHMARKS, AVERAGE), values, strict=True)))


def _average(value: float) -> Mapping[str, float]:
    return MappingProxyType({AVERAGE: value})


PUBLISHED: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "Qwen2.5-VL-3B": _row(61.2, 21.9, 31.2, 13.2, 22.9, 40.3, 31.8),
        "VLAA-Thinker-3B": _row(61.0, 24.4, 36.4, 18.2, 33.8, 38.5, 35.4),
        "Qwen2.5-VL-7B": _row(68.1, 25.4, 41.1, 21.8, 36.2, 47.9, 40.1),
        "VLAA-Thinker-7B": _row(68.0, 26.4, 48.2, 22.4, 41.5, 48.5, 42.5),
        # Runs that compare SFT and RL, of which the averages alone are at hand.
        "3B GRPO only": _average(34.5),
        "3B SFT 5K + GRPO": _average(21.0),
        "3B SFT 10K + GRPO": _average(21.8),
        "3B SFT aha-55K": _average(21.3),
        "3B SFT 25K": _average(21.6),
        "3B SFT 126K": _average(12.7),
    }
)
"""Row name -> benchmark name (as `Benchmark.name`) -> percent. Each row has `average`; some have nothing else."""
