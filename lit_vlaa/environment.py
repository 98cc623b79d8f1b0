"""What is installed and what hardware is there, and what of it keeps runs from working."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import NamedTuple

import torch
from packaging.requirements import Requirement

from lit_vlaa.versions import installed

OPTIONAL = {
    "bitsandbytes": "--model.optim.optimizer adamw_8bit and --model.backbone.quantize",
    "flash-attn": "--model.backbone.attention flash_attention_2",
    "peft": "--model.backbone.lora.rank",
}
"""Libraries that single options need."""

_LEAST_DISK = 20 * 2**30


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    value: str
    problem: str = ""
    """What does not work because of it, and the remedy; empty if nothing."""
    fatal: bool = False
    """Whether no run works."""


def look() -> list[Finding]:
    """Looks at Python, libraries, GPUs, memory and disk."""
    return [Finding("python", platform.python_version()), *_required(), *_optional(), *_gpus(), *_memory(), *_disk()]


def gpu_bytes() -> int | None:
    """Memory of the smallest visible GPU; None without one."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(count)]
    return min(sizes, default=None)


def _required() -> Iterator[Finding]:
    try:
        wanted = [Requirement(line) for line in requires("lit-vlaa") or []]
    except PackageNotFoundError:
        yield Finding("lit-vlaa", "not installed", "run `pip install -e .` in its folder", fatal=True)
        return
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = installed(requirement.name)
        if found is None:
            yield Finding(requirement.name, "missing", f"run `pip install '{requirement}'`", fatal=True)
        elif not requirement.specifier.contains(found, prereleases=True):
            yield Finding(requirement.name, found, f"run `pip install '{requirement}'`", fatal=True)
        else:
            yield Finding(requirement.name, found)


def _optional() -> Iterator[Finding]:
    for name, purpose in OPTIONAL.items():
        found = installed(name)
        yield Finding(name, found or f"not installed (for {purpose})")


def _gpus() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        yield Finding("GPUs", "none", "only small models train on the CPU: use --trainer.accelerator cpu")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        old = properties.major < 8
        yield Finding(
            f"GPU {index}",
            f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB",
            "no bfloat16: use --trainer.precision 32-true" if old else "",
        )


def _memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("main memory", f"{total / 2**30:.1f} GiB, {os.cpu_count()} processors")


def _disk() -> Iterator[Finding]:
    cache = os.environ.get("HF_HOME", str(Path("~/.cache/huggingface").expanduser()))
    for name, place in (("working folder", Path.cwd()), ("model cache", Path(cache))):
        existing = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        problem = "a 3B model takes 8 GiB and a checkpoint of its full training 45" if free < _LEAST_DISK else ""
        yield Finding(f"disk, {name}", f"{free / 2**30:.1f} GiB free at {place}", problem)
