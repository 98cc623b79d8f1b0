"""Lightning callbacks of lit-vlaa; configs name them as `callbacks.<Class>`."""

from callbacks.rollout_logger import RolloutLogger

__all__ = ["RolloutLogger"]
