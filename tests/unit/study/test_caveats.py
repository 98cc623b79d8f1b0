from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.studies import ARMS, Made, edit_rows, only, write_lines, write_study
from lit_vlaa.study.claims import read_options
from lit_vlaa.study.contrasts import Contrasts
from lit_vlaa.study.findings import as_json, find
from lit_vlaa.study.results import read_study
from lit_vlaa.study.verdicts import Judged, judge

Row = Mapping[str, Any]
Change = Callable[[int, dict[str, Any]], Row]

CUT: dict[str, Any] = {"response": "<think>on and on", "finish": "length", "score": 0.0}
ANSWER = "<think>one, two</think><answer>2</answer>"


def judged(
    folder: Path, arms: Mapping[str, Made], changes: Mapping[str, Change], *, rows: int = 50, options: Any = None
) -> dict[int, Judged]:
    """Judges a study of two seeds of which each row was changed; claims by number."""
    write_study(folder, arms=arms, seeds=(1, 2), rows=rows)
    for arm, change in changes.items():
        for seed in (1, 2):
            path = folder / "jobs" / f"seed{seed}-{arm}-test" / "responses.jsonl"
            found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            write_lines(path, [row | {"kind": "", "source": ""} | change(at, row) for at, row in enumerate(found)])
    chosen = read_options(options)
    return {one.claim.number: one for one in judge(Contrasts(read_study(folder), chosen.sets), chosen)}


def scored(*scores: float) -> Change:
    """Whole responses with these scores, in turn."""
    return lambda at, _: {"response": ANSWER, "score": scores[at % len(scores)], "tokens": 10}


TWO = {"base": ARMS["base"], "rl": ARMS["rl"]}


def test_responses_that_were_cut_off_are_named_with_what_the_others_score(tmp_path: Path) -> None:
    # Every fifth response of rl is cut off, of the other 40 half are right; every other one of the base is.
    change: Change = lambda at, _: CUT if at % 5 == 0 else {"response": ANSWER, "score": float(at % 5 < 3)}  # noqa: E731
    claim = judged(tmp_path / "study", TWO, {"base": scored(0.0, 1.0), "rl": change})[1]
    assert claim.caveats[:1] == (
        (
            "Cut off by the limit of tokens are 20.0% of the responses of rl, 0.0% of the responses of base; without "
            "an answer to judge are 20.0% of the responses of rl, 0.0% of the responses of base. Among the other "
            "responses, chosen after the fact, the score is: rl 0.500, base 0.500."
        ),
    )


def test_form_alone(tmp_path: Path) -> None:
    bare = {"response": "2", "score": 0.0}
    claim = judged(
        tmp_path / "study", TWO, {"base": lambda at, _: bare if at < 10 else scored(1.0)(at, _), "rl": scored(0.0, 1.0)}
    )[1]
    assert claim.caveats[:1] == (
        (
            "Without an answer to judge are 0.0% of the responses of rl, 20.0% of the responses of base. Among the "
            "other responses, chosen after the fact, the score is: rl 0.500, base 1.000."
        ),
    )


def test_shares_that_hardly_differ_are_not_named(tmp_path: Path) -> None:
    cut: Change = lambda at, row: CUT if at == 0 else scored(0.0, 1.0)(at, {**row})  # noqa: E731
    # One of 100 (0.01) and none; one and one of 50 (0.02) are as often cut off as each other.
    few = judged(tmp_path / "few", TWO, {"base": scored(0.0, 1.0), "rl": cut}, rows=100)[1]
    alike = judged(tmp_path / "alike", TWO, {"base": cut, "rl": cut})[1]
    for claim in (few, alike):
        assert not any("cut off" in line.lower() for line in claim.caveats)


def test_nothing_is_said_of_what_is_not_known(tmp_path: Path) -> None:
    change: Change = lambda at, row: {"finish": None, "set": "mathvista"}  # noqa: E731, ARG005
    claim = judged(tmp_path / "study", TWO, {"base": change, "rl": change})[1]
    assert claim.caveats == ()


def test_lengths_of_what_was_cut_off_are_the_limits(tmp_path: Path) -> None:
    cut: Change = lambda at, _: CUT | {"tokens": 80} if at % 10 == 0 else scored(1.0)(at, _)  # noqa: E731
    arms = {"rl": ARMS["rl"], "sft+rl": ARMS["sft+rl"]}
    # Both are cut off alike, and still neither has its own length.
    claim = judged(tmp_path / "study", arms, {"rl": cut, "sft+rl": cut})[4]
    lengths = claim.caveats[1]
    assert lengths.startswith("Cut off by the limit of tokens are 10.0% of the responses of rl, 10.0% of")
    assert "counts with the limit's length, and would be longer" in lengths
    assert lengths.endswith("the mean length is: rl 10.0, sft+rl 10.0.")


def test_doubt_that_is_cut_off(tmp_path: Path) -> None:
    # With a cue: 10 of 25 are cut off, of the others 9 are wrong of 15; without: 15 wrong of 25.
    def change(at: int, _: Row) -> Row:
        number, cue = at // 2, "wait " if at % 2 else ""
        if cue and number < 10:
            return CUT | {"response": "<think>wait"}
        return {"response": cue + ANSWER, "score": float((number - 10 if cue else number) >= (9 if cue else 15))}

    arms = {"sft": ARMS["sft"], "sft+rl": ARMS["sft+rl"]}
    claim = judged(tmp_path / "study", arms, {"sft": change, "sft+rl": change})[6]
    assert claim.found[0].contrast.found.value == pytest.approx(19 / 25 - 15 / 25)
    first = claim.caveats[0]
    assert "40.0% of the responses of sft with a cue, 0.0% of the responses of sft without one" in first
    assert "among the others, chosen after the fact, the error rate with a cue less that without is +0.000" in first
    assert "of sft+rl with a cue" in claim.caveats[1]


def test_doubt_of_which_nothing_else_is_left(tmp_path: Path) -> None:
    change: Change = lambda at, _: CUT | {"response": "wait"} if at % 2 else scored(1.0)(at, _)  # noqa: E731
    arms = {"sft": ARMS["sft"], "sft+rl": ARMS["sft+rl"]}
    claim = judged(tmp_path / "study", arms, {"sft": change, "sft+rl": change})[6]
    assert claim.caveats[0].endswith("Among the other responses there is nothing to compare.")


def test_sizes_of_sft(tmp_path: Path) -> None:
    arms = {f"sft-{size}": only("sft", steps=(f"sft-{size}",)) for size in (1, 2)}
    cut: Change = lambda at, _: CUT if at < 5 else scored(1.0)(at, _)  # noqa: E731
    options = {"sft_rows": {"sft-1": 1, "sft-2": 2}}
    claim = judged(tmp_path / "study", arms, {"sft-1": scored(1.0), "sft-2": cut}, options=options)[8]
    assert "0.0% of the responses of sft-1, 10.0% of the responses of sft-2" in claim.caveats[0]


def add_curve(folder: Path, arm: str, name: str, values: Sequence[float]) -> None:
    """Adds a number to what an arm's RL stage logged."""
    for seed in (1, 2):
        path = folder / "jobs" / f"seed{seed}-{arm}-rl" / "version_0" / "metrics.csv"
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row | {name: value} for row, value in zip(csv.DictReader(file), values, strict=True)]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def test_rollouts_that_were_cut_off(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", arms={"rl": ARMS["rl"], "sft+rl": ARMS["sft+rl"]}, seeds=(1, 2), rows=4)
    # The first four of 40 steps are a tenth.
    add_curve(folder, "sft+rl", "rollout/truncated", [0.5, 0.3, 0.1, 0.1, *[0.0] * 36])
    add_curve(folder, "rl", "rollout/truncated", [0.0] * 40)
    claim = judge(Contrasts(read_study(folder)), read_options(None))[6]
    assert (
        "In the first tenth 25.0% of the rollouts of sft+rl and 0.0% of the rollouts of rl are cut off, which earns "
        "nothing." in claim.caveats
    )
    assert not any("last tenth" in line for line in claim.caveats)


def test_rows_that_are_left_out(tmp_path: Path) -> None:
    change: Change = lambda at, _: {"score": None} if at < 3 else {}  # noqa: E731
    keep: Change = lambda at, _: {}  # noqa: E731, ARG005
    claim = judged(tmp_path / "study", TWO, {"rl": change, "base": keep})[1]
    assert claim.caveats[-1] == "3 of 50 rows have no verdict in some arm and seed; they are left out."
    assert claim.found[0].contrast.found.rows == 47


def test_undecided_and_in_practice_the_same(tmp_path: Path) -> None:
    # The same answers to 400 rows: the interval is that of one odd row in 401, far within 0.02.
    same = judged(tmp_path / "same", TWO, dict.fromkeys(TWO, scored(0.0, 1.0)), rows=400)[1]
    assert same.verdict == "undecided"
    assert same.caveats == ("In practice the same: the interval leaves no room for a difference beyond 0.02.",)
    # Of 20 rows nothing of the sort can be said; the seeds are alike, so that rows are what is uncertain.
    few = judged(tmp_path / "few", TWO, dict.fromkeys(TWO, scored(0.0, 1.0)), rows=20)[1]
    assert few.verdict == "undecided"
    assert few.caveats == (
        "Most of the uncertainty lies between rows: more of them would narrow it, more seeds hardly.",
    )


def test_seeds_that_disagree(tmp_path: Path) -> None:
    arms = {"base": ARMS["base"], "rl": only("rl", right=0.5)}
    folder = write_study(tmp_path / "study", arms=arms, seeds=(1, 2, 3), rows=40)
    for seed, score in ((1, 1.0), (2, 0.9), (3, 0.2)):
        for arm, own in (("base", 0.5), ("rl", score)):
            edit_rows(folder / "jobs" / f"seed{seed}-{arm}-test" / "responses.jsonl", score=own)
    claim = judge(Contrasts(read_study(folder)), read_options(None))[0]
    assert claim.verdict == "undecided"
    assert claim.caveats == (
        "Most of the uncertainty lies between seeds: more of them would narrow it, more rows hardly.",
    )


def test_sure_but_small(tmp_path: Path) -> None:
    # 0.01 higher on every row but those of one in ten, where it is the same.
    claim = judged(tmp_path / "study", TWO, {"base": scored(0.5), "rl": scored(*[0.51] * 9, 0.5)}, rows=100)[1]
    assert claim.verdict == "supported"
    assert claim.caveats == ("The difference is sure, but small in practice: within 0.02.",)


def test_a_claim_that_something_does_not_help(tmp_path: Path) -> None:
    # 2 of 50 rows worse: 0.04 lower with a standard error of 0.028, so that +0.02 is ruled out, and 0 is not.
    arms = {"base": ARMS["base"], "sft": ARMS["sft"]}
    changes = {"base": scored(1.0), "sft": scored(*[0.0], *[1.0] * 24)}
    claims = judged(tmp_path / "study", arms, changes)
    assert claims[2].verdict == "undecided"
    assert claims[2].caveats == (
        "That it helps by 0.02 or more is ruled out, which is all that the paper's own words ask.",
    )
    # Claim 3 says that SFT hurts: that it does not help would not be enough.
    hurts = judged(
        tmp_path / "other",
        {"rl": ARMS["rl"], "sft+rl": ARMS["sft+rl"]},
        {"rl": changes["base"], "sft+rl": changes["sft"]},
    )[3]
    assert hurts.verdict == "undecided"
    assert not any("ruled out" in line for line in hurts.caveats)


def test_caveats_stand_in_the_report(tmp_path: Path) -> None:
    cut: Change = lambda at, _: CUT if at % 5 == 0 else scored(1.0)(at, _)  # noqa: E731
    judged(tmp_path / "study", TWO, {"base": scored(0.0, 1.0), "rl": cut})
    claim = as_json(find(read_study(tmp_path / "study")))["claims"][0]
    assert claim["caveats"][0].startswith("Cut off by the limit of tokens are 20.0% of the responses of rl")
