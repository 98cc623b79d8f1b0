"""What the numbers were taken on."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """The processor's name without anything that names this one machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
