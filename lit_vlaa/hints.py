"""What was probably meant by a flag, a key or a file that is not there. Nothing heavy is imported."""

from __future__ import annotations

import difflib
import re
import stat
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path

import yaml

from lit_vlaa.yaml_files import TOO_LARGE, too_large

NEAREST, BESIDE = " -- nearest: ", " -- beside it: "
"""What follows a message on an option: the name that was probably meant, or the names that there are.

`lit_vlaa.checks.one_line` puts the flags before them that lead to where the message came from.
"""

_UNKNOWN = (
    re.compile(r"unrecognized arguments: --(?P<option>[\w.-]+)"),
    re.compile(r"Option '(?P<option>[\w.]+)' is not accepted"),
    re.compile(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<option>[\w.]+)'"),
    re.compile(r"Subcommand '\w+' does not accept option '(?P<option>[\w.]+)'"),
)
_SHOWN = 12
_SHORT = 4
"""Letters of a name of which one may be wrong."""
_NEAR = 0.75
"""Least likeness of names, of which the same ending alone gives two thirds."""
NEAR_OF_FEW = 0.6
"""Among the few names of a file's section, or of a command's arguments, one that is less alike can be meant."""
_MOST = 2000
"""Names of a folder that are looked through."""


def unknown_option(message: str) -> str | None:
    """The option that a parser's message says is unknown, by its name within that parser; None of other messages."""
    found = next((found for pattern in _UNKNOWN if (found := pattern.match(message))), None)
    if found is None or "\n" in message:
        return None
    return ".".join(part for part in (found.groupdict().get("group"), found["option"]) if part)


def nearest(name: str, known: Iterable[str], least: float = _NEAR) -> str:
    """The name that was probably meant, empty where none is spelt alike.

    Args:
        name: What was typed.
        known: What there is.
        least: Likeness from which a name counts, from 0 to 1, as `difflib` measures it.
    """
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=least)), "")


def meant(name: str, known: Collection[str]) -> str:
    """The end of a message on a name that is none of a few: what was probably meant, else what there is."""
    near = nearest(name, known, NEAR_OF_FEW)
    return f"did you mean {near!r}?" if near else f"known: {', '.join(known) or 'none'}"


def hint(option: str, known: Iterable[str]) -> str:
    """What to add to a message on an unknown option.

    Args:
        option: Its name, without hyphens before it.
        known: Names that there are.

    Returns:
        `NEAREST` with a name that is spelt alike or ends alike, else `BESIDE` with those of the same group, else "".
    """
    names = sorted({name for name in known if not name.endswith((".help", "+"))} - {option})
    below = [name for name in names if name.endswith(f".{option}")]
    near = min(below, key=len) if below else nearest(option, names, 0.8 if len(option) > _SHORT else _NEAR)
    if near:
        return f"{NEAREST}{near}"
    group = option.rpartition(".")[0]
    siblings = [name.rpartition(".")[2] for name in names if group and name.rpartition(".")[0] == group]
    return f"{BESIDE}{', '.join(siblings[:_SHOWN])}{', ...' if len(siblings) > _SHOWN else ''}" if siblings else ""


def missing(path: Path) -> str:
    """What to say of a path that is not there, behind it: where it was looked for, and which one was probably meant."""
    names = [] if _numbered(path) else _names(path.parent)
    near = nearest(path.name, names) if len(names) <= _MOST else ""
    return f"does not exist; seen from {Path.cwd()}" + (f"; did you mean {path.parent / near}?" if near else "")


def unreadable(path: Path, error: OSError) -> str:
    """What to say of a file that cannot be opened, behind its path.

    Args:
        path: The file.
        error: Of the attempt.
    """
    if isinstance(error, FileNotFoundError):
        return missing(path)
    if isinstance(error, IsADirectoryError):
        return "is a folder; name a file in it"
    return f"cannot be read: {error.strerror or error}"


def configuration_fault(path: Path) -> str:
    """Says what keeps a file from being a configuration.

    Returns:
        The end of a sentence on the path, empty when it can be parsed.
    """
    try:
        path = path.expanduser()
        mode = path.stat().st_mode
    except FileNotFoundError:
        return f" {missing(path)}"
    except (OSError, RuntimeError) as error:  # the latter where there is no such user
        return f" cannot be read: {' '.join(str(error).split())}"
    if stat.S_ISDIR(mode):
        return " is a folder; name a file in it"
    return _yaml_fault(path) if stat.S_ISREG(mode) else ""  # a pipe can be read once


def _yaml_fault(path: Path) -> str:
    if too_large(path):
        return f": {TOO_LARGE}"
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        return f"{where}: this is no YAML: {error.problem}"
    except (OSError, ValueError, yaml.YAMLError) as error:
        return f" cannot be read: {' '.join(str(error).split())}"
    if isinstance(root, yaml.MappingNode):
        return ""
    if root is None:
        return " holds nothing; a configuration is made of lines such as `trainer:`"
    return ": a configuration is made of lines such as `trainer:`; rows are named by --data.data_file"


def _numbered(path: Path) -> bool:
    """Whether the name is a number in the main, as of a row's image: another one is near, and never meant."""
    return 2 * sum(char.isdigit() for char in path.stem) > len(path.stem)


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in islice(folder.iterdir(), _MOST + 1)]
    except OSError:
        return []
