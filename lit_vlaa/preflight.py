"""The rows of a run, looked at by its data module, which is known by its class path alone."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def look_at_rows(config: Mapping[str, Any], rows: int) -> tuple[list[str], bool]:
    """Has some rows of each data file looked at.

    The data module's class names what does so as its attribute `preflight`: a function `module:name` that takes the
    configuration and the number of rows, and gives lines to print and whether a run would stop.

    Args:
        config: A parsed configuration of `lit-vlaa fit`.
        rows: Rows of each file, spread over it; 0 for none.

    Returns:
        What to tell, and whether a run would stop at what was found.
    """
    path: str = config["data"]["class_path"]
    module, _, name = path.rpartition(".")
    target = getattr(getattr(importlib.import_module(module), name), "preflight", None)
    if not rows:
        return ["rows were not looked at: --rows 0"], False
    if not isinstance(target, str):
        return [f"rows were not looked at: {path} names no function for it as its attribute `preflight`"], False
    module, _, name = target.partition(":")
    lines, stops = getattr(importlib.import_module(module), name)(config, rows=rows)
    return list(lines), bool(stops)
