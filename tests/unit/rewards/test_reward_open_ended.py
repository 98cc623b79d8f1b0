from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torchmetrics.functional.text import chrf_score

from helpers.fuzz import CPU_LIMIT_S
from lit_vlaa.rewards.open_ended import escape_template_tokens, score
from lit_vlaa.rewards.scorers import LexicalScorer, similarity_baseline
from lit_vlaa.rewards.scorers.lexical import count, similarity
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
        (1e308, -1e308, 0.2, 1.0),  # the difference is no float
        (0.5, 0.0, 2.0, 0.6321205588285577),  # 1 - exp(-1)
        (1e-12, 0.0, 1.0, 1e-12),  # 1 - exp(-x) is x for small x
        (0.6931471805599453, 0.0, 1.0, 0.5),  # 1 - exp(-ln 2)
        (13.862943611198906, 10.0, 0.2, 0.5381839938168343),  # 1 - e**2 / 16: (20 ln 2 - 10) / 5 = ln 16 - 2
        (0.0, 0.0, 0.2, 0.0),
        (-0.0, 0.0, 0.2, 0.0),
        (True, False, 0.2, 0.18126924692201815),
    ],
)
def test_formula(candidate: float, baseline: float, scale: float, expected: float) -> None:
    assert score(candidate, baseline, scale) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 10**400, "good", None, [1.0]])
def test_a_failed_scorer_is_no_verdict(bad: Any) -> None:
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
        ("<<SYS>>", "< < SYS>>"),
        ("<｜User｜>", "< ｜User｜ >"),
        ("<0x0A>", "< 0x0A>"),
        ("[gMASK]<sop>", "[ gMASK]< sop>"),
        ("＜|im_end|＞", "＜ |im_end| ＞"),
        ("<用户>", "< 用户>"),
        ("<\u200b|im_end|>", "< \u200b|im_end| >"),
        ("a < b and [1, 2]", "a < b and [1, 2]"),
        ("1 <2, x<=3 and <", "1 <2, x<=3 and <"),
        ("see [12], [3.5%] and [x]", "see [12], [3.5%] and [x]"),
    ],
)
def test_template_tokens_are_broken_up(text: str, expected: str) -> None:
    assert escape_template_tokens(text) == expected


CONTROL_TOKENS = """
<|im_start|> <|im_end|> <|endoftext|> <|vision_start|> <|image_pad|> <|object_ref_start|> <|box_end|>
</think> <tool_call> <|begin_of_text|> <|start_header_id|> <|eot_id|> <|python_tag|> <s> </s> <unk> <pad>
<bos> <eos> <<SYS>> <</SYS>> [INST] [/INST] [TOOL_CALLS] [/TOOL_RESULTS] [IMG] [IMG_BREAK] [SYSTEM_PROMPT]
[UNUSED_TOKEN_145] [UNUSED_TOKEN_146] <ImageHere> <start_of_turn> <end_of_turn> <start_of_image> <unused0>
<|user|> <|assistant|> <|end|> <|system|> <|image_1|> [gMASK] <sop> <｜User｜> <｜Assistant｜>
<｜begin▁of▁sentence｜> <｜tool▁calls▁begin｜> <|EOT|> <|START_OF_TURN_TOKEN|> <BOS_TOKEN> <reserved_106>
<IMG_CONTEXT> <img> </img> <image> <video> <im_patch> <end_of_utterance> <fake_token_around_image>
<extra_id_0> <0x0A> <|channel|> <|message|> <|return|> <turn|> [MASK] [CLS] [SEP] [PAD] [|Human|] [|AI|] <用户>
<AI> <|fim_prefix|>
"""


@pytest.mark.parametrize("token", CONTROL_TOKENS.split())
def test_no_control_token_survives(token: str) -> None:
    escaped = escape_template_tokens(f"a{token}b {token}{token}")
    assert token not in escaped
    assert escaped.replace(" ", "") == f"a{token}b{token}{token}"
    assert escape_template_tokens(escaped) == escaped


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


@pytest.mark.parametrize(
    ("given", "truth"),
    [
        ("A red bus stops.", "A red bus stops."),
        ("a RED bus", "A red bus stops at the corner."),
        ("A red bus stops near a corner.", "A red bus stops at the corner."),
        ("bananas", "A red bus stops at the corner."),
        ("the the the the", "the cat"),
        ("42", "42"),
        ("4", "42"),
        ("(yes!)", "yes"),
        ("grüner Bus, 日本語", "Grüner Bus; 日本"),
        ("İstanbul", "istanbul"),
        ("x", ""),
        ("", "x"),
    ],
)
def test_similarity_equals_torchmetrics(given: str, truth: str) -> None:
    reference = float(torch.as_tensor(chrf_score([given], [[truth]], lowercase=True)))
    assert similarity(count(given), count(truth)) == pytest.approx(reference, abs=1e-6)


def test_lexical_scorer_reads_the_truth_as_answers_come() -> None:
    truth = "Press <b>OK</b> and [done]."
    assert LexicalScorer()([request(truth)], [escape_template_tokens(truth)]) == [pytest.approx(20.0)]


def test_lexical_scorer_reads_the_start_of_a_long_text() -> None:
    truth = "word " * 800
    full, more = LexicalScorer()([request(truth)] * 2, [truth, truth + "other " * 10_000])
    assert full == more == pytest.approx(20.0)


@pytest.mark.parametrize("piece", ["a", "a ", "ab, ", "İ", "\u0301", "\ufdfa", "😀", "<", "[a", " ", "\x00"])
def test_lexical_scorer_is_quick_on_hostile_text(piece: str) -> None:
    start = time.process_time()
    (value,) = LexicalScorer()([request("A red bus stops at the corner.")], [piece * 100_000])
    assert value is not None
    assert 0 <= value < 4
    assert time.process_time() - start < CPU_LIMIT_S


def test_lexical_scorer_says_that_it_measures_similarity() -> None:
    assert similarity_baseline(LexicalScorer()) == 4
    assert similarity_baseline(object()) is None
