"""How FSDP2 is to lay out a model, as the Trainer's strategy and precision want it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from torch.distributed.fsdp import CPUOffloadPolicy

from lit_vlaa.strategies import mixed_precision_policy


def sharding_policies(trainer: Trainer, *, cpu_offload: bool = False) -> dict[str, Any]:
    """Gives what to pass to `fully_shard` besides the mesh.

    Args:
        trainer: With its strategy and precision.
        cpu_offload: Keep this model's shards in main memory, even if the strategy does not.

    Raises:
        ValueError: If FSDP2 does not train in this precision.
    """
    policies: dict[str, Any] = {}
    precision = mixed_precision_policy(str(trainer.precision))
    if precision is not None:
        policies["mp_policy"] = precision
    if cpu_offload or getattr(trainer.strategy, "cpu_offload", False):
        policies["offload_policy"] = CPUOffloadPolicy(pin_memory=trainer.strategy.root_device.type == "cuda")
    return policies
