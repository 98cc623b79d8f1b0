"""What people see of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from callbacks.evaluation.report import (
    Result,
    average,
    chart,
    headlines,
    read_summary,
    scalars,
    table,
    write_summary,
)
from helpers.evaluated import OtherBenchmark, ToyBenchmark

NUMBERS = {"n": 8.0, "failed": 0.0, "truncated_rate": 12.5, "tokens": 40.0, "undecided_rate": 25.0}
RESULTS = [
    Result(ToyBenchmark(), {"score": 60.0, "pairs": 20.0, "stderr": 7.0, **NUMBERS}, judged=False),
    Result(OtherBenchmark(), {"score": 50.0, "pairs": 1.0, "stderr": 3.0, "shade/dark": 40.0, **NUMBERS}, judged=False),
]
OTHERS = {"base": {"toy": 15.0, "other": 45.0}, "paper": {"other": 48.0}}


def test_scalars_have_the_headline_at_the_top() -> None:
    values = scalars(RESULTS)
    assert values["eval/toy"] == values["eval/toy/pairs"] == 20.0
    assert (values["eval/other"], values["eval/other_stderr"]) == (50.0, 3.0)
    assert values["eval/other/shade/dark"] == 40.0
    assert values["eval/average"] == average(RESULTS) == 35.0  # (20 + 50) / 2
    assert "eval/toy/stderr" not in values


def test_the_table_has_all_columns_and_says_what_is_not_comparable() -> None:
    lines = table(RESULTS, OTHERS).splitlines()
    assert lines[0] == ("| benchmark | score | ± | base | paper | rows | undecided % | truncated % | failed rows |")
    assert lines[2] == "| Toy * | 20.0 | 7.0 | 15.0 |  | 8 | 25.0 | 12.5 | 0 |"
    assert lines[3] == "| Other | 50.0 | 3.0 | 45.0 | 48.0 | 8 | 25.0 | 12.5 | 0 |"
    # The paper's row lacks a benchmark, so that its mean over the same ones is unknown.
    assert lines[4] == "| average | 35.0 |  | 30.0 |  |  |  |  |  |"
    assert lines[-1] == "\\* not comparable with the leaderboard: Toy: scored by rules alone: give a judge"
    assert {line.count("|") for line in lines[:5]} == {10}
    assert "comparable" not in table(RESULTS[1:], {})


def test_the_chart_has_a_bar_for_each_number() -> None:
    figure = chart(RESULTS, {**OTHERS, "elsewhere": {"mathvista": 61.0}}, "step 10")
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [20.0, 50.0, 15.0, 45.0, 48.0]
    assert [bar.get_hatch() for bar in axes.patches] == ["//", None, None, None, None]
    middles = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
    # Three series share 0.8 around each benchmark's place; the paper's has no bar at the first.
    assert middles == pytest.approx([-0.8 / 3, 1 - 0.8 / 3, 0.0, 1.0, 1 + 0.8 / 3])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["this model", "base", "paper"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["Toy\n(not comparable)", "Other"]
    # Above the error bars: 20 + 7 and 50 + 3.
    assert [(text.get_text(), text.get_position()[1]) for text in axes.texts[:2]] == [("20", 27.0), ("50", 53.0)]
    assert axes.get_title() == "step 10"


def test_summary_keeps_rows_by_label(tmp_path: Path) -> None:
    path = tmp_path / "new" / "summary.json"
    assert read_summary(path) == {}
    write_summary(path, "step_0", {"scope": "subset"})
    write_summary(path, "test", {"scope": "full"})
    write_summary(path, "step_0", {"scope": "subset", "again": True})
    assert json.loads(path.read_text()) == {
        "step_0": {"scope": "subset", "again": True},
        "test": {"scope": "full"},
    }


@pytest.mark.parametrize("text", ["", "[]", "{", "7"])
def test_what_is_no_summary_is_empty(text: str, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text(text)
    assert read_summary(path) == {}


@pytest.mark.parametrize(
    ("benchmark", "judged", "unanswered", "caveat"),
    [
        (OtherBenchmark(), False, 0, None),
        (ToyBenchmark(), True, 0, None),
        (ToyBenchmark(), False, 0, "scored by rules alone: give a judge"),
        (ToyBenchmark(), True, 3, "the judge did not answer 3 of 17 calls"),
        (OtherBenchmark(), True, 1, "the judge did not answer 1 of 17 calls"),
    ],
    ids=["rules", "judge", "no judge", "silent", "silent beside rules"],
)
def test_a_number_is_comparable_unless_verdicts_are_missing(
    benchmark: ToyBenchmark, judged: bool, unanswered: int, caveat: str | None
) -> None:
    result = Result(benchmark, {**RESULTS[0].numbers}, judged=judged, unanswered=unanswered, asked=17)
    assert (result.caveat, result.comparable) == (caveat, caveat is None)
    assert (f"{benchmark.title}: {caveat}" in table([result], {})) is (caveat is not None)


def entry(scope: str, score: float, **changes: Any) -> dict[str, Any]:
    toy = {"headline": score, "profile": "paper", "metric": "pairs", "numbers": {"n": 8.0}, **changes}
    return {"scope": scope, "benchmarks": {"toy": toy}}


def test_headlines_of_the_first_row_over_the_same_rows() -> None:
    summary = {"step_0": entry("subset", 1.0), "test": entry("full", 2.0), "final": entry("full", 3.0)}
    assert headlines(summary, "subset", RESULTS) == ({"toy": 1.0}, [])
    assert headlines(summary, "full", RESULTS) == ({"toy": 2.0}, [])
    assert headlines({"step_0": entry("subset", 1.0)}, "full", RESULTS) == ({}, [])
    assert headlines(summary, "full", RESULTS[1:]) == ({}, [])
    odd: list[dict[str, Any]] = [{"step_0": None}, {"a": 7}, {"a": {}}, {"a": {"scope": "full"}}]
    broken: list[Any] = [[], {"toy": 7}, {"toy": {}}]
    odd += [{"a": {"scope": "full", "benchmarks": benchmarks}} for benchmarks in broken]
    for content in odd:
        assert headlines(content, "full", RESULTS) == ({}, [])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"profile": "fixed"}, "toy: profile is fixed, here paper"),
        ({"metric": "score"}, "toy: metric is score, here pairs"),
        ({"numbers": {"n": 7.0}}, "toy: n is 7.0, here 8.0"),
        ({"profile": "head", "metric": "score"}, "toy: profile is head, here paper, metric is score, here pairs"),
    ],
    ids=["profile", "metric", "n", "both"],
)
def test_headlines_found_in_another_way_are_left_out(change: dict[str, Any], text: str) -> None:
    assert headlines({"test": entry("full", 2.0, **change)}, "full", RESULTS) == ({}, [text])
