"""A bound on YAML files: a few lines of aliases can stand for more values than fit into memory."""

from __future__ import annotations

from pathlib import Path

import yaml

MAX_VALUES = 20_000
"""Of one file, with each alias counted as what it stands for; the longest shipped configuration has some hundreds."""

TOO_LARGE = f"with its aliases it stands for more than {MAX_VALUES} values, which no configuration does"
"""The end of a sentence on such a file."""


def too_large(path: Path) -> bool:
    """Whether a YAML file stands for more than `MAX_VALUES`; what is no YAML, or cannot be read, is left to its reader.

    Args:
        path: The file.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        return root is not None and _values(root, {}) > MAX_VALUES
    except RecursionError:
        return True
    except (OSError, ValueError, yaml.YAMLError):
        return False


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """Counts the values below a node; each node is looked at once, however many aliases it has."""
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # what holds itself has no end
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inner = 0 if isinstance(node, yaml.ScalarNode) else sum(_values(part, known) for part in parts)
        known[id(node)] = min(1 + inner, MAX_VALUES + 1)
    return known[id(node)]
