"""How FSDP2 is to lay out a model, as the Trainer's strategy and precision want it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

FSDP2_PRECISIONS = ("32-true", "bf16-mixed")
"""Values of `--trainer.precision` under FSDP2; float16 would need a loss scaler that knows of shards."""


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


def mixed_precision_policy(precision: str) -> MixedPrecisionPolicy | None:
    """Gives the policy to pass to `fully_shard` for one value of `--trainer.precision`.

    Args:
        precision: One of `FSDP2_PRECISIONS`.

    Returns:
        For `bf16-mixed` float32 shards that are gathered and computed with in bfloat16 and whose gradients are summed
        in float32; otherwise None, as the parameters' own type holds throughout.

    Raises:
        ValueError: If FSDP2 does not train in this precision.
    """
    if precision not in FSDP2_PRECISIONS:
        raise ValueError(
            f"--trainer.precision {precision} does not work with fsdp2; use one of {', '.join(FSDP2_PRECISIONS)}"
        )
    if precision != "bf16-mixed":
        return None
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
