"""Models that lie in main memory and are on a device only while they run."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

_ALIGNMENT = 512
"""Bytes, as CUDA's own allocations are aligned."""

_log = logging.getLogger(__name__)


def weights_on(model: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """A model's parameters and buffers by name on `device`, for `torch.func.functional_call`.

    What is there already is not copied; the model's own tensors stay where they are.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().to(device, non_blocking=True) for name, tensor in own.items()}


def pin(model: nn.Module) -> None:
    """Moves the parameters to page-locked memory, from which they reach a GPU several times as fast.

    Where the system gives no such memory, what is left stays as it was.
    """
    try:
        pack(model, lambda size: torch.empty(size, dtype=torch.uint8, pin_memory=True))
    except RuntimeError as error:
        _log.warning("the model's weights stay in pageable memory, which only costs time: %s", error)


def pack(model: nn.Module, allocate: Callable[[int], Tensor], *, most: int = 2**31) -> None:
    """Moves the parameters into a few blocks of memory.

    PyTorch rounds page-locked allocations up to powers of two, which would nearly double a 7B model's matrices.

    Args:
        model: Whose parameters to move; they keep shapes and values.
        allocate: Gives `[size]` uint8 for a number of bytes.
        most: Bytes of a block, unless a single parameter needs more; a power of two.
    """
    sizes = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
    block_size = min(most, 1 << (sum(sizes) + _ALIGNMENT * len(sizes)).bit_length())
    block = torch.empty(0, dtype=torch.uint8)
    used = 0
    for parameter, size in zip(model.parameters(), sizes, strict=True):
        used = -(-used // _ALIGNMENT) * _ALIGNMENT
        if used + size > block.numel():
            block = allocate(max(block_size, size))
            used = 0
        place = block[used : used + size].view(parameter.dtype).view(parameter.shape)
        parameter.data = place.copy_(parameter.data)
        used += size
