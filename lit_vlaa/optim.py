"""Optimiser, parameter groups and learning-rate schedule.

Parameters fall into three parts (language model, merger, vision tower), each with its own learning rate, and within a
part into those that decay and those that do not. One factor, a pure function of the step, scales all learning rates.

Departures from the paper (section on RL training):

1. The paper gives the floor and the warm-up of its cosine schedule ("LR2") but not the peak; the default peak is the
   stock value of the framework that it adapts.
2. The floor belongs to `lr`. A part with a learning rate of its own gets a floor in the same proportion to its peak.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_vlaa.parts import Part, part_of


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights are updated.

    Attributes:
        optimizer: `adamw`, or `adamw_8bit` with states of one byte for each number of a tensor of 4096 or more
            (Dettmers et al., 2021; needs bitsandbytes, runs on the CPU too; not with `fsdp2`).
        lr: Peak learning rate of the language model, and of every part without one of its own.
        merger_lr: Peak learning rate of the merger between vision tower and language model; null takes `lr`.
        vision_lr: Peak learning rate of the vision tower; null takes `lr`.
        betas: Decay rates of Adam's running means of the gradient and of its square.
        eps: Added to Adam's denominator.
        weight_decay: Decoupled decay of weight matrices; biases, norms and other vectors do not decay.
        schedule: Shape of the learning rate after warm-up.
        warmup_ratio: Share of all optimiser steps in which the learning rate rises linearly (paper, LR2: 0.03).
        min_lr: Where `cosine` and `linear` end, as a learning rate for `lr` (paper, LR2: 5e-7).
    """

    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    lr: float = 1e-6
    merger_lr: float | None = None
    vision_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.03
    min_lr: float = 5e-7

    def __post_init__(self) -> None:
        for name in ("lr", "merger_lr", "vision_lr"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"--model.optim.{name} must be positive, got {value}; "
                    "to leave a part untrained name it in --model.backbone.freeze"
                )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"--model.optim.betas must both lie in [0, 1), got {self.betas}")
        if not self.eps > 0:
            raise ValueError(f"--model.optim.eps must be positive, got {self.eps}")
        if not self.weight_decay >= 0:
            raise ValueError(f"--model.optim.weight_decay must be 0 (none) or positive, got {self.weight_decay}")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(
                f"--model.optim.warmup_ratio is a share of all steps in [0, 1), got {self.warmup_ratio}; "
                "write 3% as 0.03"
            )
        if self.schedule != "constant" and not 0 <= self.min_lr <= self.lr:
            raise ValueError(
                f"--model.optim.min_lr ({self.min_lr}) must lie between 0 and --model.optim.lr ({self.lr}); "
                "lower it or raise the learning rate"
            )


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> list[dict[str, Any]]:
    """Sorts the trainable parameters into optimiser groups.

    Args:
        named_parameters: Names as in the model's state dict, with whatever prefix: the merger is recognised by
            `visual.merger.`, the rest of the vision tower by `visual.`.
        config: Learning rates and weight decay.

    Returns:
        Groups with the keys `name`, `params`, `lr` and `weight_decay`, in the order language, merger, vision and within
        each part decay before no decay; parameters keep their order. Frozen parameters and empty groups are left out.

    Raises:
        ValueError: If no parameter is trainable.
    """
    rates: dict[Part, float] = {
        "language": config.lr,
        "merger": config.lr if config.merger_lr is None else config.merger_lr,
        "vision": config.lr if config.vision_lr is None else config.vision_lr,
    }
    groups: list[dict[str, Any]] = [
        {
            "name": part if decays else f"{part}_no_decay",
            "params": [],
            "lr": rate,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for part, rate in rates.items()
        for decays in (True, False)
    ]
    by_name = {group["name"]: group["params"] for group in groups}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            part = part_of(name)
            by_name[part if _decays(name, parameter) else f"{part}_no_decay"].append(parameter)
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("no parameter is trainable; leave a part out of --model.backbone.freeze")
    return groups


def build_optimizer(named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> Optimizer:
    """Makes the optimiser over the groups of `parameter_groups`.

    Args:
        named_parameters: The model's parameters, after sharding and on their device.
        config: The choices.

    Returns:
        The optimiser; on a GPU AdamW runs as one fused kernel.

    Raises:
        ModuleNotFoundError: If `adamw_8bit` is asked for and bitsandbytes is not installed.
        ValueError: If `adamw_8bit` meets sharded parameters, or nothing is trainable.
    """
    groups = parameter_groups(named_parameters, config)
    parameters = [parameter for group in groups for parameter in group["params"]]
    if config.optimizer == "adamw":
        fused = all(parameter.is_cuda for parameter in parameters)
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        raise ValueError(
            "--model.optim.optimizer adamw_8bit cannot keep states of sharded parameters; "
            "use --model.optim.optimizer adamw with fsdp2, or --trainer.strategy ddp"
        )
    try:
        library = importlib.import_module("bitsandbytes.optim")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--model.optim.optimizer adamw_8bit needs bitsandbytes: run `pip install bitsandbytes`, "
            "or use --model.optim.optimizer adamw"
        ) from error
    optimizer: Optimizer = library.AdamW8bit(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    return optimizer


def lr_factor(step: int, total_steps: int, config: OptimConfig) -> float:
    """Factor of every peak learning rate at one optimiser step.

    With w warm-up steps the factor is (step + 1) / (w + 1) before step w and 1 at step w; from there it falls to the
    floor, `min_lr / lr`, which the last step (`total_steps - 1`) and any later one use.

    Args:
        step: Optimiser steps taken so far.
        total_steps: Optimiser steps of the whole run.
        config: Schedule, warm-up and floor.

    Returns:
        The factor, in (0, 1]; 0 only at the end of a schedule without a floor.

    Raises:
        ValueError: If `total_steps` is not positive.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}; set --trainer.max_steps or max_epochs")
    warmup_steps = math.ceil(config.warmup_ratio * total_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
    remaining = (1 + math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else 1 - progress
    floor = config.min_lr / config.lr
    return floor + (1 - floor) * remaining


def build_scheduler(optimizer: Optimizer, config: OptimConfig, total_steps: int) -> LambdaLR:
    """Makes the scheduler, to be stepped once after every optimiser step.

    Args:
        optimizer: From `build_optimizer`.
        config: Schedule, warm-up and floor.
        total_steps: Optimiser steps of the whole run.

    Returns:
        A scheduler that multiplies each group's peak by `lr_factor`.

    Raises:
        ValueError: If `total_steps` is not positive.
    """
    return LambdaLR(optimizer, lambda step: lr_factor(step, total_steps, config))


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices outside norms."""
    owner, _, leaf = name.rpartition(".")
    return parameter.ndim > 1 and leaf != "bias" and "norm" not in owner.rpartition(".")[2].lower()
