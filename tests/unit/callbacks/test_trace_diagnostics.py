from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import TraceDiagnostics
from callbacks.trace_diagnostics import completion_rows, curves, summary
from helpers.launch import run_ranks
from helpers.modules import make_module, quiet_trainer
from helpers.resumable import PlacedData
from helpers.samples import sample
from lit_vlaa.traces import CUES
from lit_vlaa.types import RewardResult, RewardStatus, ScoredGroup


def group(*completions: tuple[str, float, int], status: RewardStatus = "ok") -> ScoredGroup:
    """A prompt with (text, reward, tokens) of each completion."""
    texts, values, lengths = zip(*completions, strict=True)
    results = tuple(RewardResult(value, "digit", "1", status) for value in values)
    return ScoredGroup(sample("one", "How many?", ()).record, texts, results, (0.0,) * len(texts), lengths)


FORMED = "<think>Wait, one two</think><answer>1</answer>"
ROLLOUT = (
    group((FORMED, 1.0, 10), ("no tags, check again", 0.0, 20)),
    group(("<think>four words are here</think> loose <answer>2</answer>", 0.4, 30), (FORMED, 0.5, 41)),
)


class Noting(Logger):
    """Keeps what is logged."""

    name, version = "noting", 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[dict[str, float]] = []
        self.steps: list[int | None] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if chosen := {name: float(value) for name, value in metrics.items() if name.startswith("trace/")}:
            self.logged.append(chosen)
            self.steps.append(step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class FakeTrainer:
    """The few things that the callback asks of a Trainer."""

    world_size = 1

    def __init__(self, folder: Path) -> None:
        self.noting, self.board = Noting(), TensorBoardLogger(folder, name="", version="v")
        self.loggers = [self.board, self.noting]
        self.is_global_zero = True
        self.global_step = 0

    def pictures(self) -> list[int]:
        self.board.finalize("success")
        events = EventAccumulator(self.board.log_dir).Reload()
        return [event.step for event in events.Images("trace/curves")] if events.Tags()["images"] else []


def run(callback: TraceDiagnostics, trainer: FakeTrainer, rollouts: int, outputs: Any = None) -> list[dict[str, float]]:
    for _ in range(rollouts):
        trainer.global_step += 2
        given = {"rollout": ROLLOUT} if outputs is None else outputs
        callback.on_train_batch_end(trainer, None, given, None, 0)  # type: ignore[arg-type]
    return trainer.noting.logged


def test_the_numbers_of_a_rollout(tmp_path: Path) -> None:
    (logged,) = run(TraceDiagnostics(), FakeTrainer(tmp_path), 1)
    assert logged == pytest.approx(
        {
            "trace/length_mean": 101 / 4,
            # Sorted 10 20 30 41: the tenth lies 0.3 of the way from 10 to 20, the ninetieth 0.7 from 30 to 41.
            "trace/length_p10": 13.0,
            "trace/length_p50": 25.0,
            "trace/length_p90": 37.7,
            "trace/length_correct": 51 / 2,  # rewards 1 and 0.5
            "trace/length_wrong": 50 / 2,
            "trace/well_formed": 0.5,
            "trace/thinking_words": (3 + 0 + 4 + 3) / 4,
            "trace/aha": 0.75,
            "trace/aha_correct": 1.0,
            "trace/aha_wrong": 0.5,
            **{f"trace/aha/{name}": 0.0 for name in ("double-check", "hmm", "mistake", "alternatively")},
            "trace/aha/i_should_confirm": 0.0,
            "trace/aha/wait": 0.5,
            "trace/aha/again": 0.25,
            "trace/aha/check": 0.25,
        }
    )


def test_what_counts_as_correct_and_as_cue_is_settable(tmp_path: Path) -> None:
    callback = TraceDiagnostics(correct_from=0.4, cues=["one", "ought to"], matching="words")
    (logged,) = run(callback, FakeTrainer(tmp_path), 1)
    assert logged["trace/length_correct"] == pytest.approx(81 / 3)
    assert (logged["trace/aha/one"], logged["trace/aha/ought_to"], logged["trace/aha"]) == (0.5, 0.0, 0.5)
    assert "trace/aha/wait" not in logged
    anywhere = TraceDiagnostics(cues=["on"], matching="substring")
    assert run(anywhere, FakeTrainer(tmp_path / "b"), 1)[0]["trace/aha/on"] == 0.5
    whole = TraceDiagnostics(cues=["on"], matching="words")
    assert run(whole, FakeTrainer(tmp_path / "c"), 1)[0]["trace/aha/on"] == 0.0


def test_completions_without_a_verdict_are_neither_correct_nor_wrong(tmp_path: Path) -> None:
    outputs = {"rollout": (group((FORMED, 0.0, 10), status="timeout"), group((FORMED, 1.0, 30)))}
    callback = TraceDiagnostics()
    (logged,) = run(callback, FakeTrainer(tmp_path), 1, outputs)
    assert (logged["trace/length_mean"], logged["trace/length_correct"]) == (20.0, 30.0)
    assert not {"trace/length_wrong", "trace/aha_wrong"} & set(logged)
    assert callback.state_dict()["history"][0]["reward"] == 1.0


def test_a_rollout_without_verdicts_is_no_number(tmp_path: Path) -> None:
    callback = TraceDiagnostics()
    trainer = FakeTrainer(tmp_path)
    (logged,) = run(callback, trainer, 1, {"rollout": (group((FORMED, 0.0, 10), status="timeout"),)})
    assert all(math.isfinite(value) for value in logged.values())
    assert "trace/length_correct" not in logged
    callback.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert trainer.pictures() == [2]


@pytest.mark.parametrize("outputs", [torch.zeros(()), {"loss": 1.0}, {}, {"rollout": ()}])
def test_batches_without_completions_are_passed_over(outputs: Any, tmp_path: Path) -> None:
    callback = TraceDiagnostics()
    assert run(callback, FakeTrainer(tmp_path), 1, outputs) == []
    assert callback.state_dict()["history"] == []


def test_curves_are_drawn_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    trainer, callback = FakeTrainer(tmp_path), TraceDiagnostics(every_n_rollouts=2)
    run(callback, trainer, 5)
    callback.on_train_end(trainer, None)  # type: ignore[arg-type]
    callback.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert trainer.pictures() == [4, 8, 10]


def test_only_the_first_rank_draws_and_logs(tmp_path: Path) -> None:
    trainer, callback = FakeTrainer(tmp_path), TraceDiagnostics(every_n_rollouts=1)
    trainer.is_global_zero = False
    assert run(callback, trainer, 1) == []
    assert trainer.pictures() == []


def test_a_resumed_run_goes_on_with_its_curves(tmp_path: Path) -> None:
    whole, first, second = (TraceDiagnostics(every_n_rollouts=3) for _ in range(3))
    run(whole, FakeTrainer(tmp_path / "a"), 4)
    trainer = FakeTrainer(tmp_path / "b")
    run(first, trainer, 2)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run(second, trainer, 2)
    assert second.state_dict() == whole.state_dict()
    assert trainer.pictures() == [6]


def test_a_resumed_run_that_was_over_draws_nothing(tmp_path: Path) -> None:
    first, second = TraceDiagnostics(every_n_rollouts=2), TraceDiagnostics(every_n_rollouts=2)
    run(first, FakeTrainer(tmp_path / "a"), 2)
    second.load_state_dict(first.state_dict())
    trainer = FakeTrainer(tmp_path / "b")
    second.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert trainer.pictures() == []


def test_curves_of_a_long_run_are_thinned_out(tmp_path: Path) -> None:
    callback = TraceDiagnostics(every_n_rollouts=1000, most_points=4)
    run(callback, FakeTrainer(tmp_path), 13)
    # 5 points become 3 (2 6 10), with 18 there are 5 again (2 6 10 14 18): 2 10 18, then every fourth: 26.
    assert [row["step"] for row in callback.state_dict()["history"]] == [2, 10, 18, 26]
    again = TraceDiagnostics(every_n_rollouts=1000, most_points=4)
    again.load_state_dict(callback.state_dict())
    trainer = FakeTrainer(tmp_path / "b")
    trainer.global_step = 26
    run(again, trainer, 4)
    assert [row["step"] for row in again.state_dict()["history"]] == [2, 18, 34]


def test_the_picture_shows_each_curve_and_takes_any_cue() -> None:
    cues = ["$x^", "_y", *CUES]
    rows = completion_rows(ROLLOUT, cues, "substring", 0.5)
    history = [{"step": float(step), "reward": 0.1 * step, **summary(rows, cues)} for step in range(5)]
    picture = curves(history, cues)
    assert picture.shape == (380, 1300, 3)
    higher = curves([row | {"reward": 1.0} for row in history], cues)
    longer = curves([row | {"length_correct": 15.0} for row in history], cues)
    doubtful = curves([row | {"aha/wait": 0.7} for row in history], cues)
    changed = [
        [bool((part != before).any()) for part, before in zip(halves(other), halves(picture), strict=True)]
        for other in (higher, longer, doubtful)
    ]
    assert changed == [[True, False, False], [False, True, False], [False, False, True]]


def halves(picture: Any) -> list[Any]:
    """The parts of a picture in which its three panels lie."""
    return [picture[:, :420], picture[:, 450:850], picture[:, 890:]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_rollouts": 0}, "every_n_rollouts must be at least 1, got 0"),
        ({"most_points": 1}, "most_points must be at least 2, got 1"),
        ({"correct_from": 0.0}, r"correct_from must lie in \(0, 1\], got 0"),
        ({"cues": []}, "cues must not be empty"),
        ({"cues": [""]}, "a cue must not be empty"),
        ({"matching": "fuzzy"}, "matching must be substring or words, got 'fuzzy'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TraceDiagnostics(**options)


class Scripted(LightningModule):
    """Gives the outputs of a script, one a batch, and takes one optimiser step for each."""

    def __init__(self, script: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.script = script

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> list[int]:
        return list(range(len(self.script)))

    def training_step(self, batch: int, batch_idx: int) -> Any:
        self.optimizers().step()  # type: ignore[union-attr]
        self.log("reward/mean", float(batch))
        return dict(self.script[batch_idx])


def test_a_trainers_log_holds_no_number_of_an_earlier_rollout(tmp_path: Path) -> None:
    right, wrong = ({"rollout": (group((FORMED, value, tokens)),)} for value, tokens in ((1.0, 10), (0.0, 20)))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=CSVLogger(tmp_path, name="", version="v"),
        callbacks=[TraceDiagnostics()],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Scripted([right, wrong, {}, wrong, right]))
    with (tmp_path / "v" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["trace/length_mean"]]
    names = ("length_mean", "length_correct", "length_wrong", "aha_correct", "aha_wrong")
    assert [(row["step"], *(row[f"trace/{name}"] for name in names)) for row in rows] == [
        ("1", "10.0", "10.0", "", "1.0", ""),
        ("2", "20.0", "", "20.0", "", "1.0"),
        ("4", "20.0", "", "20.0", "", "1.0"),
        ("5", "10.0", "10.0", "", "1.0", ""),
    ]


def train(strategy: str = "auto", devices: int = 1, steps: int = -1, resume: str = "", save: str = "") -> Any:
    """A run of the real module; returns the curves and what was logged."""
    seed_everything(1, verbose=False)
    callback = TraceDiagnostics()
    noting = Noting()
    trainer = quiet_trainer(strategy=strategy, devices=devices, max_steps=steps, callbacks=[callback], logger=noting)
    trainer.fit(make_module("grpo"), PlacedData("grpo"), ckpt_path=resume or None, weights_only=False)
    if save:
        trainer.save_checkpoint(save)
    return {"history": callback.state_dict()["history"], "logged": noting.logged, "steps": noting.steps}


def test_two_ranks_say_what_one_says() -> None:
    alone = train()
    first, second = run_ranks("unit.callbacks.test_trace_diagnostics:train", strategy="ddp", devices=2)
    assert [row["step"] for row in alone["history"]] == [2, 4, 6]
    # Four samples of four rows a rollout: `so` 0 to 3 times, then `it is`, the number.
    assert alone["history"][0]["thinking_words"] == 4.5
    assert alone["history"][0]["well_formed"] == 1.0
    for ranks in (first, second):
        for row, expected in zip(ranks["history"], alone["history"], strict=True):
            assert row == pytest.approx(expected, rel=1e-12)
    assert alone["steps"] == first["steps"] == [2, 4, 6]
    for logged, expected in zip(first["logged"], alone["logged"], strict=True):
        assert logged == pytest.approx(expected)
    assert second["logged"] == []


def test_the_checkpoint_of_a_real_run_carries_the_curves(tmp_path: Path) -> None:
    train(steps=4, save=str(tmp_path / "two.ckpt"))
    assert train(resume=str(tmp_path / "two.ckpt"))["history"] == train()["history"]
