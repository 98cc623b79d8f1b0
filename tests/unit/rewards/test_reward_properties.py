"""What holds for every answer of a kind, on examples that hypothesis makes up; the same ones in every run."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers.fuzz_grammar import response
from lit_vlaa.answers import extract_answer
from lit_vlaa.rewards import digit, iou, math, mcq
from lit_vlaa.rewards.config import RewardConfig
from lit_vlaa.rewards.mixed import MixedReward
from lit_vlaa.rewards.open_ended import escape_template_tokens, score
from lit_vlaa.rewards.scorers import LexicalScorer
from lit_vlaa.types import Kind, RewardRequest, RewardResult

many = settings(max_examples=200)
VERBATIM = {"open_ended": 0.9592377960216338}
"""What a copy of the truth earns where that is not 1: 1 - exp(-(20 - 4) * 0.2)."""
OPTIONS = ("red", "blue and green", "27 deg", "it decreases", r"\frac{1}{2}", "None of the above")
QUESTION = "Which?\n" + "\n".join(f"{letter}: {text}" for letter, text in zip("ABCDEF", OPTIONS, strict=True))


@pytest.fixture(scope="module")
def reward() -> Iterator[MixedReward]:
    reward = MixedReward(RewardConfig(math_workers=1))
    yield reward
    reward.close()


@st.composite
def boxes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    x1, y1 = draw(st.integers(0, 998)), draw(st.integers(0, 998))
    return x1, y1, draw(st.integers(x1 + 1, 999)), draw(st.integers(y1 + 1, 999))


def _box_text(box: tuple[int, int, int, int]) -> str:
    return f"[{', '.join(str(value / 1000) for value in box)}]"


VOCABULARY = ["red", "bus", "stop", "corner", "a", "the", "of", "two", "man", "holds", "green", "umbrella"]
words = st.lists(st.sampled_from(VOCABULARY), min_size=3, max_size=12)
polynomials = st.tuples(st.integers(1, 9), st.integers(2, 9), st.integers(1, 9)).map(
    lambda c: f"{c[0]} * x^{c[1]} + {c[2]}"
)
TRUTHS: dict[Kind, st.SearchStrategy[str]] = {
    "digit": st.integers(-(10**12), 10**12).map(str) | st.integers(-999, 999).map(lambda n: f"{n / 4}"),
    "mcq": st.sampled_from("ABCDEF"),
    "math": polynomials | st.integers(-999, 999).map(str),
    "iou": boxes().map(_box_text),
    "open_ended": words.map(" ".join),
}
KIND_AND_TRUTH = st.sampled_from(sorted(TRUTHS)).flatmap(lambda kind: st.tuples(st.just(kind), TRUTHS[kind]))
BLANKS = st.text(" \n\t\r\u00a0\u2003", max_size=5)


def request(kind: Kind, answer: str, truth: str) -> RewardRequest:
    return RewardRequest(f"<think>t</think><answer>{answer}</answer>", kind, truth, QUESTION if kind == "mcq" else "")


def judge(reward: MixedReward, kind: Kind, answer: str, truth: str) -> RewardResult:
    (result,) = reward([request(kind, answer, truth)])
    return result


@st.composite
def hostile(draw: st.DrawFn, kind: Kind) -> str:
    return response(random.Random(draw(st.integers(0, 2**32))), kind)


@many
@given(KIND_AND_TRUTH)
def test_the_truth_itself_earns_everything(reward: MixedReward, case: tuple[Kind, str]) -> None:
    kind, truth = case
    result = judge(reward, kind, truth, truth)
    assert result.status == "ok"
    assert result.value == pytest.approx(VERBATIM.get(kind, 1.0))


@many
@given(KIND_AND_TRUTH, st.data())
def test_another_truth_earns_less(reward: MixedReward, case: tuple[Kind, str], data: st.DataObject) -> None:
    kind, truth = case
    other = data.draw(TRUTHS[kind].filter(lambda text: text != truth))
    if kind == "open_ended":
        assume(sorted(other.split()) != sorted(truth.split()))
    assume(kind != "digit" or float(other) != float(truth))
    result = judge(reward, kind, other, truth)
    assert result.value < VERBATIM.get(kind, 1.0) - 1e-9
    assert kind in ("iou", "open_ended") or result.value == 0


@many
@given(KIND_AND_TRUTH, BLANKS, BLANKS)
def test_blanks_around_an_answer_do_not_count(
    reward: MixedReward, case: tuple[Kind, str], left: str, right: str
) -> None:
    kind, truth = case
    assert judge(reward, kind, left + truth + right, truth).value == judge(reward, kind, truth, truth).value


@many
@given(KIND_AND_TRUTH.filter(lambda case: case[0] != "open_ended"))
def test_a_box_around_an_answer_does_not_count(reward: MixedReward, case: tuple[Kind, str]) -> None:
    kind, truth = case
    assert judge(reward, kind, rf"\boxed{{{truth}}}", truth).value == 1


@many
@given(
    st.sampled_from(["digit", "mcq", "iou", "open_ended"]).flatmap(
        lambda kind: st.tuples(st.just(kind), TRUTHS[kind], hostile(kind))
    )
)
def test_hostile_answers_get_a_verdict_in_range_twice_the_same(
    reward: MixedReward, case: tuple[Kind, str, str]
) -> None:
    kind, truth, text = case
    asked = RewardRequest(text, kind, truth, QUESTION)
    (first,) = reward([asked])
    (second,) = MixedReward(RewardConfig(math_workers=1))([asked])
    assert first == second
    assert 0 <= first.value <= 1
    assert first.judged


@many
@given(hostile("math"), TRUTHS["math"])
def test_the_math_front_end_decides_twice_the_same(text: str, truth: str) -> None:
    answer = extract_answer(text) or ""
    assert math.plan(answer, truth) == math.plan(answer, truth)


@many
@given(KIND_AND_TRUTH, st.text(max_size=60), st.text(max_size=60))
def test_only_the_answer_block_counts(reward: MixedReward, case: tuple[Kind, str], before: str, after: str) -> None:
    kind, truth = case
    assume("<" not in before + after)
    asked = request(kind, truth, truth)
    around = replace(asked, response=f"<think>{before}</think>{before}<answer>{truth}</answer>{after}")
    assert reward([around]) == reward([asked])


@many
@given(hostile("digit"))
def test_a_digit_answer_is_right_for_one_number_at_most(text: str) -> None:
    answer = extract_answer(text) or ""
    truths = [*map(str, range(-3, 13)), "1200", "3.5", "1000000"]
    assert sum(digit.score(answer, truth) for truth in truths) <= 1


@many
@given(hostile("mcq"))
def test_an_mcq_answer_is_right_for_one_letter_at_most(text: str) -> None:
    answer = extract_answer(text) or ""
    assert sum(mcq.score(answer, letter, question=QUESTION) for letter in "ABCDEF") <= 1


@many
@given(
    st.sampled_from("ABCDEF"),
    st.sampled_from(["{}", "({})", "{}.", "{})", "**{}**", "Answer: {}", "the answer is {}.", "option {}"]),
    st.booleans(),
)
def test_the_case_of_a_letter_does_not_count(letter: str, form: str, lower: bool) -> None:
    assert mcq.chosen_option(form.format(letter.lower() if lower else letter), QUESTION) == letter


@many
@given(st.sampled_from("ABCDEF"), st.sampled_from(["{}", "{}: {}", "({}) {}", "{}. {}", "Answer: {}) {}", "{} - {}"]))
def test_an_option_with_its_text_is_that_option(letter: str, form: str) -> None:
    text = OPTIONS[ord(letter) - ord("A")]
    assert mcq.chosen_option(form.format(letter, text) if form != "{}" else text, QUESTION) == letter


@many
@given(
    st.lists(st.sampled_from("ABCDEF"), min_size=2, max_size=6, unique=True),
    st.sampled_from([", ", " or ", " and ", "\n", " ", "/", ") ", "; "]),
)
def test_a_list_of_letters_is_no_option(letters: list[str], joint: str) -> None:
    assert mcq.chosen_option(joint.join(letters), QUESTION) is None
    assert mcq.chosen_option(f"The answer is {joint.join(letters)}", QUESTION) is None


@many
@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(["{}", "{}.0", "{:,}", "+{}", "**{}**", "${}$", "x = {}", "The answer is {}.", "{} objects"]),
)
def test_a_number_in_other_forms_is_that_number(number: int, form: str) -> None:
    assume(number >= 0 or form != "+{}")
    assert digit.score(form.format(number), str(number)) == 1
    eastern = form.format(number).translate(str.maketrans(string.digits, "".join(chr(0x0660 + n) for n in range(10))))
    assert digit.score(eastern, str(number)) == 1


@many
@given(
    st.lists(st.integers(0, 99), min_size=2, max_size=8, unique=True),
    st.sampled_from([", ", " or ", " and ", "\n", " ", "; ", "|"]),
)
def test_a_list_of_numbers_is_no_number(numbers: list[int], joint: str) -> None:
    assert digit.final_number(joint.join(map(str, numbers))) is None


@many
@given(boxes(), boxes())
def test_iou_equals_exact_areas(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> None:
    columns = len(set(range(a[0], a[2])) & set(range(b[0], b[2])))
    rows = len(set(range(a[1], a[3])) & set(range(b[1], b[3])))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    expected = columns * rows / (sum(areas) - columns * rows)
    assert iou.intersection_over_union(a, b) == iou.intersection_over_union(b, a) == pytest.approx(expected, rel=1e-12)
    assert iou.score(_box_text(a), _box_text(b)) == pytest.approx(expected, abs=1e-9)
    thousandths = f"({a[0]},{a[1]}),({a[2]},{a[3]})"
    assert iou.score(thousandths, _box_text(b), box_space="qwen2_vl") == pytest.approx(expected, abs=1e-9)


@many
@given(boxes(), boxes(), st.integers(-500, 500), st.integers(-500, 500))
def test_iou_does_not_change_when_both_boxes_move(a: iou.Box, b: iou.Box, dx: int, dy: int) -> None:
    moved = [(box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy) for box in (a, b)]
    assert iou.intersection_over_union(moved[0], moved[1]) == iou.intersection_over_union(a, b)


@many
@given(st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 4), st.tuples(*[st.floats()] * 4))
def test_iou_of_any_numbers_is_in_range(a: iou.Box, b: iou.Box) -> None:
    assert 0 <= iou.intersection_over_union(a, b) <= 1


@many
@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(1e-6, 1e6),
    st.floats(0, 1e6),
)
def test_the_open_ended_formula_stays_in_range_and_grows(
    candidate: float, baseline: float, scale: float, more: float
) -> None:
    value = score(candidate, baseline, scale)
    assert 0 <= value <= 1
    assert (value > 0) == (candidate > baseline) or (candidate - baseline) * scale < 1e-300
    assert score(candidate + more, baseline, scale) >= value


@many
@given(hostile("open_ended"))
def test_escaping_twice_is_escaping_once(text: str) -> None:
    escaped = escape_template_tokens(text)
    assert escape_template_tokens(escaped) == escaped
    assert escaped.replace(" ", "") == text.replace(" ", "")


@many
@given(words.map(" ".join), words.map(" ".join))
def test_the_lexical_scorer_rates_a_copy_highest(text: str, truth: str) -> None:
    asked = RewardRequest("", "open_ended", truth)
    value, copy = LexicalScorer()([asked, asked], [text, truth])
    assert value is not None
    assert copy == pytest.approx(20)
    assert value == pytest.approx(20) if text == truth else 0 <= value < 20
