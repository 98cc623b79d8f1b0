"""Where results go beside the loggers' scalars: `summary.json`, a picture, TensorBoard's table and chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_warn

from callbacks.benchmarks.published import PUBLISHED
from callbacks.evaluation.report import (
    AVERAGE,
    Result,
    Scope,
    average,
    chart,
    headlines,
    read_summary,
    table,
    write_summary,
)

_FIRST = "step_0"
"""Label of the evaluation ahead of the first step."""


def publish(
    trainer: Trainer,
    results: Sequence[Result],
    *,
    folder: Path,
    label: str,
    scope: Scope,
    weights: str,
    base: Path | None,
    published: str | None,
) -> str:
    """Writes an evaluation's results; on one rank.

    Args:
        trainer: Has step and loggers.
        results: One a benchmark.
        folder: Gets `summary.json` and `<label>.png`.
        label: Of the evaluation.
        scope: The rows it covers.
        weights: Digest of the evaluated weights, for the summary.
        base: Another `summary.json` to compare with; None takes this one's row ahead of the first step.
        published: Row of the paper's table to compare with.

    Returns:
        The table.
    """
    path = folder / "summary.json"
    others: dict[str, Mapping[str, float]] = {}
    own = {} if label == _FIRST or scope == "full" else {_FIRST: read_summary(path).get(_FIRST)}
    earlier, unlike = headlines(own if base is None else read_summary(base), scope, results)
    if earlier:
        others["base"] = earlier
    if unlike:
        rank_zero_warn(f"the base row of {path if base is None else base} is no measure of {'; of '.join(unlike)}")
    if published is not None:
        others[f"{published} (paper)"] = PUBLISHED[published]
    found = {
        result.benchmark.name: {
            "headline": result.headline,
            "metric": result.benchmark.headline,
            "profile": result.benchmark.profile,
            "comparable": result.comparable,
            "caveat": result.caveat,
            "numbers": dict(result.numbers),
        }
        for result in results
    }
    row = {"scope": scope, "step": trainer.global_step, "weights": weights, AVERAGE: average(results)}
    write_summary(path, label, {**row, "benchmarks": found})
    figure, rows = chart(results, others, label), table(results, others)
    figure.savefig(folder / f"{label}.png", dpi=120)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("eval/table", rows, trainer.global_step)
            logger.experiment.add_figure("eval/chart", figure, trainer.global_step)
    return rows
