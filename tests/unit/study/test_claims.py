from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.studies import ARMS, Made, edit_manifest, edit_rows, only, write_lines, write_study
from lit_vlaa.checks import UsageError
from lit_vlaa.study.claims import CLAIMS, ClaimOptions, read_options
from lit_vlaa.study.config import read as read_study_file
from lit_vlaa.study.contrasts import Contrasts
from lit_vlaa.study.job_files import Curve
from lit_vlaa.study.measures import measure
from lit_vlaa.study.quantities import curve_end, has_cue, slope_weights
from lit_vlaa.study.responses import ScoredResponse
from lit_vlaa.study.results import read_study
from lit_vlaa.study.statistics import holm
from lit_vlaa.study.verdicts import Judged, judge, shown_p

Judge = Callable[..., dict[int, Judged]]


@pytest.fixture
def judged(tmp_path: Path) -> Judge:
    """Writes a study, edits its rows, and judges it; claims by number."""

    def write_and_judge(
        arms: Mapping[str, Made],
        *,
        seeds: Sequence[int] = (1, 2, 3),
        rows: int = 60,
        options: Any = None,
        edits: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[int, Judged]:
        folder = write_study(tmp_path / "study", arms=arms, seeds=seeds, rows=rows)
        for arm, changes in (edits or {}).items():
            for seed in seeds:
                edit_rows(folder / "jobs" / f"seed{seed}-{arm}-test" / "responses.jsonl", **changes)
        chosen = read_options(options)
        return {one.claim.number: one for one in judge(Contrasts(read_study(folder), chosen.sets), chosen)}

    return write_and_judge


def test_ten_claims_with_their_arms() -> None:
    assert [claim.number for claim in CLAIMS] == list(range(1, 11))
    known = {"base", "sft", "rl", "sft+rl", "sft-aha", "sft-plain", "rl-rules", ""}
    assert {name for claim in CLAIMS for part in claim.parts for name in (part.first, part.second)} == known
    signs = {claim.number: tuple(part.sign for part in claim.parts) for claim in CLAIMS}
    expected = {1: (1,), 2: (-1,), 3: (-1,), 4: (-1,), 5: (1, 1), 6: (1, 1), 7: (1, -1), 8: (-1,), 9: (-1,), 10: (1,)}
    assert signs == expected


def test_a_study_like_the_paper(judged: Judge) -> None:
    found = judged(ARMS, rows=120)
    verdicts = {number: one.verdict for number, one in found.items()}
    assert {number for number, verdict in verdicts.items() if verdict == "supported"} == {1, 3, 4, 5, 7}
    assert {number for number, verdict in verdicts.items() if verdict == "not examined"} == {8, 10}
    # One in the claimed way, but not surely so after the correction; one without a real difference, which is doubt's.
    assert {verdicts[2], verdicts[6], verdicts[9]} <= {"undecided", "supported"}
    assert verdicts[9] == "undecided"
    assert "rl scores 0." in found[1].sentence
    assert "over 120 rows and 3 seeds; p < 0.001 after Holm's correction for 8 claims." in found[1].sentence
    assert found[10].sentence == "Not examined: the study has no arm rl-rules."
    assert found[8].sentence == "Not examined: claims.sft_rows of the study names no arms of different sizes."


def test_the_other_way_round_is_contradicted(judged: Judge) -> None:
    arms = {"base": only("base", right=0.9), "rl": only("rl", right=0.1)}
    found = judged(arms)
    assert found[1].verdict == "contradicted"
    assert "rl scores 0." in found[1].sentence
    assert "lower than base" in found[1].sentence


def test_numbers_by_hand(judged: Judge) -> None:
    # With one seed and score 1 against 0 on all rows but one: differences of 19 ones and a zero, mean 0.95, standard
    # error sqrt(0.05 / 20) = 0.05, t with 19 degrees of freedom: 0.95 -+ 2.093 * 0.05.
    arms = {"base": only("base", right=0.0), "rl": only("rl", right=1.0)}
    found = judged(arms, seeds=(1,), rows=20, edits={"base": {"score": 0.0}, "rl": {"score": 1.0}})
    assert found[1].verdict == "supported"
    # All rows say the same: the error is that of one in 21.
    assert (
        "(95% interval +0.900 to +1.100), over 20 rows and 1 seed (the interval covers rows alone)" in found[1].sentence
    )


def test_all_parts_must_hold(judged: Judge) -> None:
    # Cues are more frequent after SFT than in the base, but less than after RL: one part speaks against the claim.
    arms = {"base": only("base", cue=0.0), "sft": only("sft", cue=0.5), "rl": only("rl", cue=1.0)}
    claim = judged(arms)[5]
    assert claim.verdict == "contradicted"
    first, second = (one.contrast.found for one in claim.found)
    assert first.value > 0 > second.value
    assert second.p is not None
    assert claim.p == pytest.approx(2 * second.p)


def test_the_weakest_part_decides(judged: Judge) -> None:
    arms = {"base": only("base", cue=0.0), "sft": only("sft", cue=0.6), "rl": only("rl", cue=0.4)}
    claim = judged(arms)[5]
    first, second = (one.contrast.found for one in claim.found)
    assert first.value > second.value > 0
    assert second.p is not None
    assert first.p is not None
    assert claim.p == second.p > first.p


def test_p_values_are_adjusted_for_all_claims_examined(judged: Judge) -> None:
    found = judged(ARMS)
    tested = [one for one in found.values() if one.p is not None]
    assert len(tested) == 8
    assert [one.adjusted for one in tested] == pytest.approx(holm([one.p for one in tested if one.p is not None]))


def test_a_single_claim_needs_no_correction(judged: Judge) -> None:
    found = judged({"base": ARMS["base"], "rl": ARMS["rl"]})
    assert "Holm" not in found[1].sentence
    assert found[1].p == found[1].adjusted


def test_arms_may_have_other_names(judged: Judge) -> None:
    arms = {"base": ARMS["base"], "grpo": ARMS["rl"]}
    assert judged(arms, options={"arms": {"rl": "grpo"}})[1].verdict == "supported"


def test_curves_of_one_seed_decide_nothing(judged: Judge) -> None:
    arms = {"rl": ARMS["rl"], "sft+rl": ARMS["sft+rl"]}
    claim = judged(arms, seeds=(1,))[7]
    assert claim.verdict == "undecided"
    assert claim.sentence.endswith("over 1 seed. Whether that is chance takes more seeds to tell.")


def test_curves_that_were_not_logged(judged: Judge) -> None:
    arms = {"rl": only("rl", steps=("sft",)), "sft+rl": ARMS["sft+rl"]}
    claim = judged(arms)[7]
    assert claim.sentence == "Not examined: no seed has a training curve of the reward for both sft+rl and rl."


def test_sizes_of_sft(judged: Judge, tmp_path: Path) -> None:
    arms = {
        f"sft-{size}": only("sft", right=right, steps=(f"sft-{size}",))
        for size, right in ((1, 0.9), (2, 0.5), (4, 0.1))
    }
    claim = judged(arms, options={"sft_rows": {"sft-1": 1000, "sft-2": 2000, "sft-4": 4000}})[8]
    assert claim.verdict == "supported"
    scores = [Contrasts(read_study(tmp_path / "study")).mean(arm, "score").found.value for arm in arms]
    # The slope of a line through three points at equal distances is half the difference of the outer two.
    assert claim.found[0].contrast.found.value == pytest.approx((scores[2] - scores[0]) / 2)
    assert "with each doubling of the sft rows the score falls by 0." in claim.sentence.lower()


def test_weights_of_a_slope() -> None:
    assert slope_weights({"a": 1, "b": 2, "c": 4}) == pytest.approx({"a": -0.5, "b": 0.0, "c": 0.5})
    assert slope_weights({"a": 1, "b": 8}) == pytest.approx({"a": -1 / 3, "b": 1 / 3})


def doubting(folder: Path, arm: str, seeds: Sequence[int], right: Mapping[bool, int], of: int) -> None:
    """Gives an arm answers of which `right[cue]` out of every `of` with and without a cue are right."""
    for seed in seeds:
        path = folder / "jobs" / f"seed{seed}-{arm}-test" / "responses.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for place, row in enumerate(rows):
            cue, number = place % 2 == 1, place // 2 % of
            row |= {"response": "wait" if cue else "so", "score": float(number < right[cue]), "kind": "", "source": ""}
        write_lines(path, rows)


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        ({False: 8, True: 2}, "supported"),
        ({False: 2, True: 8}, "contradicted"),
        ({False: 5, True: 5}, "undecided"),
    ],
    ids=["doubters-err", "doubters-are-right", "no-matter"],
)
def test_doubt(tmp_path: Path, right: Mapping[bool, int], verdict: str) -> None:
    arms = {"sft": ARMS["sft"], "sft+rl": ARMS["sft+rl"]}
    folder = write_study(tmp_path / "study", arms=arms, seeds=(1, 2), rows=100)
    for arm in arms:
        doubting(folder, arm, (1, 2), right, 10)
    contrasts = Contrasts(read_study(folder))
    claim = judge(contrasts, read_options(None))[5]
    assert claim.verdict == verdict
    found = claim.found[0].contrast.found
    assert found.value == pytest.approx((right[False] - right[True]) / 10)
    # 50 rows each, p q / 50 of both; Mantel and Haenszel's is a little less exact than that of two free rates.
    if verdict == "undecided":
        assert found.stderr_rows == pytest.approx((0.25 / 50 + 0.25 / 50) ** 0.5, rel=0.01)


def test_few_doubters_who_all_err_are_no_proof(tmp_path: Path) -> None:
    # All 4 with a cue are wrong, and 48 of 56 without: 14% more often, with a variance that would be far too small.
    folder = write_study(tmp_path / "study", arms={"sft": ARMS["sft"]}, seeds=(1,), rows=60)
    path = folder / "jobs" / "seed1-sft-test" / "responses.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for place, row in enumerate(rows):
        row |= {"response": "wait" if place < 4 else "so", "score": float(place >= 52), "kind": "", "source": ""}
    write_lines(path, rows)
    found = Contrasts(read_study(folder)).doubt("sft").found
    assert found.value == pytest.approx(8 / 56)
    # n1 n0 m (N - m) / (N^2 (N - 1)) / (n1 n0 / N)^2 with 4, 56, 52 and 60.
    assert found.stderr_rows == pytest.approx((52 * 8 / (59 * 4 * 56)) ** 0.5)
    assert found.p is not None
    assert found.p > 0.3


def test_doubt_that_never_or_always_occurs(judged: Judge) -> None:
    found = judged({"sft": only("sft", cue=1.0), "sft+rl": ARMS["sft+rl"]})
    assert found[6].sentence == (
        "Not examined: sft has no responses of one kind of which some hold an aha cue and some do not."
    )


def test_arms_that_were_not_evaluated(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", arms={"base": ARMS["base"], "rl": ARMS["rl"]}, seeds=(1, 2), rows=8)
    (folder / "jobs" / "seed1-rl-test" / "done.json").unlink()
    one = judge(Contrasts(read_study(folder)), read_options(None))[0]
    assert "8 rows and 1 seed" in one.sentence
    (folder / "jobs" / "seed2-rl-test" / "done.json").unlink()
    none = judge(Contrasts(read_study(folder)), read_options(None))[0]
    assert none.sentence == "Not examined: arm rl has not been evaluated."
    for job in ("seed1-base-test", "seed2-base-test"):
        (folder / "jobs" / job / "done.json").unlink()
    assert judge(Contrasts(read_study(folder)), read_options(None))[0].verdict == "not examined"


def test_seeds_that_two_arms_do_not_share(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", arms={"base": ARMS["base"], "rl": ARMS["rl"]}, seeds=(1, 2), rows=8)
    for job in ("seed1-rl-test", "seed2-base-test"):
        (folder / "jobs" / job / "done.json").unlink()
    one = judge(Contrasts(read_study(folder)), read_options(None))[0]
    assert one.sentence == "Not examined: no seed of which all of rl, base were evaluated."


def test_options_of_a_study_file() -> None:
    given = {"arms": {"rl": "grpo"}, "sets": "benchmarks", "sft_rows": {"a": 5, "b": 10.0}, "scale": "Small."}
    assert read_options(given) == ClaimOptions({"rl": "grpo"}, "benchmarks", {"a": 5.0, "b": 10.0}, "Small.")
    assert read_options(None) == ClaimOptions({}, None, {}, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "claims must be a mapping"),
        ({"arm": {}}, "claims has no key 'arm'; use arms, sets, sft_rows or scale"),
        ({"arms": {"grpo": "x"}}, "claims.arms has 'grpo', of which no claim speaks; use one of base,"),
        ({"arms": {"rl": 3}}, "claims.arms must map"),
        ({"arms": ["rl"]}, "claims.arms must map"),
        ({"sets": ["test"]}, "claims.sets must be"),
        ({"sft_rows": {"a": 0}}, "claims.sft_rows must map"),
        ({"sft_rows": {"a": True}}, "claims.sft_rows must map"),
        ({"scale": 3}, "claims.scale must be text"),
    ],
    ids=["list", "unknown", "unknown-arm", "arm-number", "arm-list", "sets", "no-rows", "flag", "scale"],
)
def test_options_that_cannot_work(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match="claims") as refused:
        read_options(given)
    assert message in str(refused.value)


def test_options_stand_in_the_study_file(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", arms={"base": ARMS["base"]}, seeds=(1,), rows=4)
    edit_manifest(folder, config={"claims": {"sets": "test"}})
    assert read_options(read_study(folder).config.get("claims")).sets == "test"


def test_a_study_file_with_options_that_cannot_work_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("seeds: [1]\narms: {base: {steps: []}}\nevaluation: {flags: {a: 1}}\nclaims: {arm: x}\n", "utf-8")
    with pytest.raises(UsageError, match=r"study\.yaml: claims has no key 'arm'; use arms, sets, sft_rows or scale"):
        read_study_file(path)


def test_ends_of_a_curve() -> None:
    curve = Curve(tuple(range(20)), tuple(map(float, range(20))))
    assert (curve_end(curve, "start"), curve_end(curve, "end")) == (0.5, 18.5)
    short = Curve((1.0, 2.0), (3.0, 4.0))
    assert (curve_end(short, "start"), curve_end(short, "end")) == (3.0, 4.0)
    with pytest.raises(ValueError, match="end must be start or end"):
        curve_end(short, "middle")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "Wait", "against", "I SHOULD CONFIRM", "no doubt", "recheck\nit"])
def test_cues_are_those_of_the_trace_measures(text: str) -> None:
    row = ScoredResponse(set="test", id="1", response=text)
    assert has_cue(row) is measure(row).aha


def test_p_values_as_people_write_them() -> None:
    assert (shown_p(0.00099), shown_p(0.034), shown_p(1.0)) == ("p < 0.001", "p = 0.034", "p = 1.000")
    # What was found below 0.05 does not look as if it were not.
    assert (shown_p(0.04962), shown_p(0.05), shown_p(0.0494)) == ("p = 0.0496", "p = 0.050", "p = 0.049")
