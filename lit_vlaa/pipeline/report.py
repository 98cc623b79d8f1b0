"""What a build found, as numbers, as a data card in the Hub's form, and as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_vlaa.pipeline.config import STEPS, BuildConfig
from lit_vlaa.pipeline.prompt_files import PromptFile
from lit_vlaa.pipeline.rows import Done
from lit_vlaa.whole_files import replacing

_MARKUP = str.maketrans({char: f"&#{ord(char)};" for char in "<>&|`*_[]()#!~\\$@:\"'{}"})
_CARD_REASONS = 12
_CARD_CHARS = 120
"""Of each reason."""
_CELL_CHARS = 2000

_INTRODUCTION = (
    "Questions about images with reasoning traces, built by `lit-vlaa data build` in the six steps of "
    '"SFT or RL? An Early Investigation into Training R1-Like Reasoning Large Vision-Language Models" '
    "(arXiv 2504.11468). The traces come from models that read captions, not images; treat them so."
)
_LICENCE = (
    "**Licence: to be filled in by whoever publishes this.** It depends on the images, on the questions, and on the "
    "terms of the models below."
)

Table = Sequence[Mapping[str, Any]]


def step_report(done: Done, config: BuildConfig, prompts: Mapping[str, PromptFile]) -> dict[str, Any]:
    """Counts, tokens and cost of one step."""
    report: dict[str, Any] = {
        "step": done.step,
        "rows_in": done.rows_in,
        "rows_out": done.rows_out,
        "rejected": done.rejected,
        "notes": done.notes,
    }
    if done.usage is None:
        return report
    endpoint = config.asking()[done.step].endpoint
    usage = done.usage
    prices = endpoint.price_in, endpoint.price_out
    known = prices[0] is not None and prices[1] is not None
    tokens = usage["tokens_in"], usage["tokens_out"]
    return {
        **report,
        "model": endpoint.model,
        "sampling": {name: value for name, value in endpoint.sampling().items() if name != "model"},
        "prompt": {"file": prompts[done.step].path.name, "sha256": prompts[done.step].sha256},
        "replies": usage["replies"],
        "tokens_in": tokens[0],
        "tokens_out": tokens[1],
        "replies_with_estimated_tokens": usage["estimated"],
        "cost": sum(t * (p or 0.0) for t, p in zip(tokens, prices, strict=True)) / 1e6 if known else None,
    }


def split_table(rows: Counter[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """The paper's table of the new data: rows of each source and verifier by split.

    Args:
        rows: Number by (source, kind, split).
    """
    groups = sorted({(source, kind) for source, kind, _ in rows})
    return [
        {"source": source, "verifier": kind, "sft": rows[source, kind, "sft"], "grpo": rows[source, kind, "grpo"]}
        for source, kind in groups
    ]


def cost_line(steps: Table) -> str:
    """Tokens and cost of all steps together."""
    asked = [step for step in steps if "replies" in step]
    total_in, total_out = (sum(step[name] for step in asked) for name in ("tokens_in", "tokens_out"))
    priced = [step["cost"] for step in asked if step["cost"] is not None]
    text = f"{sum(step['replies'] for step in asked):,} replies, {total_in:,} tokens in, {total_out:,} tokens out"
    if priced:
        text += f", cost {sum(priced):,.2f}" + ("" if len(priced) == len(asked) else " for the steps with a price")
    if estimated := sum(step["replies_with_estimated_tokens"] for step in asked):
        text += f" (tokens of {estimated:,} replies estimated, as the server did not count them)"
    return text


def card(report: Mapping[str, Any]) -> str:
    """The data card.

    Args:
        report: As `report.json` holds it.

    Returns:
        Markdown under YAML front matter. Everything that came from data or servers is escaped.
    """
    files = report["files"]
    front = [
        "---",
        f'pretty_name: "{report["name"]}"',
        "license: other",
        "license_name: to-be-filled-in  # by you: it depends on the images, the questions and the models' terms",
        "task_categories:",
        "- visual-question-answering",
        "- image-text-to-text",
        "tags:",
        "- reasoning",
        "- generated-by-lit-vlaa",
        "configs:",
    ]
    for split in ("sft", "grpo"):
        front += [f"- config_name: {split}", f"  data_files: {files[split]['name']}"]
    steps: Table = report["steps"]
    asked = [step for step in steps if "model" in step]
    passed = [
        [f"{STEPS.index(step['step']) + 1} {step['step']}", step["rows_in"], step["rows_out"], _reasons(step)]
        for step in steps
    ]
    models = [
        [
            step["step"],
            step["model"],
            ", ".join(f"{name} {value}" for name, value in step["sampling"].items()) or "-",
            f"{step['prompt']['file']}, {step['prompt']['sha256'][:16]}",
            f"{step['replies']:,}",
            f"{step['tokens_in']:,} / {step['tokens_out']:,}",
            "-" if step["cost"] is None else f"{step['cost']:,.2f}",
        ]
        for step in asked
    ]
    table = [[row["source"], row["verifier"], row["sft"], row["grpo"]] for row in report["table"]]
    totals = [sum(row[split] for row in report["table"]) for split in ("sft", "grpo")]
    return "\n".join(
        [
            *front,
            "---",
            "",
            f"# {report['name']}",
            "",
            _INTRODUCTION,
            "",
            _LICENCE,
            "",
            "## Rows",
            "",
            *_markdown(["Source", "Verifier", "SFT", "RL"], [*table, ["total", "", *totals]]),
            "",
            "## Funnel",
            "",
            "![Rows left after each step](funnel.png)",
            "",
            *_markdown(["Step", "Rows in", "Rows out", "Rejected"], passed),
            "",
            "Each rejected row is in `rejects.jsonl` with its step and the reason.",
            "",
            "## Models and prompts",
            "",
            *_markdown(["Step", "Model", "Sampling", "Prompt, SHA-256", "Replies", "Tokens in / out", "Cost"], models),
            "",
            f"Together: {cost_line(steps)}.",
            "",
            "## Splits",
            "",
            _rule(report["curation"]),
            "",
        ]
    )


def funnel(path: Path, steps: Table) -> None:
    """Draws the rows left after each step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (seconds to import)
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(7.0, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [step["step"] for step in steps]
    axes.barh(names, [step["rows_in"] for step in steps], color="#d9dde3", label="in")
    axes.barh(names, [step["rows_out"] for step in steps], color="#3b6ea5", label="out")
    for place, step in enumerate(steps):
        share = 100 * step["rows_out"] / max(step["rows_in"], 1)
        axes.text(step["rows_in"], place, f" {step['rows_out']:,} ({share:.0f}%)", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("rows (beside each bar: rows out, and their share of the rows in)")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as part, part.open("wb") as stream:
        figure.savefig(stream, format="png", dpi=140, metadata={"Software": None})


def _rule(curation: Mapping[str, Any]) -> str:
    """How the splits came about."""
    shared = " and no ".join(curation["disjoint_by"]) or "row"
    return (
        f"A row with a cue ({_escaped(', '.join(curation['cues']))}; matching: {curation['matching']}) goes to RL, the "
        f"others to SFT. The splits share no {shared}: rows that share one stay together, and go to RL if one of them "
        f"has a cue. {curation['moved']:,} rows without a cue are in RL for that reason."
    )


def _reasons(step: Mapping[str, Any]) -> str:
    found = sorted(step["rejected"].items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{reason[:_CARD_CHARS]}: {count:,}" for reason, count in found[:_CARD_REASONS]]
    return "; ".join(shown + [f"and {len(found) - _CARD_REASONS} more reasons"] * (len(found) > _CARD_REASONS)) or "-"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [[f"{cell:,}" if isinstance(cell, int) else _escaped(str(cell)) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]


def _escaped(text: str) -> str:
    """One line that is nothing but text in Markdown and in HTML."""
    return " ".join(text[:_CELL_CHARS].split()).translate(_MARKUP)
