"""Tiny trainings of adapters, for tests in one process and in several."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import seed_everything

from helpers import modules
from lit_vlaa.backbone.adapters import is_adapter
from lit_vlaa.backbone.config import LoRAConfig
from lit_vlaa.policy import PolicyModule

LORA = {"rank": 4, "alpha": 8.0}
CONSTANT = {"schedule": "constant", "warmup_ratio": 0.0}
"""A schedule that does not depend on the run's length, for runs that are cut in two."""


def with_adapters(lora: dict[str, Any] | None, options: dict[str, Any]) -> dict[str, Any]:
    """Options of `make_module` with adapters; `lora` as JSON carries it, None for none."""
    backbone = dict(options.get("backbone", {}))
    if lora is not None:
        lora = {name: tuple(value) if isinstance(value, list) else value for name, value in lora.items()}
        backbone["lora"] = LoRAConfig(**{**LORA, **lora})
    return {**options, "backbone": backbone}


def make_adapted(kind: str, lora: dict[str, Any] | None = {}, **options: Any) -> PolicyModule:  # noqa: B006
    """An SFT or GRPO module that trains adapters."""
    return modules.make_module(kind, **with_adapters(lora, options))


def train(kind: str, lora: dict[str, Any] | None = {}, **options: Any) -> dict[str, Any]:  # noqa: B006
    """`modules.train` of adapters; with None of the weights."""
    return modules.train(kind, **with_adapters(lora, options))


def fit(
    kind: str,
    *,
    lora: dict[str, Any] | None = {},  # noqa: B006
    epochs: int = 1,
    resume: str | None = None,
    save: str | None = None,
    weights_only: bool = False,
    strategy: str = "auto",
    devices: int = 1,
    **options: Any,
) -> dict[str, Any]:
    """Trains for some epochs of three batches, saves, with the optimiser or without, and resumes.

    Returns:
        Each trained weight as a list, the steps taken, and this rank's bytes.
    """
    seed_everything(1, verbose=False)
    torch.set_num_threads(1)
    module = make_adapted(kind, lora, **{**options, "optim": {**CONSTANT, **options.get("optim", {})}})
    trainer = modules.quiet_trainer(strategy=strategy, devices=devices, max_epochs=epochs)
    trainer.fit(module, modules.InMemoryData(kind), ckpt_path=resume)
    if save is not None:
        trainer.save_checkpoint(save, weights_only=weights_only)
    weights = {}
    for name, parameter in module.backbone.named_parameters():
        if parameter.requires_grad and (is_adapter(name) or name.endswith("q_proj.weight")):
            value: Any = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            weights[name] = value.detach().flatten().tolist()
    parameters = list(module.backbone.parameters())
    states = [v for state in trainer.optimizers[0].state.values() for v in state.values() if torch.is_tensor(v)]
    local = {"weights": sum(map(local_bytes, parameters)), "optimiser states": sum(map(local_bytes, states))}
    return {"weights": weights, "steps": trainer.global_step, "bytes": local}


def local_bytes(tensor: Any) -> int:
    """Bytes of a tensor on this rank."""
    own = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return int(own.numel() * own.element_size())


def run_all(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Several trainings in a row in the same processes: by `fit` where they save or resume, else by `train`."""
    results: dict[str, Any] = {}
    for name, run in runs.items():
        try:
            results[name] = (fit if {"save", "resume", "epochs"} & run.keys() else train)(**run)
        except ValueError as error:
            results[name] = {"error": str(error)}
    return results
