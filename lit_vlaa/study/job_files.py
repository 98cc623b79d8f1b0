"""Files of a study's folder other than responses: JSON objects, logs, saved configurations, perplexities."""

from __future__ import annotations

import csv
import json
import math
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lit_vlaa.hints import unreadable

_MOST_BYTES = 1 << 28

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Curve:
    """A logged number over optimiser steps."""

    steps: tuple[float, ...]
    values: tuple[float, ...]


def read_object(path: Path, hint: str) -> Mapping[str, Any]:
    """Reads a JSON object.

    Args:
        path: The file.
        hint: What to do where there is none.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path}: larger than {_MOST_BYTES} bytes; this is no file of a study")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; {hint}") from None
    except NotADirectoryError:
        raise ValueError(f"{path.parent} is a file; {hint}") from None
    except OSError as error:
        raise ValueError(f"{path} {unreadable(path, error)}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path}: a JSON object is expected, got {type(found).__name__}")  # noqa: TRY004
    return found


def typed(entry: Any, key: str, kind: type[T] | tuple[type[T], ...], where: str, *, required: bool = False) -> T | None:
    """A value of an object whose type is checked; None where it is absent or null."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: an object with {key!r} is expected, got {type(entry).__name__}")  # noqa: TRY004
    value = entry.get(key)
    if value is None and not required:
        return None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where}: {key!r} has the wrong type {type(value).__name__}")  # noqa: TRY004
    return value


def saved_config(place: Path) -> Any:
    """The resolved configuration of a job's last run; None where it saved none."""
    import yaml  # noqa: PLC0415 (only jobs that say nothing in their command need it)

    files = [version / "config.yaml" for version in versions(place) if (version / "config.yaml").is_file()]
    try:
        return yaml.safe_load(files[-1].read_text(encoding="utf-8")) if files else None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{files[-1]}: cannot be read: {' '.join(str(error).split())}") from error


def config_value(config: Any, key: str) -> Any:
    """A value of a nested configuration by its dotted key, None where there is none."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def versions(place: Path) -> list[Path]:
    """Log folders of a job, oldest first: an interrupted one has several."""
    numbered = [(path.name.removeprefix("version_"), path) for path in place.glob("version_*")]
    return [path for number, path in sorted((int(n), p) for n, p in numbered if n.isdecimal())]


def read_curves(place: Path) -> dict[str, Curve]:
    """All numbers of a job by step; where runs that went on logged a step again, the later one holds."""
    points: dict[str, dict[float, float]] = {}
    for version in versions(place):
        path = version / "metrics.csv"
        if not path.is_file():
            continue
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                step = _number(row.get("step"))
                if step is None:
                    continue
                for name, cell in row.items():
                    value = _number(cell)
                    if name and name != "step" and value is not None:
                        points.setdefault(name, {})[step] = value
    return {name: Curve(tuple(sorted(found)), tuple(found[s] for s in sorted(found))) for name, found in points.items()}


def _number(cell: Any) -> float | None:
    """A finite number of a CSV cell."""
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def write_json(path: Path, content: Any) -> None:
    """Writes what JSON can hold, as `write_text`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole, unless it holds this already; several processes may write the same."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes on several machines may have one number.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
