"""Strategies: FSDP2 as pure data parallelism.

Importing this module registers three names for `--trainer.strategy`: `fsdp2`, which saves a checkpoint as one file
that every strategy resumes from, `fsdp2_sharded`, which saves a folder with a file per rank, and `fsdp2_offload`, which
keeps weights, gradients and optimiser states in main memory.

Shards are laid out by the model (`configure_model`, with `fully_shard` over `device_mesh["data_parallel"]`).
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.device_dtype_mixin import _update_properties
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from lit_vlaa.backbone.adapter_state import NOTE, check_notes
from lit_vlaa.checkpoints import SHARDED_METADATA, problem, save_sharded
from lit_vlaa.optimizer_states import check_groups, check_kind, named, numbered
from lit_vlaa.parallel import roots
from lit_vlaa.shards import load_into, read_shards


class FSDP2Strategy(ModelParallelStrategy):
    """Shards parameters, gradients and optimiser states over all processes of all nodes; runs on GPUs and on the CPU.

    Args:
        save_distributed_checkpoint: Save a folder with one file per rank (quick, little memory) rather than one file,
            gathered in the main memory of rank 0, from which `ddp` and a single device resume too.
        cpu_offload: Keep the shards, their gradients and the optimiser's states in main memory, where the optimiser
            then works; a layer's weights are on the GPU while it computes.
        process_group_backend: `nccl`, `gloo` or another; null takes the device's own.
        timeout: How long a collective operation may wait for the other ranks.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = False,
        cpu_offload: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        super().__init__(
            data_parallel_size=1,
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.cpu_offload = cpu_offload

    def setup_environment(self) -> None:
        """Makes the device mesh. Only now is the number of processes known."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def model_to_device(self) -> None:
        """Moves what is not sharded to the device; with `cpu_offload` FSDP2 moves the shards to and fro itself."""
        if not self.cpu_offload:
            super().model_to_device()
            return
        _move_unsharded(self._require_model(), self.root_device)
        _update_properties(self._require_model(), device=self.root_device)

    def _get_process_group_backend(self) -> str:
        if self.cpu_offload and self._process_group_backend is None and self.root_device.type == "cuda":
            return "cpu:gloo,cuda:nccl"  # the norm of gradients in main memory is summed there
        return super()._get_process_group_backend()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Collects an optimiser's state.

        Args:
            optimizer: The optimiser.

        Returns:
            The state of this rank's shards; for a checkpoint of one file on rank 0 the whole state in the form of
            `torch.optim.Optimizer.state_dict`, on the other ranks nothing.
        """
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        # Lightning numbers the parameters in the order of the model, an optimiser in the order of its groups; the two
        # differ with several groups or frozen parameters, and the other strategies expect the optimiser's order.
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model = self._require_model()
        state: dict[str, Any] = dict(get_optimizer_state_dict(model, _unwrap(optimizer), options=options))
        if self.global_rank != 0:
            return {}
        return numbered(state)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Writes a checkpoint; one of that name stays until the new one is on the disk.

        Args:
            checkpoint: What Lightning collected, with states as `optimizer_state` gives them.
            filepath: The file, or the folder if sharded.
            storage_options: Not for a folder.
        """
        if self._save_distributed_checkpoint:
            save_sharded(checkpoint, Path(self.broadcast(filepath)))
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Restores model and optimisers from a checkpoint of this strategy, of `ddp` or of a single device.

        Tensors and primitives alone are read. If `weights_only` is False, a file, and of a folder what is neither model
        nor optimiser, may hold anything.

        Args:
            checkpoint_path: A file, or a sharded folder.
            weights_only: Null means True.

        Returns:
            What the checkpoint holds besides model and optimiser states.

        Raises:
            ValueError: If the checkpoint is not there, cut off or corrupt, or its adapters or optimisers do not match
                these.
        """
        weights_only = True if weights_only is None else weights_only
        path = Path(self.broadcast(checkpoint_path))
        if fault := problem(path):
            raise ValueError(f"{path} {fault}")
        if not path.is_file():
            self._check_folder(path)
            return self._load_folder(path, weights_only)
        checkpoint: dict[str, Any] = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        model = self._require_model()
        check_notes(model, checkpoint["state_dict"])
        strict = self.lightning_module is None or self.lightning_module.strict_loading
        set_model_state_dict(
            model, checkpoint.pop("state_dict"), options=StateDictOptions(full_state_dict=True, strict=strict)
        )
        names = {parameter: name for name, parameter in model.named_parameters()}
        states = checkpoint.pop("optimizer_states", [])
        self._require_states(len(states), path)
        for optimizer, state in zip(map(_unwrap, self.optimizers), states, strict=False):
            check_kind(state, "adamw")  # the only one that keeps states of shards
            set_optimizer_state_dict(
                model,
                optimizer,
                optim_state_dict=named(state, optimizer, names, path),
                options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
            )
        return checkpoint

    def _load_folder(self, path: Path, weights_only: bool) -> dict[str, Any]:
        model = self._require_model()
        strict = self.lightning_module is None or self.lightning_module.strict_loading
        weights = {"state_dict": get_model_state_dict(model)}
        load_into(weights, path)
        model.load_state_dict(weights["state_dict"], strict=strict)
        for index, optimizer in enumerate(map(_unwrap, self.optimizers)):
            # One by one: the states of an optimiser that has made no step yet are made for the purpose.
            states = {f"optimizer_{index}": get_optimizer_state_dict(model, optimizer)}
            load_into(states, path)
            options = StateDictOptions(cpu_offload=True)
            (state,) = states.values()
            set_optimizer_state_dict(model, optimizer, optim_state_dict=state, options=options)
        rest: dict[str, Any] = torch.load(path / SHARDED_METADATA, map_location="cpu", weights_only=weights_only)
        return rest

    def _check_folder(self, path: Path) -> None:
        """Refuses what PyTorch's own reader would stumble over, with the messages that files get."""
        stored = read_shards(path, lambda name: name.endswith(f".{NOTE}") or ".param_groups" in name)
        check_notes(self._require_model(), stored.pop("state_dict", {}))
        self._require_states(len(stored), path)
        for index, optimizer in enumerate(map(_unwrap, self.optimizers)):
            check_groups(stored[f"optimizer_{index}"]["param_groups"], optimizer, path)

    def _require_states(self, count: int, path: Path) -> None:
        if count < len(self.optimizers):
            raise ValueError(
                f"{path}: the checkpoint holds no optimiser state, so no run can resume from it; "
                "start a new run from its weights with --model.init_from"
            )

    def _require_model(self) -> nn.Module:
        if self.model is None:
            raise RuntimeError("the strategy holds no model yet; checkpoints exist only while a Trainer runs")
        return self.model


def map_strategy_name(name: str) -> str:
    """Gives the name of the strategy that a user means: `fsdp` is `fsdp2` here, any other name stays.

    Lightning's own `fsdp` (FSDP1) cannot run a module with manual optimisation and refuses the CPU.
    """
    return "fsdp2" if name == "fsdp" else name


def _move_unsharded(module: nn.Module, device: torch.device) -> None:
    """Moves a module to a device, but of what FSDP2 has sharded the buffers alone."""
    sharded = isinstance(module, FSDPModule)
    if not sharded and not roots(module):
        module.to(device)
        return
    for part in module.modules() if sharded else [module]:
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(device)
    for child in () if sharded else module.children():
        _move_unsharded(child, device)


def _unwrap(optimizer: Optimizer | LightningOptimizer) -> Optimizer:
    """PyTorch's optimiser behind Lightning's wrapper."""
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2, checkpoints of one file", override=True)
StrategyRegistry.register(
    "fsdp2_sharded",
    FSDP2Strategy,
    description="FSDP2, checkpoints of one file per rank",
    override=True,
    save_distributed_checkpoint=True,
)
StrategyRegistry.register(
    "fsdp2_offload",
    FSDP2Strategy,
    description="FSDP2 with weights, gradients and optimiser states in main memory",
    override=True,
    cpu_offload=True,
)
