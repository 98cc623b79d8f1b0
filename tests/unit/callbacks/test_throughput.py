"""Throughput: rates and shares by hand, and in runs what went through the model."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import Throughput
from callbacks.throughput import PEAK, Totals, _Batch, means, peak_by_name, peak_memory, phases_of
from helpers.launch import run_ranks
from helpers.modules import BATCH, BATCHES, EvaluatedData, InMemoryData, make_module, quiet_trainer, training_samples


class Seen(Callback):
    """Keeps what was logged after each batch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self._note(trainer)

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        self._note(trainer)

    def _note(self, trainer: Any) -> None:
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if found:
            self.rows.append(
                {k.removeprefix("throughput/"): v for k, v in found.items() if k.startswith("throughput/")}
            )


class Slow(Callback):
    """Validation takes a third of a second; measures the whole run."""

    def on_train_start(self, *_: Any) -> None:
        self.seconds = -time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.seconds += time.perf_counter()

    def on_validation_batch_start(self, *_: Any) -> None:
        time.sleep(0.11)


def run(kind: str, *, data: Any = None, callback: Throughput | None = None, **options: Any) -> list[dict[str, float]]:
    seen = Seen()
    trainer_options = options.pop("trainer", {})
    trainer = quiet_trainer(callbacks=[callback or Throughput(peak_flops=1e12), seen], **trainer_options)
    trainer.fit(make_module(kind, **options), data or InMemoryData(kind))
    return seen.rows


def totals(strategy: str, devices: int, kind: str) -> list[float]:
    """Tokens, samples and operations of a run, the last from the mean over all its batches."""
    rows = run(kind, trainer={"strategy": strategy, "devices": devices})
    last = rows[-1]
    return [last["total_tokens"], last["total_samples"], last["mfu"] * last["total_seconds"] * devices]


def test_rates_and_shares_by_hand() -> None:
    batches = [
        _Batch(
            Totals(samples=4, tokens=100, rollout_tokens=60, flops=2e12, seconds=2.0), {"generate": 1.0, "update": 0.5}
        ),
        _Batch(Totals(samples=4, tokens=300, rollout_tokens=20, flops=4e12, seconds=2.0), {"generate": 1.0}),
        _Batch(Totals(samples=4, tokens=200, rollout_tokens=90, flops=6e12, seconds=1.0)),
    ]
    assert means(batches, devices=2, peak=3e12) == {
        "samples_per_second": 12 / 5,
        "tokens_per_second": 600 / 5,
        "tflops_per_device": 12 / 5 / 2,
        "mfu": pytest.approx(12e12 / 5 / 2 / 3e12),
        "rollout_tokens_per_second": 80 / 2,
        "share/generate": 2 / 4,
        "share/update": 0.5 / 4,
        "share/rest": 1.5 / 4,
    }
    assert means(batches[2:], devices=1, peak=None).keys() == {
        "samples_per_second",
        "tokens_per_second",
        "tflops_per_device",
    }


def test_phases() -> None:
    logged = {"time/generate": 2.0, "time/update": 1.0, "time/reward": 9.0, "time/step": 3.0, "reward/mean": 1.0}
    assert phases_of(logged, 4.0) == {"generate": 2.0, "update": 1.0}
    assert phases_of(logged, 2.5) == {}  # most of it was another process's
    assert phases_of({"time/step": 1.0}, 2.0) == {"step": 1.0}
    assert phases_of({}, 2.0) == {}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Quadro P600", None),
    ],
)
def test_peaks_by_the_drivers_names(name: str, part: str | None) -> None:
    assert peak_by_name(name) == (None if part is None else PEAK[part])


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_run_counts_its_rows_and_their_tokens(kind: str) -> None:
    rows = run(kind, generator=None, seed=5, sampling={"max_new_tokens": 6}) if kind == "grpo" else run(kind)
    assert len(rows) == BATCHES
    processor: Any = make_module(kind).processor
    items = training_samples()
    lengths = [len(processor.encode(item).input_ids) for item in items]
    assert rows[-1]["total_samples"] == BATCH * BATCHES
    if kind == "sft":
        answers = [len(processor.encode_response(item.record.response or "")) for item in items]
        assert rows[-1]["total_tokens"] == sum(lengths) + sum(answers)
        assert {name for name in rows[-1] if name.startswith("share/")} == {"share/step", "share/rest"}
        assert "rollout_tokens_per_second" not in rows[-1]
    else:
        # Four completions of one to six tokens a prompt.
        assert 4 * sum(lengths) < rows[-1]["total_tokens"] <= 4 * (sum(lengths) + 6 * len(items))
        assert {"share/generate", "share/update", "share/reference"} < rows[-1].keys()
        assert rows[-1]["rollout_tokens_per_second"] > rows[-1]["total_tokens"] / rows[-1]["total_seconds"] / 1e3
    for row in rows:
        assert sum(value for name, value in row.items() if name.startswith("share/")) == pytest.approx(1)
        assert 0 < row["share/rest"] < 1
        assert row["tflops_per_device"] == pytest.approx(row["mfu"], rel=1e-4)  # of a peak of 1e12
        assert 0.05 < row["memory_gib"] < 50
    whole = rows[-1]["total_tokens"] / rows[-1]["total_seconds"]
    assert rows[-1]["tokens_per_second"] == pytest.approx(whole, rel=1e-4)  # three batches fit into the window


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_ranks_add_up(strategy: str) -> None:
    expected = totals("auto", 1, "grpo")
    arguments: dict[str, Any] = {"strategy": strategy, "devices": 2, "kind": "grpo"}
    ranks = run_ranks("unit.callbacks.test_throughput:totals", timeout=180, **arguments)
    assert [rank[:2] for rank in ranks] == [expected[:2]] * 2
    # Operations are added up in float32.
    assert ranks[0][2] == pytest.approx(expected[2], rel=1e-4)


def test_the_window_moves() -> None:
    rows = run("sft", callback=Throughput(window=1))
    seconds = [b["total_seconds"] - a["total_seconds"] for a, b in itertools.pairwise(rows)]
    tokens = [b["total_tokens"] - a["total_tokens"] for a, b in itertools.pairwise(rows)]
    for row, taken, count in zip(rows[1:], seconds, tokens, strict=True):
        assert row["tokens_per_second"] == pytest.approx(count / taken, rel=1e-3)
    assert "mfu" not in rows[0]  # nobody said what the CPU can do


def test_validation_takes_no_time() -> None:
    seen, slow = Seen(), Slow()
    trainer = quiet_trainer(callbacks=[slow, Throughput(), seen], val_check_interval=1)
    trainer.fit(make_module("sft"), EvaluatedData("sft"))
    # After each of three batches, three batches of validation.
    assert seen.rows[-1]["total_seconds"] < slow.seconds - 9 * 0.11
    assert seen.rows[-1]["total_tokens"] == run("sft")[-1]["total_tokens"]


def test_totals_go_on_in_a_resumed_run() -> None:
    callback = Throughput()
    first = run("sft", callback=callback)[-1]
    again = Throughput()
    again.load_state_dict(callback.state_dict())
    second = run("sft", callback=again)[-1]
    assert second["total_tokens"] == 2 * first["total_tokens"]
    assert second["total_seconds"] > first["total_seconds"]


def test_tensorboard_and_the_progress_bar_show_it(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer = quiet_trainer(callbacks=[Throughput(peak_flops=1e12)], logger=logger, log_every_n_steps=1)
    trainer.fit(make_module("sft"), InMemoryData("sft"))
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"throughput/{name}" for name in ("tokens_per_second", "mfu", "memory_gib", "share/step")} <= tags
    assert "tokens/s" not in tags
    assert {"tokens/s", "mfu"} <= trainer.progress_bar_metrics.keys()


def test_the_most_memory_stays() -> None:
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(2**25)  # 128 MiB
    grown = peak_memory(torch.device("cpu"))
    del held
    assert peak_memory(torch.device("cpu")) >= grown >= before


@pytest.mark.parametrize("options", [{"window": 0}, {"peak_flops": 0.0}, {"peak_flops": -1.0}])
def test_settings_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Throughput: "):
        Throughput(**options)
