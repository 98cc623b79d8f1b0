"""The paper's six benchmarks, a generic one, and what it takes to add another."""

from callbacks.benchmarks.generic import JSONLBenchmark
from callbacks.benchmarks.interface import (
    AnswerKind,
    Benchmark,
    EvalImage,
    EvalRecord,
    Judge,
    Method,
    Profile,
    Score,
    mean_and_error,
    reduced,
)
from callbacks.benchmarks.registry import BENCHMARKS, load_benchmark

__all__ = [
    "BENCHMARKS",
    "AnswerKind",
    "Benchmark",
    "EvalImage",
    "EvalRecord",
    "JSONLBenchmark",
    "Judge",
    "Method",
    "Profile",
    "Score",
    "load_benchmark",
    "mean_and_error",
    "reduced",
]
