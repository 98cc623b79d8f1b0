"""The files of a run, looked at by its data module and its callbacks, which are known by their class paths alone."""

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
    target = _target(path)
    if not rows:
        return ["rows were not looked at: --rows 0"], False
    if target is None:
        return [f"rows were not looked at: {path} names no function for it as its attribute `preflight`"], False
    lines, stops = _named(target)(config, rows=rows)
    return list(lines), bool(stops)


def look_at_callbacks(config: Mapping[str, Any], rows: int) -> tuple[list[str], bool]:
    """Has the files looked at that callbacks read, such as those of benchmarks.

    A callback's class may name what does so as its attribute `preflight`: a function `module:name` that takes the
    callback's parsed settings, and gives lines to print and whether a run would stop.

    Args:
        config: A parsed configuration of `lit-vlaa fit`.
        rows: 0 for none.

    Returns:
        What to tell, and whether a run would stop at what was found.
    """
    given = config["trainer"]["callbacks"] or []
    lines: list[str] = []
    stops = False
    for callback in given if isinstance(given, list) else [given]:
        target = _target(callback["class_path"])
        if target is not None and rows:
            own, stop = _named(target)(callback)
            lines += own
            stops |= bool(stop)
    return lines, stops


def _target(class_path: str) -> str | None:
    found = getattr(_named(":".join(class_path.rsplit(".", 1))), "preflight", None)
    return found if isinstance(found, str) else None


def _named(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
