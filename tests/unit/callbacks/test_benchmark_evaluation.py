"""When benchmarks are evaluated, on which rows, where the numbers go, and that training does not notice."""

from __future__ import annotations

import csv
import gc
import inspect
import json
import os
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import BenchmarkEvaluation, Preemption
from callbacks.benchmarks import JSONLBenchmark
from callbacks.benchmarks.interface import EvalRecord, Score
from callbacks.benchmarks.published import PUBLISHED
from datamodules import NoRows
from helpers.benchmark_files import picture, write_benchmark
from helpers.evaluated import CountingJudge, OtherBenchmark, ToyBenchmark, answered, verdicts
from helpers.modules import EvaluatedData, InMemoryData, fit, make_module, quiet_trainer
from helpers.resumable import PlacedData
from lit_vlaa.checks import PreemptedExit, UsageError
from lit_vlaa.generation import CachedGenerator
from lit_vlaa.policy import PolicyModule

KINDS = pytest.mark.parametrize("kind", ["sft", "grpo"])


def evaluation(folder: Path, **options: Any) -> BenchmarkEvaluation:
    defaults: dict[str, Any] = {
        "custom": [ToyBenchmark()],
        "max_new_tokens": 6,
        "batch_size": 4,
        "dirpath": str(folder),
    }
    return BenchmarkEvaluation(**defaults | options)


def evaluate(folder: Path, module: PolicyModule | None = None, verb: str = "test", **options: Any) -> dict[str, Any]:
    """Evaluates a model by `test`; returns the evaluation's row of the summary."""
    trainer = quiet_trainer(callbacks=[evaluation(folder, **options)])
    getattr(trainer, verb)(module or make_module("sft"), NoRows(), verbose=False)
    row: dict[str, Any] = json.loads((folder / "summary.json").read_text())[verb]
    return row


def numbers(row: dict[str, Any], benchmark: str = "toy") -> dict[str, float]:
    found: dict[str, float] = row["benchmarks"][benchmark]["numbers"]
    return found


def files(folder: Path, benchmark: str = "toy") -> list[str]:
    return sorted(path.name for path in (folder / benchmark).glob("*.jsonl"))


@pytest.mark.parametrize("verb", ["test", "validate"])
@KINDS
def test_a_checkpoint_alone_is_evaluated_in_full(kind: str, verb: str, tmp_path: Path) -> None:
    module = make_module(kind, **({"kl": {"coefficient": 0.0}} if kind == "grpo" else {}), generator=CachedGenerator())
    trainer = quiet_trainer(callbacks=[evaluation(tmp_path)], logger=CSVLogger(tmp_path, name="", version="logs"))
    (returned,) = getattr(trainer, verb)(module, NoRows(), verbose=False)
    row = json.loads((tmp_path / "summary.json").read_text())[verb]
    rows = verdicts(tmp_path, verb)
    assert [line["id"] for line in rows] == [f"row{n}" for n in range(10)]
    assert row["scope"] == "full"
    # A pair counts when both of its rows are right.
    hits = [line["hit"] is True for line in rows]
    pairs = 100 * sum(a and b for a, b in zip(hits[::2], hits[1::2], strict=True)) / 5
    assert row["benchmarks"]["toy"]["headline"] == numbers(row)["pairs"] == pairs
    assert numbers(row)["score"] == 100 * sum(hits) / 10
    assert numbers(row)["undecided_rate"] == 100 * sum(line["hit"] is None for line in rows) / 10
    assert numbers(row)["truncated_rate"] == 100 * sum(line["finish"] == "length" for line in rows) / 10
    assert numbers(row)["tokens"] == sum(line["tokens"] for line in rows) / 10
    assert returned["eval/toy"] == pytest.approx(pairs)
    # Lightning prints what it returns; the rest is in the logs.
    assert returned.keys() == {"eval/toy", "eval/toy_stderr", "eval/average"}
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        assert {float(line["eval/toy/n"]) for line in csv.DictReader(file) if line["eval/toy/n"]} == {10}
    assert (tmp_path / f"{verb}.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("kind", "every", "options", "expected"),
    [
        ("sft", 2, {"at_start": True}, ["step_0", "step_2"]),
        ("sft", 1, {"at_end": True}, ["final", "step_1", "step_2", "step_3"]),
        # Two steps a batch: the first ends of batches at or past 3 and 6.
        ("grpo", 3, {}, ["step_4", "step_6"]),
        ("grpo", None, {"at_end": True}, ["final"]),
    ],
)
def test_when_it_is_time(
    kind: str, every: int | None, options: dict[str, bool], expected: list[str], tmp_path: Path
) -> None:
    callback = evaluation(tmp_path, every_n_steps=every, subset=4, **options)
    fit(make_module(kind), EvaluatedData(kind), callbacks=[callback], val_check_interval=1)
    assert files(tmp_path) == [f"{name}.jsonl" for name in expected]
    summary = json.loads((tmp_path / "summary.json").read_text())
    for label, row in summary.items():
        assert row["scope"] == ("full" if label == "final" else "subset")
        assert numbers(row)["n"] == (10 if label == "final" else 4)
        assert label in {"final", f"step_{row['step']}"}


def random_state() -> list[Any]:
    return [torch.rand(3).tolist(), __import__("random").random(), __import__("numpy").random.rand()]


class DrawingBenchmark(ToyBenchmark):
    """Draws random numbers where it can."""

    def score(self, record: EvalRecord, prediction: str, judge: Any) -> Score:
        random_state()
        return super().score(record, prediction, judge)


@KINDS
def test_training_is_the_same_with_evaluation_in_between(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"generator": CachedGenerator(), "seed": 3} if kind == "grpo" else {}
    callback = evaluation(tmp_path, custom=[DrawingBenchmark()], every_n_steps=1, at_start=True, at_end=True)
    alone = fit(make_module(kind, **options), InMemoryData(kind))
    after = random_state()
    module = make_module(kind, **options)
    watched = fit(module, InMemoryData(kind), callbacks=[callback])
    assert random_state() == after
    assert len(files(tmp_path)) >= 4
    assert watched == alone
    assert module.backbone.training


def test_gradients_stay(tmp_path: Path) -> None:
    class Watch(Callback):
        def on_train_start(self, _: Trainer, pl_module: LightningModule) -> None:
            for number, parameter in enumerate(pl_module.parameters()):
                parameter.grad = torch.full_like(parameter, float(number))

    class After(Callback):
        def on_train_start(self, _: Trainer, pl_module: LightningModule) -> None:
            for number, parameter in enumerate(pl_module.parameters()):
                assert parameter.grad is not None
                assert parameter.grad.eq(number).all()
            pl_module.zero_grad()

    callbacks = [Watch(), evaluation(tmp_path, at_start=True), After()]
    fit(make_module("sft"), InMemoryData("sft"), callbacks=callbacks)
    assert files(tmp_path) == ["step_0.jsonl"]


class LevelBenchmark(OtherBenchmark):
    """Gives scores that were laid down in advance.

    Args:
        levels: One for each evaluation.
    """

    def __init__(self, levels: Sequence[float]) -> None:
        super().__init__(rows=2)
        self.levels = list(levels)

    def aggregate(self, records: Sequence[EvalRecord], scores: Sequence[Score]) -> dict[str, float]:
        return {**super().aggregate(records, scores), "score": self.levels.pop(0)}


@pytest.mark.parametrize(("levels", "best"), [([1.0, 3.0, 2.0], 2), ([9.0, 3.0, 2.0], 1), ([1.0, 2.0, 3.0], 3)])
def test_the_best_checkpoint_is_kept(levels: list[float], best: int, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(
        dirpath=tmp_path / "best", filename="{step}", monitor="eval/other", mode="max", every_n_train_steps=1
    )
    # The checkpoint's place in the list does not matter.
    callbacks = [checkpoint, evaluation(tmp_path, custom=[LevelBenchmark(levels)], every_n_steps=1)]
    fit(make_module("sft"), InMemoryData("sft"), callbacks=callbacks, enable_checkpointing=True)
    assert [path.name for path in (tmp_path / "best").iterdir()] == [f"step={best}.ckpt"]
    assert checkpoint.best_model_score == max(levels)


@pytest.mark.parametrize(
    ("options", "every", "message"),
    [
        ({"every_n_steps": 2}, {"every_n_train_steps": 3}, "set every_n_train_steps and every_n_steps alike"),
        ({"every_n_steps": 2}, {}, "set every_n_train_steps and every_n_steps alike"),
        ({"at_end": True}, {"every_n_train_steps": 3}, "evaluates every None"),
        ({"every_n_steps": 2, "monitor": "eval/tyo"}, {"every_n_train_steps": 2}, "evaluated are average, toy"),
    ],
)
def test_a_checkpoint_by_score_that_would_meet_none_is_refused(
    options: dict[str, Any], every: dict[str, Any], message: str, tmp_path: Path
) -> None:
    monitor = options.pop("monitor", "eval/toy")
    checkpoint = ModelCheckpoint(dirpath=tmp_path, monitor=monitor, mode="max", **every)
    with pytest.raises(ValueError, match=message):
        fit(
            make_module("sft"),
            InMemoryData("sft"),
            callbacks=[evaluation(tmp_path, **options), checkpoint],
            enable_checkpointing=True,
        )


@pytest.mark.parametrize(("every", "refused"), [(2, False), (4, False), (1, True), (3, True)])
def test_evaluations_that_fall_beside_a_batchs_end_are_refused_with_a_checkpoint_by_score(
    every: int, refused: bool, tmp_path: Path
) -> None:
    def run(*checkpoints: ModelCheckpoint) -> None:
        callbacks = [evaluation(tmp_path, every_n_steps=every, subset=2), *checkpoints]
        # Two optimiser steps a batch.
        fit(make_module("grpo"), InMemoryData("grpo"), callbacks=callbacks, enable_checkpointing=True)

    checkpoint = ModelCheckpoint(dirpath=tmp_path / "best", monitor="eval/toy", mode="max", every_n_train_steps=every)
    if refused:
        with pytest.raises(ValueError, match=rf"2 steps, .* every {every} steps fall beside .* a multiple of 2"):
            run(checkpoint)
        run(ModelCheckpoint(dirpath=tmp_path / "best", monitor="reward", every_n_train_steps=every))
    else:
        run(checkpoint)
        assert checkpoint.best_model_score is not None


def test_numbers_go_to_the_loggers_at_their_step(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, name="", version="v"), CSVLogger(tmp_path, name="", version="v")]
    callback = evaluation(
        tmp_path,
        every_n_steps=2,
        at_start=True,
        at_end=True,
        custom=[ToyBenchmark(), OtherBenchmark()],
        published="VLAA-Thinker-3B",
    )
    # Lightning itself would log nothing in a run this short.
    fit(make_module("sft"), InMemoryData("sft"), callbacks=[callback], logger=loggers, log_every_n_steps=50)
    events = EventAccumulator(str(tmp_path / "v")).Reload()
    for name in ("eval/toy", "eval/toy_stderr", "eval/toy/undecided_rate", "eval/other", "eval/average"):
        assert [event.step for event in events.Scalars(name)] == [0, 2, 3], name
    summary = json.loads((tmp_path / "summary.json").read_text())
    expected = [summary[label]["benchmarks"]["toy"]["headline"] for label in ("step_0", "step_2", "final")]
    assert [event.value for event in events.Scalars("eval/toy")] == pytest.approx(expected)
    assert [event.step for event in events.Images("eval/chart")] == [0, 2, 3]
    tables = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("eval/table/text_summary")]
    assert ["| base |" in table for table in tables] == [False, True, False]
    assert all("VLAA-Thinker-3B (paper)" in table and "| Toy * |" in table for table in tables)
    assert "eval/average" in (tmp_path / "v" / "metrics.csv").read_text()


def test_a_base_row_of_other_rows_does_not_stand_beside(tmp_path: Path) -> None:
    evaluate(tmp_path / "base", custom=[OtherBenchmark()])
    logger = TensorBoardLogger(tmp_path, name="", version="v")
    callback = evaluation(tmp_path, custom=[OtherBenchmark(rows=6)], base=str(tmp_path / "base" / "summary.json"))
    with pytest.warns(UserWarning, match=r"base row of .*summary\.json is no measure of other: n is 10\.0, here 6\.0"):
        quiet_trainer(callbacks=[callback], logger=logger).test(make_module("sft"), NoRows(), verbose=False)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "v")).Reload()
    assert b"base" not in events.Tensors("eval/table/text_summary")[0].tensor_proto.string_val[0]


def test_the_base_models_row_stands_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = evaluate(tmp_path / "base", custom=[OtherBenchmark()])
    logger = TensorBoardLogger(tmp_path, name="", version="v")
    monkeypatch.setenv("HOME", str(tmp_path))
    callback = evaluation(tmp_path, custom=[OtherBenchmark(), ToyBenchmark()], base="~/base/summary.json")
    quiet_trainer(callbacks=[callback], logger=logger).test(make_module("sft"), NoRows(), verbose=False)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "v")).Reload()
    table = events.Tensors("eval/table/text_summary")[0].tensor_proto.string_val[0].decode()
    row = next(line for line in table.splitlines() if line.startswith("| Other")).split("|")
    assert float(row[4]) == pytest.approx(base["benchmarks"]["other"]["headline"], abs=0.05)


def count_answers(module: PolicyModule) -> list[int]:
    """Notes how many prompts each call of `complete` puts to the module."""
    calls: list[int] = []
    original = module.complete

    def counted(prompts: Any, **options: Any) -> Any:
        calls.append(len(prompts))
        return original(prompts, **options)

    module.complete = counted  # type: ignore[method-assign]
    return calls


def test_no_answer_is_asked_for_twice(tmp_path: Path) -> None:
    first = make_module("sft")
    asked = count_answers(first)
    before = evaluate(tmp_path, first)
    assert asked == [4, 4, 2]
    again = make_module("sft")
    asked = count_answers(again)
    assert evaluate(tmp_path, again) == before
    assert evaluate(tmp_path, again, custom=[ToyBenchmark(rows=12)])["scope"] == "full"
    assert asked == [2], "two new rows"


def test_answers_of_the_subset_serve_the_whole(tmp_path: Path) -> None:
    module = make_module("sft", optim={"lr": 1e-12, "vision_lr": 1e-12, "merger_lr": 1e-12, "min_lr": 0.0})
    asked = count_answers(module)
    fit(module, InMemoryData("sft"), callbacks=[evaluation(tmp_path, at_start=True, subset=4)])
    evaluate(tmp_path, make_module("sft"))
    assert asked == [4]
    assert sum(map(len, answered(tmp_path).values())) == 10


def test_a_judge_given_later_scores_the_same_answers(tmp_path: Path) -> None:
    before = evaluate(tmp_path)
    without = verdicts(tmp_path)
    module, judge = make_module("sft"), CountingJudge()
    asked = count_answers(module)
    after = evaluate(tmp_path, module, judge=judge)
    assert not asked
    assert len(judge.asked) == sum(line["hit"] is None for line in without) > 0
    assert numbers(before)["undecided_rate"] > numbers(after)["undecided_rate"] == 0
    assert not before["benchmarks"]["toy"]["comparable"]
    assert after["benchmarks"]["toy"]["comparable"]


OTHER_PROMPTS: dict[str, dict[str, Any]] = {
    "weights": {"optim": {}},
    "max_new_tokens": {"max_new_tokens": 7},
    "system_prompt": {"system_prompt": "Speak."},
    "max_pixels": {"backbone": {"max_pixels": 56 * 56}},
    "attention": {"backbone": {"attention": "eager"}},
    "generator": {"generator": CachedGenerator(max_rows=2)},
}


@pytest.mark.parametrize("change", OTHER_PROMPTS)
def test_what_an_answer_depends_on_makes_it_a_new_one(change: str, tmp_path: Path) -> None:
    evaluate(tmp_path)
    chosen = {key: value for key, value in OTHER_PROMPTS[change].items() if key in {"backbone", "generator"}}
    module = make_module("sft", **chosen)
    module.configure_model()
    if change == "weights":
        with torch.no_grad():
            next(module.backbone.language_model.parameters()).add_(0.01)
    asked = count_answers(module)
    options = {key: value for key, value in OTHER_PROMPTS[change].items() if key not in {"optim", *chosen}}
    evaluate(tmp_path, module, **options)
    assert sum(asked) == 10
    assert len({name.split("/")[0] for name in answered(tmp_path)}) == 2


def test_answers_are_greedy_whatever_training_samples_with(tmp_path: Path) -> None:
    evaluate(tmp_path / "a", make_module("sft", sampling={"temperature": 0.0, "max_new_tokens": 3}))
    evaluate(tmp_path / "b", make_module("sft", sampling={"temperature": 1.5, "max_new_tokens": 9}, seed=7))
    assert verdicts(tmp_path / "a") == verdicts(tmp_path / "b")
    assert {line["tokens"] for line in verdicts(tmp_path / "a") if line["finish"] == "length"} == {6}


def ids(folder: Path, name: str = "step_0", benchmark: str = "toy", **options: Any) -> list[str]:
    """Rows that an evaluation ahead of the first step takes."""
    callback = evaluation(folder, at_start=True, **options)
    fit(make_module("sft"), InMemoryData("sft"), callbacks=[callback], limit_train_batches=1)
    return [line["id"] for line in verdicts(folder, name, benchmark)]


def test_subsets_keep_groups_and_depend_on_size_and_seed(tmp_path: Path) -> None:
    four = ids(tmp_path / "a", subset=4)
    assert len(four) == 4
    assert {int(name[3:]) // 2 for name in four} == {int(name[3:]) // 2 for name in four[::2]}
    assert ids(tmp_path / "b", subset={"toy": 4}) == four
    assert len(ids(tmp_path / "c", subset=6)) == 6
    assert len(ids(tmp_path / "d")) == 10, "a benchmark that is no one of the six: 100 rows, or all"
    assert {tuple(ids(tmp_path / f"seed{n}", subset=4, subset_seed=n)) for n in range(4)} > {tuple(four)}


def test_system_prompt_of_the_data_module(tmp_path: Path) -> None:
    def folder_name(path: Path, data: Any, **options: Any) -> str:
        quiet_trainer(callbacks=[evaluation(path, **options)]).test(make_module("sft"), data, verbose=False)
        (name,) = {name.split("/")[0] for name in answered(path)}
        return name

    plain = folder_name(tmp_path / "a", NoRows())
    other = folder_name(tmp_path / "b", NoRows(system_prompt="Speak."))
    assert plain != other
    assert folder_name(tmp_path / "c", NoRows(), system_prompt="Speak.") == other
    assert folder_name(tmp_path / "d", NoRows(system_prompt="Speak."), system_prompt="") not in {plain, other}


def test_batch_size_bounds_a_call(tmp_path: Path) -> None:
    module = make_module("sft")
    asked = count_answers(module)
    evaluate(tmp_path, module, batch_size=3)
    assert asked == [3, 3, 3, 1]


def test_results_lie_below_the_root_by_default(tmp_path: Path) -> None:
    callback = evaluation(tmp_path, dirpath=None)
    trainer = quiet_trainer(callbacks=[callback], default_root_dir=tmp_path / "root")
    trainer.test(make_module("sft"), NoRows(), verbose=False)
    assert (tmp_path / "root" / "benchmarks" / "toy" / "test.jsonl").is_file()


def test_benchmarks_by_name_with_folder_and_profile(tmp_path: Path) -> None:
    write_benchmark(tmp_path, "mathvista")
    with pytest.warns(UserWarning, match="MD5"):
        row = evaluate(tmp_path / "out", custom=None, benchmarks=["mathvista"], data_dir=str(tmp_path), profile="fixed")
    assert numbers(row, "mathvista")["n"] == 6
    assert row["benchmarks"]["mathvista"]["profile"] == "fixed"


class TwiceBenchmark(ToyBenchmark):
    """Gives one row twice."""

    def load(self, data_dir: Path | None) -> list[EvalRecord]:
        return [*super().load(data_dir), *super().load(data_dir)[3:4]]


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        (TwiceBenchmark(), r"Toy: 2 rows have the id 'row3'; `load` of TwiceBenchmark must give each row"),
        (ToyBenchmark(rows=0), r"Toy: `load` of ToyBenchmark gives no rows"),
    ],
    ids=["twice", "none"],
)
def test_rows_that_a_benchmark_loads_itself_are_checked(benchmark: ToyBenchmark, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path, custom=[benchmark])
    assert not list(tmp_path.iterdir())


class TaciturnBenchmark(ToyBenchmark):
    """Gives its score alone, by a name of its own."""

    def aggregate(self, records: Sequence[EvalRecord], scores: Sequence[Score]) -> dict[str, float]:
        return {"right": super().aggregate(records, scores)["score"]}


def test_numbers_that_a_benchmark_leaves_out_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`aggregate` of TaciturnBenchmark gives no n, pairs, stderr, undecided_rate"):
        evaluate(tmp_path, custom=[TaciturnBenchmark()])


def test_answers_to_an_image_that_changed_are_asked_for_again(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "1.png")
    lines = [{"question": "How many?", "answer": number, "image": "1.png"} for number in (1, 2)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"question": "1 + 1?", "answer": 2}])))
    module = make_module("sft")
    asked = count_answers(module)
    for shown in (1, 1, 2):
        picture(shown).save(tmp_path / "1.png")
        evaluate(tmp_path / "out", module, custom=[JSONLBenchmark(path=tmp_path / "mine.jsonl")])
    assert asked == [3, 2], "only the rows with the image, and only when it is another one"


def test_a_missing_file_is_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"MathVista.*tsv"):
        evaluate(tmp_path, custom=None, benchmarks=["mathvista"], data_dir=str(tmp_path))


def test_a_judge_that_cannot_work_is_found_out_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9 does not answer"):
        evaluate(tmp_path, judge=CountingJudge(refuses=True))
    assert not (tmp_path / "toy").exists()


def test_a_judge_that_dies_is_counted(tmp_path: Path) -> None:
    judge = CountingJudge(dead=True)
    with pytest.warns(UserWarning, match=r"Toy: the judge did not answer (\d+) of \1 calls"):
        row = evaluate(tmp_path, judge=judge)
    assert numbers(row)["undecided_rate"] == 100 * len(judge.asked) / 10 > 0
    found = row["benchmarks"]["toy"]
    assert found["comparable"] is False
    assert found["caveat"] == f"the judge did not answer {len(judge.asked)} of {len(judge.asked)} calls"


class RecordingBenchmark(ToyBenchmark):
    """Keeps what it is to sum up."""

    def aggregate(self, records: Sequence[EvalRecord], scores: Sequence[Score]) -> dict[str, float]:
        self.scores = list(scores)
        return super().aggregate(records, scores)


@pytest.mark.parametrize("again", [False, True])
def test_a_benchmark_sums_up_the_scores_that_it_gave(again: bool, tmp_path: Path) -> None:
    benchmark, judge = RecordingBenchmark(), CountingJudge()
    for _ in range(1 + again):
        evaluate(tmp_path, custom=[benchmark], judge=judge)
    lines = verdicts(tmp_path)
    given = [Score(line["hit"], line["extracted"], line["method"], line["judge_calls"]) for line in lines]
    assert benchmark.scores == given
    assert {score.method for score in given} == {"rule", "judge"}
    assert any(score.extracted for score in given)


def test_broken_rows_are_counted_and_left_out_with_their_groups(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"Toy: 2 row\(s\) could not .* 4 are left out. toy\.tsv:2: the image is broken"
    ):
        row = evaluate(tmp_path, custom=[ToyBenchmark(rows=7, broken=[1, 4])])
    # Rows 0 and 1 are a pair, 4 and 5 another; row 6 has no other half.
    assert [line["id"] for line in verdicts(tmp_path)] == ["row2", "row3", "row6"]
    assert (numbers(row)["failed"], numbers(row)["n"]) == (2, 3)
    assert sorted(name for names in answered(tmp_path).values() for name in names) == [
        f"row{n}" for n in (0, 2, 3, 5, 6)
    ]


NOTHING = (
    r"Toy: none of the 4 row\(s\) could be put to the model.* toy\.tsv:2: the image is broken; "
    r"toy\.tsv:3: the image is broken\. Fetch the data again, or leave toy out"
)


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_a_benchmark_without_a_row_that_works_is_an_error(verb: str, tmp_path: Path) -> None:
    broken = ToyBenchmark(rows=4, broken=[1, 2])
    with pytest.raises(ValueError, match=NOTHING):
        evaluate(tmp_path / "alone", verb=verb, custom=[broken])
    assert not (tmp_path / "alone" / "summary.json").exists()
    with pytest.raises(ValueError, match=NOTHING):
        evaluate(tmp_path, verb=verb, custom=[broken, OtherBenchmark()])
    row = json.loads((tmp_path / "summary.json").read_text())[verb]
    assert row["benchmarks"].keys() == {"other"}, "what the others came to is not lost"


def test_a_benchmark_without_a_row_that_works_is_left_out_while_training(tmp_path: Path) -> None:
    callback = evaluation(
        tmp_path, custom=[ToyBenchmark(rows=4, broken=[1, 2]), OtherBenchmark()], every_n_steps=2, at_end=True
    )
    logger = CSVLogger(tmp_path, name="", version="logs")
    with pytest.warns(UserWarning, match=rf"{NOTHING}. It is left out of eval/average"):
        fit(make_module("sft"), InMemoryData("sft"), callbacks=[callback], logger=logger)
    for row in json.loads((tmp_path / "summary.json").read_text()).values():
        assert row["average"] == row["benchmarks"]["other"]["headline"]
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        names = next(csv.reader(file))
    assert "eval/other" in names
    assert not [name for name in names if name.startswith("eval/toy")]


def test_nothing_is_logged_where_no_benchmark_works(tmp_path: Path) -> None:
    callback = evaluation(tmp_path, custom=[ToyBenchmark(rows=4, broken=[1, 2])], every_n_steps=2)
    with pytest.warns(UserWarning, match=NOTHING):
        fit(make_module("sft"), InMemoryData("sft"), callbacks=[callback])
    assert not (tmp_path / "summary.json").exists()


def test_scoring_that_fails_is_told_and_undecided(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"scoring failed for 10 row\(s\), undecided now.*no verdict on hostile text"):
        row = evaluate(tmp_path, custom=[ToyBenchmark(raises=True)])
    assert numbers(row)["undecided_rate"] == 100


class TellingBenchmark(OtherBenchmark):
    """Sends SIGTERM once its second evaluation is done, unless it has before."""

    sent = 0

    def aggregate(self, records: Sequence[EvalRecord], scores: Sequence[Score]) -> dict[str, float]:
        type(self).sent += 1
        if type(self).sent == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().aggregate(records, scores)


def test_a_run_told_to_stop_amid_an_evaluation_goes_on_with_it(tmp_path: Path) -> None:
    def run(folder: Path, custom: list[Any], ckpt_path: Path | None = None) -> PolicyModule:
        seed_everything(1, verbose=False)
        module = make_module("sft")
        callback = evaluation(folder / "out", custom=custom, every_n_steps=1)
        trainer = quiet_trainer(callbacks=[Preemption(), callback], default_root_dir=folder)
        trainer.fit(module, PlacedData("sft"), ckpt_path=ckpt_path)
        return module

    straight = run(tmp_path / "straight", [OtherBenchmark(), ToyBenchmark()])
    stopped = tmp_path / "stopped"
    with pytest.raises(PreemptedExit):
        run(stopped, [TellingBenchmark(), ToyBenchmark()])
    assert files(stopped / "out", "toy") == ["step_1.jsonl"], "it stopped between two benchmarks of the second"
    assert files(stopped / "out", "other") == ["step_1.jsonl", "step_2.jsonl"]
    resumed = run(stopped, [OtherBenchmark(), ToyBenchmark()], stopped / "checkpoints" / "preempted.ckpt")
    for name, value in straight.backbone.state_dict().items():
        assert torch.equal(value, resumed.backbone.state_dict()[name]), name
    for step in (1, 2, 3):
        for benchmark in ("toy", "other"):
            label = f"step_{step}"
            rows = verdicts(tmp_path / "straight" / "out", label, benchmark)
            assert verdicts(stopped / "out", label, benchmark) == rows
    for benchmark in ("toy", "other"):
        names = [name for own in answered(stopped / "out", benchmark).values() for name in own]
        assert len(names) == 30, "ten rows, three times, none twice"


def live_tensors() -> tuple[int, int]:
    """How many tensors there are, and the bytes that they take."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of objects that do not like to be looked at
        found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return len(found), sum(tensor.numel() * tensor.element_size() for tensor in found)


@KINDS
def test_an_evaluation_leaves_no_memory_behind(kind: str, tmp_path: Path) -> None:
    class Count(Callback):
        def __init__(self) -> None:
            self.found: list[tuple[int, int]] = []

        def on_train_batch_end(self, *_: Any) -> None:
            self.found.append(live_tensors())

    before, after = Count(), Count()
    options: dict[str, Any] = {"generator": CachedGenerator()} if kind == "grpo" else {}
    callbacks = [before, evaluation(tmp_path, every_n_steps=1, judge=CountingJudge()), after]
    fit(make_module(kind, **options), InMemoryData(kind), callbacks=callbacks)
    assert len(answered(tmp_path)) == 3
    # The first evaluation leaves what Lightning logs by: a few numbers.
    assert after.found[1:] == before.found[1:]
    assert after.found[0][1] - before.found[0][1] < 1000


def test_prediction_needs_no_benchmark(tmp_path: Path) -> None:
    callback = evaluation(tmp_path, custom=None, benchmarks=["mathvista"], data_dir=str(tmp_path))
    callback.setup(quiet_trainer(), make_module("sft"), "predict")


def test_another_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="LightningModule cannot answer prompts"):
        evaluation(tmp_path).setup(quiet_trainer(), LightningModule(), "test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"custom": None}, "no benchmark is named"),
        ({"benchmarks": ["mathvitsa"]}, "did you mean 'mathvista'"),
        ({"benchmarks": ["mathvista", "mathvista"]}, "each name once"),
        ({"custom": [ToyBenchmark(), ToyBenchmark(rows=3)]}, "each name once"),
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"subset": 0}, "subset of toy must be at least 1"),
        ({"subset": {"toy": 0}}, "subset of toy must be at least 1"),
        ({"subset": {"mathvista": 5}}, "subset names mathvista; known are toy"),
        ({"published": "GPT"}, "none of Qwen2.5-VL-3B"),
        ({"base": "nowhere.json"}, "base nowhere.json is no summary.json"),
        ({"profile": "new", "benchmarks": ["mathvista"]}, "profile must be"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        evaluation(tmp_path, **options)


@pytest.mark.parametrize("name", ["average", "../up", "a b", ""])
def test_names_that_would_lead_elsewhere(name: str, tmp_path: Path) -> None:
    class Named(ToyBenchmark):
        pass

    Named.name = name
    with pytest.raises(ValueError, match="cannot be a benchmark's name"):
        evaluation(tmp_path, custom=[Named()])


def test_the_papers_rows_have_names() -> None:
    assert "VLAA-Thinker-3B" in PUBLISHED


def test_no_option_is_left_untested() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    for name in inspect.signature(BenchmarkEvaluation).parameters:
        assert f"{name}=" in text or f'"{name}"' in text, name
