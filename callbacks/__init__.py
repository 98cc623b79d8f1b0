"""Lightning callbacks of lit-vlaa; configs name them as `callbacks.<Class>`."""

from callbacks.prediction_writer import PredictionWriter
from callbacks.rollout_logger import RolloutLogger

__all__ = ["PredictionWriter", "RolloutLogger"]
