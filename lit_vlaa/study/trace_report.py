"""Tables of traces for people: Markdown, a picture, and example traces with their cues marked."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lit_vlaa.study.measures import FLAGS, NUMBERS, cue_spans
from lit_vlaa.study.tables import Measured

EXAMPLES = 3
"""Traces of each sort and arm in `cases`."""
SHOWN_CHARS = 4000
"""Of a longer trace the beginning and the end are shown."""
MOST_PARTS = 40
"""Sources or kinds that are shown; JSON has all of them."""

_NAME_CHARS = 60
_ESCAPED = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]|~#"})


def escaped(text: str, most: int = _NAME_CHARS) -> str:
    """A name as a piece of a Markdown table's cell: no markup, one line, nothing invisible."""
    line = " ".join(_visible(text[: most + 1]).split())
    line = f"{line[:most]}..." if len(line) > most else line
    return html.escape(line, quote=False).translate(_ESCAPED)


def markdown(table: Mapping[str, Any]) -> str:
    """Everything that `tables.aggregate` gives, as Markdown."""
    arms: Mapping[str, Any] = table["arms"]
    names = list(arms)
    lines = ["# Traces", "", "Definitions and limits: docs/traces.md. In brackets the rows that a number is over.", ""]
    body = [["rows", *(str(arms[name]["rows"]) for name in names)]]
    body.append(["wrong", *(_share(arms[name]["wrong"], arms[name]["judged"]) for name in names)])
    for key, titles, write in (("numbers", NUMBERS, _number), ("flags", FLAGS, _share)):
        for field, title in titles.items():
            found = [arms[name][key].get(field) for name in names]
            if any(found):
                body.append([title, *("-" if one is None else write(one["mean"], one["n"]) for one in found)])
    for side, title in (("right", "tokens of right ones"), ("wrong_rows", "tokens of wrong ones")):
        found = [arms[name][side].get("tokens") for name in names]
        if any(found):
            body.append([title, *("-" if one is None else _number(one["mean"], one["n"]) for one in found)])
    found = [arms[name]["nll"] for name in names]
    if any(found):
        body.append(["perplexity", *("-" if one is None else _number(one["perplexity"], one["n"]) for one in found)])
    lines += _table(["", *map(escaped, names)], body)
    for name in names:
        lines += ["", f"## Error rates: {escaped(name)}", "", *_errors(arms[name]["errors"])]
    for part in ("by_kind", "by_source"):
        if any(arms[name][part] for name in names):
            lines += ["", f"## {part.replace('_', ' ').capitalize()}", "", *_parts(arms, part)]
    if table["missing"]:
        lines += ["", "## Left out", "", *(f"- {escaped(line, 300)}" for line in table["missing"])]
    return "\n".join(lines) + "\n"


def _errors(errors: Mapping[str, Any]) -> list[str]:
    if not errors:
        return ["Nothing to compare: no verdicts, or no property that some judged rows have and others lack."]
    rows = []
    for flag, found in errors.items():
        one = found["standardised"]
        rows.append(
            [
                FLAGS[flag],
                _share(found["with"]["wrong"], found["with"]["n"]),
                _share(found["without"]["wrong"], found["without"]["n"]),
                f"{100 * found['difference']:+.1f}",
                "-"
                if one is None
                else f"{100 * one['difference']:+.1f} ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})",
                "-" if one is None else f"{one['rows']} in {one['strata']}",
            ]
        )
    head = [
        "property",
        "wrong with it",
        "wrong without",
        "difference",
        "within kind and source (95%)",
        "rows in strata",
    ]
    return _table(head, rows)


def _parts(arms: Mapping[str, Any], part: str) -> list[str]:
    rows = []
    for name, arm in arms.items():
        for value, own in list(arm[part].items())[:MOST_PARTS]:
            flags = [own["flags"].get(flag) for flag in ("aha", "hesitates", "contradicts", "well_formed")]
            words = own["numbers"]["words"]
            rows.append(
                [escaped(name), escaped(value), str(own["rows"]), _share(own["wrong"], own["judged"])]
                + [_number(words["mean"], words["n"])]
                + ["-" if cell is None else _share(cell["mean"], cell["n"]) for cell in flags]
            )
    head = [
        "arm",
        part.removeprefix("by_"),
        "rows",
        "wrong",
        "words",
        "aha cue",
        "hesitates",
        "contradicts",
        "well-formed",
    ]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    return [line(head), line(["---", *["---:"] * (len(head) - 1)]), *map(line, rows)]


def _number(mean: float | None, n: int) -> str:
    return "-" if mean is None else f"{mean:.3g} ({n})" if abs(mean) < 100 else f"{mean:.0f} ({n})"


def _share(mean: float | None, n: int) -> str:
    return "-" if mean is None else f"{100 * mean:.1f}% ({n})"


def picture(table: Mapping[str, Any]) -> Any:
    """Shares of cues, lengths of right and wrong responses, and differences of error rates, an arm a colour.

    Returns:
        A matplotlib figure, apart from pyplot's state.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    arms: Mapping[str, Any] = table["arms"]
    figure = Figure(
        figsize=(15.0, 2.6 + 0.45 * max(4, len(arms)) + 0.04 * len(arms) * len(FLAGS)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    shares, lengths, errors = figure.subplots(1, 3, width_ratios=(1.0, 0.8, 1.2))
    titles = {name: title for name, title in FLAGS.items() if any(name in arm["flags"] for arm in arms.values())}
    step = 0.8 / max(1, len(arms))
    for number, (name, arm) in enumerate(arms.items()):
        offset = (number - (len(arms) - 1) / 2) * step
        label, colour = _label(name), f"C{number % 10}"
        places = [place + offset for place, flag in enumerate(titles) if flag in arm["flags"]]
        values = [arm["flags"][flag]["mean"] for flag in titles if flag in arm["flags"]]
        shares.barh(places, values, height=step, color=colour, label=label)
        key = "tokens" if "tokens" in arm["numbers"] else "words"
        for side, fill in (("right", 1.0), ("wrong_rows", 0.45)):
            if one := arm[side].get(key):
                place = number + (-0.2 if side == "right" else 0.2)
                lengths.barh([place], [one["mean"]], height=0.38, color=colour, alpha=fill)
                lengths.text(
                    one["mean"],
                    place,
                    f" {'right' if side == 'right' else 'wrong'}, n={one['n']}",
                    va="center",
                    fontsize=7,
                )
        for place, flag in enumerate(titles):
            one = arm["errors"].get(flag, {}).get("standardised")
            if one:
                errors.plot([one["low"], one["high"]], [place + offset] * 2, color=colour, linewidth=1.6)
                errors.plot([one["difference"]], [place + offset], "o", color=colour, markersize=4)
    for axes in (shares, errors):
        axes.set_yticks(range(len(titles)), list(titles.values()) if axes is shares else [], parse_math=False)
        axes.set_ylim(len(titles) - 0.5, -0.5)
    shares.set_xlim(0, 1)
    shares.legend(fontsize=7)
    lengths.margins(x=0.3)
    lengths.set_yticks(range(len(arms)), [_label(name) for name in arms], parse_math=False)
    lengths.set_ylim(len(arms) - 0.5, -0.5)
    errors.axvline(0.0, color="black", linewidth=0.8)
    shares.set_title("share of responses", fontsize=10)
    lengths.set_title("mean length (tokens, or words where there are none)", fontsize=10)
    errors.set_title("error rate with it less without, same kind and source, 95%", fontsize=10)
    for axes in (shares, lengths, errors):
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0, labelsize=8)
    return figure


_SORTS: Mapping[str, Callable[[Measured], bool]] = {
    "wrong, with an aha cue or a hesitation marker": lambda row: row.wrong is True and _doubts(row),
    "right, with an aha cue or a hesitation marker": lambda row: row.wrong is False and _doubts(row),
    "contradicting itself": lambda row: row.measures.contradicts is True,
    "repeating itself": lambda row: row.measures.repeats,
    "an answer ahead of the reasoning": lambda row: row.measures.answer_first and row.measures.thinking_words > 0,
    "without a verdict": lambda row: row.wrong is None,
}


def _doubts(row: Measured) -> bool:
    return row.measures.aha or row.measures.hesitations > 0


def cases(arms: Mapping[str, Sequence[Measured]]) -> str:
    """Example traces in Markdown: of each arm the first of each sort in the order of the data, cues marked.

    The traces are shown as they are, in HTML that holds nothing but escaped text and `<mark>`.
    """
    lines = ["# Example traces", "", "Marked: aha cues (anywhere, as the paper counts) and hesitation markers.", ""]
    for name, rows in arms.items():
        lines += [f"## {escaped(name)}", ""]
        for title, chosen in _SORTS.items():
            fitting = [row for row in rows if chosen(row)]
            if fitting:
                lines += [f"### {title}: {len(fitting)} of {len(rows)}", ""]
            for row in fitting[:EXAMPLES]:
                lines += _case(row)
    return "\n".join(lines)


def _case(row: Measured) -> list[str]:
    response = row.response
    facts = {"id": response.id, "kind": response.kind, "source": response.source, "question": response.question}
    facts |= {"truth": response.truth, "image": response.image or ""}
    lines = [f"- {key}: {escaped(value, 300)}" for key, value in facts.items() if value]
    verdict = "none" if response.score is None else f"{response.score:.3g}"
    return [*lines, f"- score: {verdict}", "", f"<pre>{marked(response.response)}</pre>", ""]


def marked(text: str) -> str:
    """A trace as HTML text with its cues in `<mark>`; what cannot be seen is replaced, the middle of a long one cut."""
    if len(text) > SHOWN_CHARS:
        half = SHOWN_CHARS // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"
    pieces = []
    at = 0
    for start, end in cue_spans(text):
        pieces += [_shown(text[at:start]), "<mark>", _shown(text[start:end]), "</mark>"]
        at = end
    return "".join([*pieces, _shown(text[at:])])


def _shown(text: str) -> str:
    return html.escape(_visible(text))


def _visible(text: str) -> str:
    """Control characters and marks of direction, which could make a text look like another, as U+FFFD."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} else "\ufffd"
        for char in text
    )


def _label(text: str) -> str:
    plain = "".join(char if char.isprintable() else " " for char in text)
    return (plain if len(plain) <= 40 else f"...{plain[-37:]}").lstrip("_") or "_"
