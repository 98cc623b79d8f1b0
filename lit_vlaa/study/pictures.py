"""The report's pictures: SVG, once for light and once for dark pages, the same bytes for the same numbers.

Every arm has one colour and one mark in all of them. Names are drawn as they are, never as formulas.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_vlaa.study.document import Picture, visible
from lit_vlaa.study.palette import colours, marks
from lit_vlaa.study.statistics import Estimate

_WIDTH = 9.0
_LABEL_CHARS = 34
_SETTINGS = {
    "svg.hashsalt": "lit-vlaa",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "axes.formatter.useoffset": False,
    "path.simplify": True,
    "text.parse_math": False,
}


@dataclass(frozen=True, slots=True)
class Line:
    """A curve of one arm with the band of its seeds."""

    arm: str
    steps: Sequence[float]
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True, slots=True)
class Panel:
    """One of several drawings side by side."""

    title: str
    unit: str
    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class _Theme:
    ink: str
    soft: str
    grid: str
    shades: Mapping[str, str]
    marks: Mapping[str, str]


def dots(
    name: str,
    rows: Sequence[tuple[str, str, Estimate, Sequence[float]]],
    arms: Sequence[str],
    *,
    unit: str,
    alt: str,
    caption: str,
    zero: bool = False,
) -> Picture:
    """A line a row: a mark with its 95% interval, and a small tick for each seed.

    Args:
        name: File name without ending.
        rows: Label, arm that gives the colour ("" for none), estimate, and one value a seed.
        arms: All arms, in the order of their colours.
        unit: What the axis shows.
        alt: Description for those who do not see it.
        caption: Text below it.
        zero: Draw the line of no difference.
    """

    def draw(figure: Any, theme: _Theme) -> None:
        axes = figure.add_subplot()
        for place, (_, arm, found, seeds) in enumerate(rows):
            colour = theme.shades.get(arm, theme.ink)
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2.4, solid_capstyle="butt")
            axes.plot([found.value], [place], theme.marks.get(arm, "o"), color=colour, markersize=7.5)
            axes.plot(seeds, [place + 0.27] * len(seeds), "|", color=colour, markersize=6, alpha=0.9)
        if zero:
            axes.axvline(0.0, color=theme.soft, linewidth=1.0)
        _rows_axis(axes, [label for label, *_ in rows], theme)
        axes.set_xlabel(unit)

    return _picture(name, (_WIDTH, 0.95 + 0.42 * len(rows)), draw, arms, alt=alt, caption=caption)


def by_group(
    name: str,
    groups: Sequence[tuple[str, Sequence[tuple[str, Estimate]]]],
    arms: Sequence[str],
    *,
    unit: str,
    alt: str,
    caption: str,
) -> Picture:
    """For each group a block of lines, one an arm."""

    def draw(figure: Any, theme: _Theme) -> None:
        axes = figure.add_subplot()
        place, ticks = 0.0, []
        for label, members in groups:
            ticks.append((place + (len(members) - 1) / 2, label))
            for arm, found in members:
                colour = theme.shades[arm]
                if found.low is not None and found.high is not None:
                    axes.plot(
                        [found.low, found.high], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt"
                    )
                axes.plot([found.value], [place], theme.marks[arm], color=colour, markersize=5.5)
                place += 1
            axes.axhline(place + 0.1, color=theme.grid, linewidth=0.8)
            place += 1.2
        _rows_axis(axes, [label for _, label in ticks], theme, [at for at, _ in ticks])
        axes.set_ylim(place - 1.1, -1)
        axes.set_xlabel(unit)
        there = {arm for _, members in groups for arm, _ in members}
        _legend(figure, [arm for arm in arms if arm in there], theme)

    lines = sum(len(members) + 1.2 for _, members in groups)
    return _picture(name, (_WIDTH, 1.5 + 0.17 * lines), draw, arms, alt=alt, caption=caption)


def curves(name: str, panels: Sequence[Panel], arms: Sequence[str], *, alt: str, caption: str) -> Picture:
    """Curves over optimiser steps, each with its band and its arm's name at its end."""

    def draw(figure: Any, theme: _Theme) -> None:
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for line in panel.lines:
                colour = theme.shades[line.arm]
                axes.fill_between(line.steps, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
                every = max(1, len(line.steps) // 8)
                axes.plot(
                    line.steps,
                    line.middle,
                    color=colour,
                    linewidth=1.9,
                    marker=theme.marks[line.arm],
                    markersize=4.5,
                    markevery=every,
                )
            axes.set_title(panel.title, loc="left", fontsize=10.5, color=theme.ink)
            axes.set_xlabel("optimiser step")
            axes.set_ylabel(panel.unit)
            axes.grid(color=theme.grid, linewidth=0.7)
            _plain(axes, theme)
            _label_ends(axes, panel.lines, theme)

    return _picture(name, (_WIDTH, 3.4), draw, arms, alt=alt, caption=caption)


def dumbbells(
    name: str,
    rows: Sequence[tuple[str, float, float]],
    arms: Sequence[str],
    *,
    ends: tuple[str, str],
    unit: str,
    alt: str,
    caption: str,
) -> Picture:
    """A line an arm between two shares, the first as an empty mark, the second as a full one."""

    def draw(figure: Any, theme: _Theme) -> None:
        axes = figure.add_subplot()
        for place, (arm, first, second) in enumerate(rows):
            colour = theme.shades[arm]
            axes.plot([first, second], [place, place], color=colour, linewidth=2.0)
            axes.plot([first], [place], "o", markerfacecolor="none", color=colour, markersize=8, markeredgewidth=1.8)
            axes.plot([second], [place], "o", color=colour, markersize=8)
        _rows_axis(axes, [arm for arm, *_ in rows], theme)
        axes.set_xlabel(unit)
        axes.set_xlim(-0.03, 1.03)
        handles = [
            axes.plot([], [], "o", color=theme.soft, markersize=8, linestyle="none", label=label, **extra)[0]
            for label, extra in zip(ends, ({"markerfacecolor": "none", "markeredgewidth": 1.8}, {}), strict=True)
        ]
        figure.legend(
            handles=handles, loc="outside upper left", ncols=2, frameon=False, labelcolor=theme.ink, fontsize=9
        )

    return _picture(name, (_WIDTH, 1.35 + 0.4 * len(rows)), draw, arms, alt=alt, caption=caption)


def _picture(
    name: str,
    size: tuple[float, float],
    draw: Callable[[Any, _Theme], None],
    arms: Sequence[str],
    *,
    alt: str,
    caption: str,
) -> Picture:
    light, dark = (_svg(size, draw, _theme(arms, dark=dark)) for dark in (False, True))
    return Picture(name, light, dark, alt, caption)


def _theme(arms: Sequence[str], *, dark: bool) -> _Theme:
    shades, shapes = colours(arms, dark=dark), marks(arms)
    if dark:
        return _Theme("#e4e8ec", "#9aa5b1", "#323b45", shades, shapes)
    return _Theme("#1b1f24", "#59636e", "#dfe4e9", shades, shapes)


def _svg(size: tuple[float, float], draw: Callable[[Any, _Theme], None], theme: _Theme) -> bytes:
    import matplotlib as mpl  # noqa: PLC0415 (slow to import)
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    # All but the backend, so that a user's own settings change nothing.
    settings: Any = {key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith("backend")}
    with mpl.rc_context(settings | _SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure, theme)
        buffer = io.BytesIO()
        # No date and no producer: the same numbers give the same bytes.
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _rows_axis(axes: Any, labels: Sequence[str], theme: _Theme, places: Sequence[float] | None = None) -> None:
    axes.set_yticks(list(range(len(labels)) if places is None else places), list(map(_label, labels)))
    if places is None:
        axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", color=theme.grid, linewidth=0.7)
    _plain(axes, theme)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelcolor=theme.ink)


def _plain(axes: Any, theme: _Theme) -> None:
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"bottom", "left"})
        spine.set_color(theme.soft)
    axes.tick_params(colors=theme.soft)
    axes.xaxis.label.set_color(theme.soft)
    axes.yaxis.label.set_color(theme.soft)


def _label_ends(axes: Any, lines: Sequence[Line], theme: _Theme) -> None:
    """Writes each arm's name beside the end of its curve, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.065 * (high - low)
    ends = sorted((line.middle[-1], line.steps[-1], line.arm) for line in lines)
    last = -float("inf")
    for value, _, arm in ends:
        last = max(value, last + gap)
        axes.annotate(
            _label(arm),
            (max(step for _, step, _ in ends), last),
            xytext=(6, 0),
            textcoords="offset points",
            color=theme.shades[arm],
            fontsize=9,
            va="center",
            annotation_clip=False,
        )
    axes.set_ylim(low, max(high, last + gap / 2))


def _legend(figure: Any, arms: Sequence[str], theme: _Theme) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415

    handles = [
        Line2D(
            [], [], color=theme.shades[arm], marker=theme.marks[arm], linewidth=1.8, markersize=5.5, label=_label(arm)
        )
        for arm in arms
    ]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=min(len(arms), 6),
        frameon=False,
        labelcolor=theme.ink,
        fontsize=9,
    )


def _label(text: str) -> str:
    """Text that fits; a leading underscore would hide it from a legend."""
    line = " ".join(visible(text).split()).lstrip("_") or "_"
    return line if len(line) <= _LABEL_CHARS else f"{line[: _LABEL_CHARS - 1]}…"
