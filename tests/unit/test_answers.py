from __future__ import annotations

import time

import pytest

from lit_vlaa.answers import ascii_digits, bare, boxed, extract_answer, spelled_numbers, unstyled


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
    ],
)
def test_extract_answer(response: str, expected: str | None) -> None:
    assert extract_answer(response) == expected


@pytest.mark.parametrize("piece", ["<answer>", "</answer>", "<think>", "<", "<answer>x", "\\boxed{", "{", "$", "one "])
def test_hostile_repetition_stays_linear(piece: str) -> None:
    text = piece * 40_000
    start = time.perf_counter()
    for function in (extract_answer, boxed, unstyled, bare, ascii_digits, spelled_numbers):
        function(text)
    assert time.perf_counter() - start < 3


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
    ],
)
def test_spelled_numbers(text: str, values: list[int]) -> None:
    assert [value for _, _, value in spelled_numbers(text)] == values
