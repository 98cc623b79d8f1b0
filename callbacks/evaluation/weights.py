"""A digest of a model's weights, to know answers of the same weights again.

It sums the weights' bits, each multiplied by a number that depends on its place, modulo 2^64. Integer sums have no
rounding, so that every device and every order of summation gives the same digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

_CHUNK = 1 << 22
"""Elements that are looked at together; each takes 8 bytes a few times."""

_ODD = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number: consecutive multiples look random
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def weights_digest(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Digest of whole (unsharded) tensors, of their names, shapes and types.

    Args:
        parameters: Names and tensors, in any order and on any device.

    Returns:
        16 hexadecimal digits.
    """
    names, sums = [], []
    for name, tensor in sorted(parameters, key=lambda pair: pair[0]):
        names.append(f"{name} {tuple(tensor.shape)} {tensor.dtype}")
        sums.append(_sum(tensor.detach()).cpu())
    digest = hashlib.sha256("\n".join(names).encode())
    if sums:
        digest.update(torch.stack(sums).numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _sum(tensor: Tensor) -> Tensor:
    """The weighted sum of a tensor's bits, int64 on its device."""
    flat = tensor.contiguous().flatten().view(_INTEGERS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK].long()
        places = torch.arange(start + 1, start + 1 + part.numel(), device=flat.device) * _ODD
        total += (part * (places ^ (places >> 29))).sum()
    return total
