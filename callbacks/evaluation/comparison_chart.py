"""A picture of paired differences: a line a comparison, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callbacks.evaluation.compare import Comparison

MAX_LINES = 60
"""Of more comparisons those of the fewest questions are left out."""

BETTER, WORSE, UNCLEAR = "#2166ac", "#b2182b", "#777777"
_LABEL_CHARS = 40


def chart(comparisons: Sequence[Comparison], base: str, new: str) -> Any:
    """Draws the new model less the baseline in percentage points, coloured where the interval leaves out zero.

    Args:
        comparisons: In the order of the table.
        base: Name of the baseline.
        new: Name of the other model.

    Returns:
        A matplotlib figure, apart from pyplot's state.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    rows = shown(comparisons)
    figure = Figure(figsize=(8.0, 1.6 + 0.27 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        colour = BETTER if row.low > 0 else WORSE if row.high < 0 else UNCLEAR
        whole = row.part.partition(": ")[1] == ""
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2.2 if whole else 1.2)
        axes.plot([row.difference], [place], "o", color=colour, markersize=6 if whole else 4)
    axes.axvline(0.0, color="black", linewidth=0.8)
    labels = [f"{row.benchmark}   {row.part}" for row in rows]
    axes.set_yticks(range(len(rows)), [_label(label) for label in labels], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("difference in percentage points, with 95% intervals")
    axes.set_title(f"{_label(new)} less {_label(base)} (right of 0: better)", loc="left", fontsize=9, parse_math=False)
    return figure


def shown(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons that are drawn: all, or the `MAX_LINES` of the most questions, in their order."""
    largest = sorted(range(len(comparisons)), key=lambda place: -comparisons[place].n)[:MAX_LINES]
    return [comparisons[place] for place in sorted(largest)]


def _label(text: str) -> str:
    plain = "".join(char if char.isprintable() else " " for char in text)
    return plain if len(plain) <= _LABEL_CHARS else f"...{plain[3 - _LABEL_CHARS :]}"
