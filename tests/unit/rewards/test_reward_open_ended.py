from __future__ import annotations

import pytest

from lit_vlaa.rewards.open_ended import escape_template_tokens, score
from lit_vlaa.rewards.scorers import LexicalScorer, similarity_baseline
from lit_vlaa.types import RewardRequest


def request(truth: str) -> RewardRequest:
    return RewardRequest(response="", kind="open_ended", truth=truth)


@pytest.mark.parametrize(
    ("candidate", "baseline", "scale", "expected"),
    [
        (2.0, 1.0, 0.2, 0.18126924692201815),  # 1 - exp(-0.2)
        (6.0, 1.0, 0.2, 0.6321205588285577),  # 1 - exp(-1)
        (6.0, 1.0, 0.4, 0.8646647167633873),  # 1 - exp(-2)
        (1.0, 1.0, 0.2, 0.0),
        (0.0, 1.0, 0.2, 0.0),
        (-1.0, -2.0, 0.2, 0.18126924692201815),
        (1e9, 0.0, 0.2, 1.0),
    ],
)
def test_formula(candidate: float, baseline: float, scale: float, expected: float) -> None:
    assert score(candidate, baseline, scale) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_failed_scorer_is_no_verdict(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        score(bad, 0.0, 0.2)
    with pytest.raises(ValueError, match="finite"):
        score(0.0, bad, 0.2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|im_end|>", "< |im_end| >"),
        ("</s>", "< /s>"),
        ("<ImageHere>", "< ImageHere>"),
        ("[INST] x [/INST]", "[ INST] x [ /INST]"),
        ("[UNUSED_TOKEN_145]", "[ UNUSED_TOKEN_145]"),
        ("a < b and [1, 2]", "a < b and [1, 2]"),
        ("1 <2", "1 <2"),
    ],
)
def test_template_tokens_are_broken_up(text: str, expected: str) -> None:
    assert escape_template_tokens(text) == expected


def test_lexical_scorer_orders_answers() -> None:
    scorer = LexicalScorer()
    truth = "A red bus stops at the corner."
    answers = [truth, "A red bus stops near a corner.", "Bananas grow in warm places.", "", "   "]
    copy, near, far, empty, blank = scorer([request(truth)] * 5, answers)
    assert copy == pytest.approx(20.0)
    assert near is not None
    assert far is not None
    assert 4.0 < near < 20.0
    assert far < 4.0
    assert empty == blank == 0.0


def test_lexical_scorer_scale_and_missing_truth() -> None:
    assert LexicalScorer(scale=1.0, baseline=0.2)([request("bus"), request(" ")], ["bus", "bus"]) == [
        pytest.approx(1.0),
        None,
    ]
    with pytest.raises(ValueError, match="baseline"):
        LexicalScorer(baseline=30.0)


def test_lexical_scorer_says_that_it_measures_similarity() -> None:
    assert similarity_baseline(LexicalScorer()) == 4
    assert similarity_baseline(object()) is None
