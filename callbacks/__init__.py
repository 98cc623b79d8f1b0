"""Lightning callbacks of lit-vlaa; configs name them as `callbacks.<Class>`."""

from callbacks.prediction_writer import PredictionWriter
from callbacks.preemption import Preemption
from callbacks.rollout_logger import RolloutLogger
from callbacks.throughput import Throughput
from callbacks.training_guards import TrainingGuards

__all__ = ["PredictionWriter", "Preemption", "RolloutLogger", "Throughput", "TrainingGuards"]
