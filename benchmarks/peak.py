"""Peak memory: of a process, of a GPU, and of all tensors that a piece of work makes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While open, follows every tensor that an operation makes, gradients and temporaries included.

    Attributes:
        now: Bytes alive of all that was made since it was opened.
        peak: The most that were alive at one time.
    """

    def __init__(self) -> None:
        """Starts at zero."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts what it made."""
        for tensor in _tensors((args, kwargs)):
            self._known.add(tensor.untyped_storage())
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                size = storage.nbytes()
                self.now += size
                weakref.finalize(storage, self._freed, size)
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, size: int) -> None:
        self.now -= size


def peak_of(work: Callable[[], object], device: str) -> int:
    """Bytes that `work` needs at one time beside what was there: of the GPU's allocator, or of tensors on the CPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        before: int = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        most: int = torch.cuda.max_memory_allocated()
        return most - before
    counter = PeakBytes()
    with counter:
        work()
    return counter.peak


def process_bytes(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (peak) of this process in bytes; Linux alone has them."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def reset_process_peak() -> None:
    """Lets `VmHWM` start anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
