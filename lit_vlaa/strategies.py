"""Strategies: FSDP2 as pure data parallelism, and what training and rollouts need to know of any strategy.

Importing this module registers three names for `--trainer.strategy`: `fsdp2`, which saves a checkpoint as one file
that every strategy resumes from, `fsdp2_sharded`, which saves a folder with a file per rank, and `fsdp2_offload`, which
keeps weights, gradients and optimiser states in main memory.

Shards are laid out by the model (`configure_model`, with `fully_shard` over `device_mesh["data_parallel"]`). The
topmost sharded modules below a module are called its roots here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.device_dtype_mixin import _update_properties
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from lit_vlaa.checkpoints import problem, save_sharded
from lit_vlaa.optimizer_states import named, numbered

FSDP2_PRECISIONS = ("32-true", "bf16-mixed")
"""Values of `--trainer.precision` under FSDP2; float16 would need a loss scaler that knows of shards."""

_TOUCH = "_touch_root"


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

        Tensors and primitives alone are read, unless `weights_only` is False. A sharded folder holds an index that
        PyTorch itself stores as a pickle: resume only from folders that you trust.

        Args:
            checkpoint_path: A file, or a sharded folder.
            weights_only: Null means True.

        Returns:
            What the checkpoint holds besides model and optimiser states.

        Raises:
            ValueError: If the checkpoint is not there, cut off or corrupt, or its optimisers do not match these.
        """
        weights_only = True if weights_only is None else weights_only
        path = Path(self.broadcast(checkpoint_path))
        if fault := problem(path):
            raise ValueError(f"{path} {fault}")
        if not path.is_file():
            return super().load_checkpoint(path, weights_only=weights_only)
        checkpoint: dict[str, Any] = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        model = self._require_model()
        strict = self.lightning_module is None or self.lightning_module.strict_loading
        set_model_state_dict(
            model, checkpoint.pop("state_dict"), options=StateDictOptions(full_state_dict=True, strict=strict)
        )
        names = {parameter: name for name, parameter in model.named_parameters()}
        states = checkpoint.pop("optimizer_states", [])
        if len(states) < len(self.optimizers):
            raise ValueError(
                f"{path}: the checkpoint holds no optimiser state, so no run can resume from it; "
                "start a new run from its weights with --model.init_from"
            )
        for optimizer, state in zip(map(_unwrap, self.optimizers), states, strict=False):
            set_optimizer_state_dict(
                model,
                optimizer,
                optim_state_dict=named(state, optimizer, names, path),
                options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
            )
        return checkpoint

    def _require_model(self) -> nn.Module:
        if self.model is None:
            raise RuntimeError("the strategy holds no model yet; checkpoints exist only while a Trainer runs")
        return self.model


def map_strategy_name(name: str) -> str:
    """Gives the name of the strategy that a user means: `fsdp` is `fsdp2` here, any other name stays.

    Lightning's own `fsdp` (FSDP1) cannot run a module with manual optimisation and refuses the CPU.
    """
    return "fsdp2" if name == "fsdp" else name


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


@contextmanager
def accumulate(module: LightningModule, model_root: nn.Module, sync: bool) -> Generator[None]:
    """Runs forward and backward of one micro-batch; without `sync` its gradients stay on this rank and are added up.

    Use `sync=False` for all micro-batches of an optimiser step but the last. Under FSDP2 the waiting gradients take
    the memory of the whole model, not of a shard.

    Args:
        module: The LightningModule, attached to its Trainer.
        model_root: The model within it; sharded modules are looked for here.
        sync: Whether to reduce the gradients, those held back included, over the ranks.
    """
    wrapped = module.trainer.strategy.model
    if sync:
        yield
    elif isinstance(wrapped, DistributedDataParallel):
        with wrapped.no_sync():
            yield
    else:
        roots = _roots(model_root)
        for root in roots:
            root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            for root in roots:
                root.set_requires_gradient_sync(True)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> float:
    """Scales the gradients down together so that their global norm is at most `max_norm`.

    Every rank must call this, as the norm of sharded gradients is summed over the ranks.

    Args:
        parameters: Parameters whose gradients are complete (the last micro-batch has been synchronised).
        max_norm: The bound; None or 0 only measures.

    Returns:
        The Euclidean norm before clipping; 0 without any gradient.
    """
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in with_gradient if parameter.grad is not None])
    if max_norm:
        clip_grads_with_norm_(with_gradient, max_norm, norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


@contextmanager
def unsharded(root: nn.Module) -> Generator[None]:
    """Keeps all parameters of a model gathered for many forward passes, as in a rollout; does nothing to a plain model.

    Any submodule may run here, in any order and a different number of times on each rank, without communication.
    Afterwards the parameters are shards again and the model trains on, also after an error. Enter on all ranks at the
    same point, under `torch.no_grad` but not under `torch.inference_mode`; do not nest.

    Args:
        root: The model, or a module that contains it.
    """
    roots = _roots(root)
    for fsdp in roots:
        fsdp.set_reshard_after_forward(False)
        _initialise(fsdp)
    gathered = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for fsdp in gathered:
        fsdp.unshard()
    try:
        yield
    finally:
        # The setting comes first: a forward pass cut short by an error would otherwise hold on to its parameters.
        for fsdp in roots:
            fsdp.set_reshard_after_forward(True)
        for fsdp in gathered:
            fsdp.reshard()
        for fsdp in roots:
            fsdp.set_reshard_after_forward(False, recurse=False)


def _initialise(root: FSDPModule) -> None:
    """Makes FSDP2 see `root` as the root: it takes the first module that runs, which in a rollout may be a child."""
    module = _as_module(root)
    if not hasattr(module, _TOUCH):
        setattr(module, _TOUCH, _nothing)
        register_fsdp_forward_method(module, _TOUCH)
    getattr(module, _TOUCH)()


def _nothing() -> None:
    """Stands for a forward pass that computes nothing."""


def _roots(module: nn.Module) -> list[FSDPModule]:
    """The sharded modules at or below `module` that no other sharded module contains."""
    if isinstance(module, FSDPModule):
        return [module]
    return [root for child in module.children() for root in _roots(child)]


def _move_unsharded(module: nn.Module, device: torch.device) -> None:
    """Moves a module to a device, but of what FSDP2 has sharded the buffers alone."""
    sharded = isinstance(module, FSDPModule)
    if not sharded and not _roots(module):
        module.to(device)
        return
    for part in module.modules() if sharded else [module]:
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(device)
    for child in () if sharded else module.children():
        _move_unsharded(child, device)


def _as_module(module: FSDPModule) -> nn.Module:
    """The same object as PyTorch's types see it: `fully_shard` mixes FSDPModule into a module's class."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{type(module).__name__} is not a module")
    return module


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
