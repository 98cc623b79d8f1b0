"""The benchmarks by name."""

from __future__ import annotations

import importlib
from typing import cast

from callbacks.benchmarks.interface import Benchmark, Profile
from lit_vlaa.hints import NEAR_OF_FEW, nearest

_CLASSES = {
    "mathvista": "MathVista",
    "mathvision": "MathVision",
    "mathverse": "MathVerse",
    "dynamath": "DynaMath",
    "wemath": "WeMath",
    "logicvista": "LogicVista",
}

BENCHMARKS = tuple(_CLASSES)
"""Names that `load_benchmark` knows, in the order of the paper's table."""


def load_benchmark(name: str, profile: Profile = "paper") -> Benchmark:
    """Makes one of the paper's benchmarks.

    Args:
        name: One of `BENCHMARKS`, in any case, with or without `-` and `_` (`We-Math`).
        profile: Whose scoring to follow: `paper`, `head` or `fixed`.

    Raises:
        ValueError: If the name or the profile is unknown; the message suggests what may have been meant.
    """
    key = name.lower().replace("-", "").replace("_", "")
    if key not in _CLASSES:
        near = nearest(key[:40], BENCHMARKS, NEAR_OF_FEW)
        meant = f"; did you mean {near!r}?" if near else "."
        raise ValueError(
            f"no benchmark {name[:40]!r}{meant} There are {', '.join(BENCHMARKS)}; for questions in a file of your own "
            "use class_path: callbacks.benchmarks.JSONLBenchmark"
        )
    module = importlib.import_module(f"callbacks.benchmarks.{key}")
    return cast("Benchmark", getattr(module, _CLASSES[key])(profile=profile))
