from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.fuzz import CPU_LIMIT_S
from helpers.fuzz_grammar import response
from lit_vlaa.answers import (
    MAX_ANSWER_CHARS,
    ascii_digits,
    bare,
    boxed,
    extract_answer,
    legible,
    spelled_numbers,
    unstyled,
)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>a</think><answer>3</answer>", "3"),
        ("<think>a</think>\n\n<answer>  3\n</answer>\n", "3"),
        ("<answer>two\nlines</answer>", "two\nlines"),
        ("thinking without an opening tag</think><answer>B</answer>", "B"),
        ("<answer>a < b > c</answer>", "a < b > c"),
        ("<answer></answer>", None),
        ("<answer> \n </answer>", None),
        ("<answer>3", None),
        ("3</answer>", None),
        ("</answer>3<answer>", None),
        ("3", None),
        ("", None),
        ("<answer>3</answer><answer>4</answer>", None),
        ("<answer>3</answer></answer>", None),
        ("<answer><answer>3</answer>", None),
        ("<answer><answer>3</answer></answer>", None),
        ("<think><answer>3</answer></think>", None),
        ("<think><answer>3</answer>", None),
        ("<answer>3</answer></think>", None),
        ("<think>a</think><answer>3</answer><think>b</think>", "3"),
        ("<think>a</think><answer>3</answer></think>", None),
        ("<answer><think>x</think>3</answer>", None),
        ("<think>a</think>b<think>c<answer>3</answer>", None),
        ("<Answer>3</Answer>", None),
        ("<answer >3</answer>", None),
        ("<think>I put <answer> tags</think><answer>3</answer>", None),
        ("<ANSWER>3</ANSWER>", None),
        ("&lt;answer&gt;3&lt;/answer&gt;", None),
        ("＜answer＞3＜/answer＞", None),
        ("<ans\u200bwer>3</answer>", None),
        ("<answer>3</answer", None),
        ("<answer>3<answer/>", None),
        ("<answer>3</answer><answer>", None),
        ("</answer><answer>3</answer>", None),
        ("<answer>\u200b</answer>", None),
        ("<answer>\ufeff \u00a0\u3164</answer>", None),
        ("<answer>\x00</answer>", None),
        ("<answer>\u0301</answer>", None),
        ("<answer>...</answer>", "..."),
        ("<answer>日本</answer>", "日本"),
        ("<answer>\u200b3</answer>", "\u200b3"),
        ("<answer>3</answer> and &lt;answer&gt;4", "3"),
        ("<answer>3</answer> <Answer>4</Answer>", "3"),
        ("<think>a</think><think>b</think><answer>3</answer>", "3"),
        ("<think><think>a</think><answer>3</answer></think>", None),
        ("</think></think><answer>3</answer>", "3"),
        ("<answer>3</answer><think>b</think>", "3"),
        ("<answer>3</think></answer>", None),
    ],
)
def test_extract_answer(response: str, expected: str | None) -> None:
    assert extract_answer(response) == expected


@pytest.mark.parametrize(
    "piece",
    ["<answer>", "</answer>", "<think>", "<", "<answer>x", "\\boxed{", "{", "$", "one ", "\u0301", "\u200b", "𝟛"],
)
def test_hostile_repetition_stays_linear(piece: str) -> None:
    text = piece * 40_000
    start = time.process_time()
    for function in (extract_answer, boxed, unstyled, bare, ascii_digits, spelled_numbers, legible):
        function(text)
    legible(text[:MAX_ANSWER_CHARS])
    assert time.process_time() - start < CPU_LIMIT_S


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{C}", ["C"]),
        (r"\[\boxed{\frac{1}{2}}\]", [r"\frac{1}{2}"]),
        (r"\boxed{1} and \boxed{ 2 }", ["1", "2"]),
        (r"\boxed{\boxed{3}}", [r"\boxed{3}"]),
        (r"\boxed{3", []),
        ("no box", []),
    ],
)
def test_boxed(text: str, expected: list[str]) -> None:
    assert boxed(text) == expected


def test_unstyled_keeps_other_braces() -> None:
    assert unstyled(r"\text{C}") == "C"
    assert unstyled(r"\frac{\mathrm{a}}{2}\text{ cm}") == r"\frac{a}{2} cm"
    assert unstyled(r"\textbf{\text{B}}}") == "B}"


def test_bare_strips_wrappers_but_not_two_spans() -> None:
    assert bare(r" **$x$** ") == "x"
    assert bare(r"\( 3 \)") == "3"
    assert bare("$a$ and $b$") == "$a$ and $b$"
    assert bare("```\n__'x'__\n```") == "x"
    assert bare("'") == "'"


def test_ascii_digits() -> None:
    assert ascii_digits("٣ ３ −4 x²") == "3 3 -4 x²"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("three", [3]),
        ("Twenty-one cats", [21]),
        ("one hundred and five", [105]),
        ("two hundred", [200]),
        ("one, two", [1, 2]),
        ("someone, often, sixth", []),
        ("ninety nine", [99]),
        ("a hundred", [100]),
        ("a dog", []),
        ("one thousand", [1000]),
        ("twenty-one thousand three hundred and five", [21305]),
        ("two million and one", [2_000_001]),
        ("hundred", []),
        ("nine hundred and", [900]),
        ("three.four", [3, 4]),
    ],
)
def test_spelled_numbers(text: str, values: list[int]) -> None:
    assert [value for _, _, value in spelled_numbers(text)] == values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", "3"),
        ("3\u200b", "3"),
        ("1\u200b3", "13"),
        ("\ufeff3\u00ad", "3"),
        ("3\ufe0f\u20e3", "3"),
        ("\u200e3\u200f", "3"),
        ("Ｃ：３．５", "C:3.5"),
        ("𝐀 𝟑", "A 3"),
        ("٣ −4", "3 -4"),
        ("“C” ‘C’", "\"C\" 'C'"),
        ("a\u00a0b\u3000c\u2028d", "a b c\nd"),
        ("a\x00b\x1bc\td\n", "a b c\td\n"),
        ("cafe\u0301", "café"),
        ("3\u0336", "\ufffd"),
        ("A\u0338\u0336B", "\ufffdB"),
        ("4\u20e0", "\ufffd"),
        ("٣\u0336", "\ufffd"),
        ("½ Ⅲ ① А", "½ Ⅲ ① А"),
        ("\u202e31", None),
        ("\u206631\u2069", None),
        ("x" * MAX_ANSWER_CHARS, "x" * MAX_ANSWER_CHARS),
        ("x" * (MAX_ANSWER_CHARS + 1), None),
    ],
)
def test_legible_writes_what_is_seen(text: str, expected: str | None) -> None:
    assert legible(text) == expected


SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
NAMES = (*SMALL.split(), "eighteen", "nineteen")
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def _in_words(number: int) -> str:
    """English words of a number below a million, built the other way round than the reader takes them apart."""
    if number < 20:
        return NAMES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{NAMES[number % 10]}" if number % 10 else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    return f"{_in_words(number // size)} {name}" + (f" {_in_words(number % size)}" if number % size else "")


@given(st.integers(0, 999_999))
def test_number_words(number: int) -> None:
    text = _in_words(number)
    assert spelled_numbers(text) == [(0, len(text), number)]


@given(st.text() | st.integers().map(lambda seed: response(random.Random(seed), "digit")))
def test_text_helpers_keep_their_promises(text: str) -> None:
    seen = legible(text)
    assert seen is None or len(text) <= MAX_ANSWER_CHARS
    if seen is not None:
        assert legible(seen) == seen
        assert len(seen) <= 3 * len(text)
    assert bare(bare(text)) == bare(text)
    assert len(unstyled(text)) <= len(text)
    assert sum(map(len, boxed(text))) <= len(text)
