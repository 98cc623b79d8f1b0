"""What training and rollouts need to know of any strategy: gradients held back, one global norm, weights gathered.

The topmost sharded modules at or below a module are called its roots here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

from lightning.pytorch import LightningModule
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

_TOUCH = "_touch_root"


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
        sharded = roots(model_root)
        for root in sharded:
            root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            for root in sharded:
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
    topmost = roots(root)
    for fsdp in topmost:
        fsdp.set_reshard_after_forward(False)
        _initialise(fsdp)
    gathered = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for fsdp in gathered:
        fsdp.unshard()
    try:
        yield
    finally:
        # The setting comes first: a forward pass cut short by an error would otherwise hold on to its parameters.
        for fsdp in topmost:
            fsdp.set_reshard_after_forward(True)
        for fsdp in gathered:
            fsdp.reshard()
        for fsdp in topmost:
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


def roots(module: nn.Module) -> list[FSDPModule]:
    """The sharded modules at or below `module` that no other sharded module contains."""
    if isinstance(module, FSDPModule):
        return [module]
    return [root for child in module.children() for root in roots(child)]


def _as_module(module: FSDPModule) -> nn.Module:
    """The same object as PyTorch's types see it: `fully_shard` mixes FSDPModule into a module's class."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{type(module).__name__} is not a module")
    return module
