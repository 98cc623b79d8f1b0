"""Lightning callbacks of lit-vlaa; configs name them as `callbacks.<Class>`."""

from callbacks.benchmark_evaluation import BenchmarkEvaluation
from callbacks.prediction_writer import PredictionWriter
from callbacks.preemption import Preemption
from callbacks.response_writer import ResponseWriter
from callbacks.rollout_logger import RolloutLogger
from callbacks.throughput import Throughput
from callbacks.trace_diagnostics import TraceDiagnostics
from callbacks.training_guards import TrainingGuards

__all__ = [
    "BenchmarkEvaluation",
    "PredictionWriter",
    "Preemption",
    "ResponseWriter",
    "RolloutLogger",
    "Throughput",
    "TraceDiagnostics",
    "TrainingGuards",
]
