"""What a job ran on and with, beside its configuration: code, packages, machine, environment.

The configuration is compared before anything runs. These are noted for each job when it has ended, since jobs may run
on different days and machines, and the report says where they differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from lit_vlaa.versions import installed

_ROOT = Path(__file__).resolve().parents[2]
_SOURCES = ("lit_vlaa", "callbacks", "datamodules")
_OF_JOBS = {"responses.py", "perplexity_run.py", "perplexity_tool.py"}
"""Sources of the study that its jobs run."""

_TELLING = (
    *("CUBLAS_", "CUDNN_", "NVIDIA_TF32", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "ATEN_", "MKL_", "OMP_", "DNNL_"),
    *("NCCL_ALGO", "NCCL_PROTO", "FLASH_", "TRANSFORMERS_", "PYTHONHASHSEED"),
)
"""Beginnings of environment variables that can change numbers: precision, kernels, threads, order of sums."""
_SECRET = ("KEY", "SECRET", "PASS", "TOKEN", "CREDENTIAL", "AUTH")
_SHOWN = 5
_ASPECTS = {"code": "code", "packages": "packages", "machine": "hardware", "environment": "environment variables"}


def code() -> dict[str, Any]:
    """The version of this program, and a hash of the sources that jobs run; the study's others make no job's result."""
    total = hashlib.sha256()
    for path in sorted(path for name in _SOURCES for path in (_ROOT / name).rglob("*.py")):
        place = path.relative_to(_ROOT)
        if place.parts[:2] != ("lit_vlaa", "study") or place.name in _OF_JOBS:
            total.update(f"{place.as_posix()}\0".encode() + path.read_bytes())
    commit = _output("git", "-C", str(_ROOT), "rev-parse", "HEAD")
    status = _output("git", "-C", str(_ROOT), "status", "--porcelain", "--untracked-files=no")
    return {
        "version": installed("lit-vlaa"),
        "git_commit": commit or None,
        "git_dirty": bool(status) if commit else None,
        "sources_sha256": total.hexdigest(),
    }


def packages() -> dict[str, str]:
    """Installed versions of what this program needs."""
    try:
        names = [line for line in requires("lit-vlaa") or [] if "extra ==" not in line]
    except PackageNotFoundError:
        names = ["torch", "lightning", "transformers"]
    plain = sorted(
        {name.split(";")[0].split("[")[0].split("<")[0].split(">")[0].split("=")[0].strip() for name in names}
    )
    return {name: found for name in plain if (found := installed(name)) is not None}


def machine() -> dict[str, Any]:
    """The hardware, without names of host or user."""
    gpus = (
        _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
        if shutil.which("nvidia-smi")
        else ""
    )
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus.splitlines(),
    }


def environment() -> dict[str, str]:
    """Environment variables that can change what a job computes; none whose name speaks of a secret."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_TELLING) and not any(word in name for word in _SECRET)
    }


def here() -> dict[str, Any]:
    """All of it, of this process; what differs between equal machines (free memory, paths) left out."""
    hardware = {key: value for key, value in machine().items() if key != "memory_bytes"}
    sources = {key: value for key, value in code().items() if key in {"version", "sources_sha256", "git_commit"}}
    return {"code": sources, "packages": packages(), "machine": hardware, "environment": environment()}


def differences(jobs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What was not the same for all jobs, one line for each aspect.

    Args:
        jobs: What `here` gave, by job; those of which nothing is known are left out.
    """
    for aspect, words in _ASPECTS.items():
        groups: dict[str, list[str]] = {}
        for name, known in jobs.items():
            if isinstance(found := known.get(aspect), Mapping):
                # A commit that changes no source is no other code.
                told = {key: value for key, value in found.items() if aspect != "code" or key != "git_commit"}
                groups.setdefault(json.dumps(told, sort_keys=True), []).append(name)
        if len(groups) > 1:
            settings = [json.loads(text) for text in groups]
            keys = [key for key in dict.fromkeys(k for s in settings for k in s) if len(_values(settings, key)) > 1]
            listed = [
                f"{', '.join(f'{key} {_short(one.get(key))}' for key in keys)} in {_jobs(names)}"
                for one, names in zip(settings, groups.values(), strict=True)
            ]
            yield f"Not all jobs ran with the same {words}: {'; '.join(listed)}."


def _values(settings: list[dict[str, Any]], key: str) -> set[str]:
    return {json.dumps(one.get(key), sort_keys=True) for one in settings}


def _short(value: Any) -> str:
    if value is None:
        return "unset"
    text = (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"


def _jobs(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)  # noqa: S603 - fixed words
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
