"""What the paper plots of a training run: reward and length curves, expressions of doubt, the form of responses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lit_vlaa.traces import CUES, Matching, count_cues, read_trace, word_count
from lit_vlaa.types import ScoredGroup

_TAG = "trace/curves"
_COLUMNS = ("reward", "correct", "tokens", "well_formed", "thinking_words")
_QUANTILES = (0.1, 0.5, 0.9)


class TraceDiagnostics(Callback):
    """Logs `trace/*` for each rollout, over the completions of all ranks, and now and then draws the curves so far.

    - `trace/length_mean`, `trace/length_p10`, `_p50`, `_p90`: completion tokens; `trace/length_correct` and
      `trace/length_wrong`: their mean where the reward is at least `correct_from`, and where it is less
    - `trace/well_formed`: share with `<think>...</think><answer>...</answer>` and nothing else
    - `trace/thinking_words`: mean number of words between the think tags, 0 where there are none
    - `trace/aha`: share with any cue, `trace/aha/<cue>` with this one; `trace/aha_correct` and `trace/aha_wrong`: share
      with any cue among correct and wrong ones

    Completions without a verdict are neither correct nor wrong. What a rollout has none of is not logged. Works with
    any module whose `training_step` returns `{"rollout": sequence of ScoredGroup}`, or a dictionary without it for a
    batch that gave no rollout.
    """

    def __init__(
        self,
        *,
        every_n_rollouts: int = 10,
        cues: Sequence[str] = CUES,
        matching: Matching = "substring",
        correct_from: float = 0.5,
        most_points: int = 2000,
    ) -> None:
        """Sets what is looked for and how often curves are drawn.

        Args:
            every_n_rollouts: Rollouts between two pictures; the last rollout always gives one.
            cues: Expressions of doubt, lower case; the default is the paper's list.
            matching: `substring` finds a cue anywhere, as the paper does; `words` only as a word of its own.
            correct_from: Reward from which a completion counts as correct.
            most_points: Points of a curve; of a longer run every other one is dropped, again and again.

        Raises:
            ValueError: If a setting cannot work.
        """
        if every_n_rollouts < 1:
            raise ValueError(f"TraceDiagnostics: every_n_rollouts must be at least 1, got {every_n_rollouts}")
        if most_points < 2:
            raise ValueError(f"TraceDiagnostics: most_points must be at least 2, got {most_points}")
        if not 0 < correct_from <= 1:
            raise ValueError(f"TraceDiagnostics: correct_from must lie in (0, 1], got {correct_from}")
        if not cues:
            raise ValueError("TraceDiagnostics: cues must not be empty")
        count_cues("", cues, matching)
        self.every_n_rollouts = every_n_rollouts
        self.cues = tuple(cues)
        self.matching = matching
        self.correct_from = correct_from
        self.most_points = most_points
        self._rollouts = 0
        self._stride = 1
        self._drawn = 0
        self._history: list[dict[str, float]] = []

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Logs the rollout that this batch gave."""
        if not isinstance(outputs, Mapping) or "rollout" not in outputs:
            return
        own = completion_rows(outputs["rollout"], self.cues, self.matching, self.correct_from)
        rows = _of_all_ranks(trainer, own)
        if not len(rows):
            return
        values = summary(rows, self.cues)
        if trainer.is_global_zero:
            # Not by `log`, which would go on logging the last value of what this rollout has none of.
            for logger in trainer.loggers:
                logger.log_metrics({f"trace/{name}": value for name, value in values.items()}, trainer.global_step)
        self._note({"step": float(trainer.global_step), "reward": float(rows[:, 0].nanmean()), **values})
        if self._rollouts % self.every_n_rollouts == 0:
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Draws what came after the last picture."""
        if self._drawn < self._rollouts:
            self._draw(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The curves so far, so that those of a resumed run are whole."""
        return {"rollouts": self._rollouts, "stride": self._stride, "history": [dict(row) for row in self._history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the curves of the interrupted run."""
        self._rollouts = self._drawn = int(state_dict["rollouts"])
        self._stride = int(state_dict["stride"])
        self._history = [dict(row) for row in state_dict["history"]]

    def _note(self, row: dict[str, float]) -> None:
        if self._rollouts % self._stride == 0:
            self._history.append(row)
            if len(self._history) > self.most_points:
                self._history = self._history[::2]
                self._stride *= 2
        self._rollouts += 1

    def _draw(self, trainer: Trainer) -> None:
        self._drawn = self._rollouts
        if not trainer.is_global_zero:
            return
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if boards:
            picture = curves(self._history, self.cues)
            for board in boards:
                board.experiment.add_image(_TAG, picture, trainer.global_step, dataformats="HWC")


def completion_rows(
    groups: Sequence[ScoredGroup], cues: Sequence[str], matching: Matching, correct_from: float
) -> Tensor:
    """What is kept of each completion.

    Returns:
        `[completions, 5 + cues]` float64: reward and whether it counts as correct (both NaN without a verdict), tokens,
        whether tags are well-formed, words of thinking, and for each cue whether it occurs.
    """
    rows = []
    for group in groups:
        for text, result, tokens in zip(group.texts, group.results, group.lengths, strict=True):
            trace = read_trace(text)
            counts = count_cues(text, cues, matching)
            rows.append(
                [
                    result.value if result.judged else math.nan,
                    float(result.value >= correct_from) if result.judged else math.nan,
                    float(tokens),
                    float(trace.well_formed),
                    float(word_count(trace.thinking or "")),
                    *(float(counts[cue] > 0) for cue in cues),
                ]
            )
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, len(_COLUMNS) + len(cues))


def summary(rows: Tensor, cues: Sequence[str]) -> dict[str, float]:
    """The numbers of one rollout, without their `trace/`.

    Args:
        rows: As `completion_rows` gives them, at least one.
        cues: Names of the last columns.
    """
    tokens, correct = rows[:, 2], rows[:, 1]
    right, wrong = correct == 1, correct == 0
    any_cue = rows[:, len(_COLUMNS) :].amax(dim=1)
    quantiles = torch.quantile(tokens, torch.tensor(_QUANTILES, dtype=tokens.dtype)).tolist()
    values = {"length_mean": float(tokens.mean())}
    values |= {f"length_p{100 * q:.0f}": value for q, value in zip(_QUANTILES, quantiles, strict=True)}
    values |= {"well_formed": float(rows[:, 3].mean()), "thinking_words": float(rows[:, 4].mean())}
    values["aha"] = float(any_cue.mean())
    for name, chosen in (("correct", right), ("wrong", wrong)):
        if chosen.any():
            values[f"length_{name}"] = float(tokens[chosen].mean())
            values[f"aha_{name}"] = float(any_cue[chosen].mean())
    shares = rows[:, len(_COLUMNS) :].mean(dim=0).tolist()
    return values | {_cue_name(cue): share for cue, share in zip(cues, shares, strict=True)}


def curves(history: Sequence[Mapping[str, float]], cues: Sequence[str]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """`[height, width, 3]` picture of reward, length and cues over optimiser steps.

    Args:
        history: Numbers of each rollout with their `step` and `reward`.
        cues: Those to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    def column(name: str) -> list[float]:
        return [row.get(name, math.nan) for row in history]

    steps = column("step")
    mark = "." if len(history) < 50 else ""
    figure = Figure(figsize=(13.0, 3.8), dpi=100, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    reward, length, aha = figure.subplots(1, 3)
    reward.plot(steps, column("reward"), mark + "-", label="reward")
    reward.plot(steps, column("well_formed"), mark + "--", label="well-formed tags")
    reward.set_ylim(-0.03, 1.03)
    length.fill_between(steps, column("length_p10"), column("length_p90"), alpha=0.2, label="10% to 90%")
    for name, label in (("length_mean", "mean"), ("length_correct", "correct"), ("length_wrong", "wrong")):
        length.plot(steps, column(name), mark + "-", label=label)
    length.set_ylim(bottom=0)
    aha.plot(steps, column("aha"), mark + "-", color="black", label="any")
    for cue in cues:
        aha.plot(steps, column(_cue_name(cue)), mark + "-", linewidth=1, label=_plain(cue))
    aha.set_ylim(bottom=0)
    for axes, title in ((reward, "reward"), (length, "completion tokens"), (aha, "share with an aha expression")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimiser step")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(fontsize=7)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _of_all_ranks(trainer: Trainer, own: Tensor) -> Tensor:
    """The rows of all ranks, by rank; a rank may have more of them than another."""
    if trainer.world_size == 1:
        return own
    device = trainer.strategy.root_device
    counts = trainer.strategy.all_gather(torch.tensor([len(own)], device=device)).flatten().tolist()
    padded = torch.zeros(max(counts), own.shape[1], dtype=own.dtype, device=device)
    padded[: len(own)] = own.to(device)
    everyone = trainer.strategy.all_gather(padded).cpu()
    return torch.cat([rows[:count] for rows, count in zip(everyone, counts, strict=True)])


def _cue_name(cue: str) -> str:
    return f"aha/{'_'.join(cue.split())}"


def _plain(text: str) -> str:
    """A label that matplotlib neither hides (a leading underscore) nor reads as formula."""
    return text.replace("$", r"\$").lstrip("_") or "_"
