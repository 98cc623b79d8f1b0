"""How long rows are, by source: a ridge for each, and the limits."""

from __future__ import annotations

from typing import Any

import numpy as np

from datamodules.check.summary import PARTS, Summary, quantiles, total

_BINS = 60
_COLOURS = {"row": "#333333", "text": "#2166ac", "image": "#4d9221", "response": "#b35806"}
_TITLES = {"row": "whole rows", "text": "prompts beside images", "image": "images", "response": "responses"}
_LIMIT = "#b2182b"
_MOST_SOURCES = 24


def draw(summary: Summary) -> Any:
    """Draws the tokens of rows and their parts, one ridge a source with its median, 95th percentile and maximum.

    Args:
        summary: With the lengths.

    Returns:
        A matplotlib figure, apart from pyplot's state; None where no tokens were counted.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    counted = [(name, source) for name, source in sorted(summary.sources.items()) if len(source.lengths["text"])]
    counted = sorted(sorted(counted, key=lambda item: -item[1].rows)[:_MOST_SOURCES])
    if not counted:
        return None
    panels = ["row", *(part for part in PARTS if any(any(source.lengths[part]) for _, source in counted))]
    limits = summary.settings.limits
    figure = Figure(figsize=(3.1 * len(panels) + 1.2, 1.5 + 0.42 * len(counted)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        drawn = [np.asarray(total(s.lengths) if panel == "row" else s.lengths[panel]) for _, s in counted]
        shown = {
            "row": [("a micro-batch", limits.row), ("context", limits.context)],
            "response": [("a completion", limits.response)],
        }.get(panel, [])
        _ridges(axis, drawn, _COLOURS[panel], [(name, value) for name, value in shown if value is not None])
        axis.set_title(_TITLES[panel], fontsize=9, loc="left")
        axis.set_xlabel("tokens", fontsize=8)
    labels = ["".join(char if char.isprintable() else " " for char in name)[:24] for name, _ in counted]
    axes[0].set_yticks(range(len(counted)), labels, parse_math=False, fontsize=8)
    axes[0].set_ylim(len(counted) - 0.5, -1.1)
    return figure


def _ridges(axis: Any, sources: list[Any], colour: str, limits: list[tuple[str, int]]) -> None:
    """One filled histogram a source; a dot at the median, a line to the 95th percentile, a tick at the maximum."""
    most = max(int(tokens.max()) for tokens in sources)
    # A limit far beyond all rows would press them into a corner; it is named at the edge instead.
    end = max([most, *(limit for _, limit in limits if limit <= 4 * most)]) * 1.06 + 1
    edges = np.linspace(0, end, _BINS + 1)
    for place, tokens in enumerate(sources):
        counts, _ = np.histogram(tokens, edges)
        height = 0.8 * counts / max(1, counts.max())
        axis.fill_between(edges[:-1], place - height, place, step="post", color=colour, alpha=0.45, linewidth=0)
        found = quantiles(tokens)
        if found is not None:
            axis.plot([found["p50"], found["p95"]], [place, place], color=colour, linewidth=2)
            axis.plot([found["p50"]], [place], "o", color=colour, markersize=4)
            axis.plot([found["max"]], [place], "|", color=colour, markersize=9)
    for number, (name, limit) in enumerate(limits):
        inside = limit <= end
        if inside:
            axis.axvline(limit, color=_LIMIT, linestyle="--", linewidth=1)
        text = f"{name}: {limit}" + ("" if inside else " \N{RIGHTWARDS ARROW}")
        axis.annotate(
            text,
            (limit if inside else end, 1 - 0.07 * number),
            (-3, -3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=7,
            color=_LIMIT,
            parse_math=False,
        )
    axis.set_xlim(0, end)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=7)
    axis.locator_params(axis="x", nbins=5, integer=True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
