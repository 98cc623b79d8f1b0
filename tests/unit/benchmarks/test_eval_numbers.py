from __future__ import annotations

import math
from fractions import Fraction

import pytest

from callbacks.benchmarks.arithmetic import evaluate, same_value
from callbacks.benchmarks.numbers import Reading, read_number, read_numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", Fraction(7)),
        ("-7", Fraction(-7)),
        ("+.5", Fraction(1, 2)),
        ("5.", Fraction(5)),
        ("1e3", Fraction(1000)),
        ("1E-2", Fraction(1, 100)),
        ("7/3", Fraction(7, 3)),
        ("1+2*3", Fraction(7)),
        ("(1+2)*3", Fraction(9)),
        ("(1+2)(3)", Fraction(9)),
        ("8-3-2", Fraction(3)),
        ("8/2/2", Fraction(2)),
        ("2^3", Fraction(8)),
        ("2**3", Fraction(8)),
        ("2^{10}", Fraction(1024)),
        ("2^3^2", Fraction(512)),
        ("-2^2", Fraction(-4)),
        ("2**-1", Fraction(1, 2)),
        ("--3", Fraction(3)),
        (r"\frac{7}{3}", Fraction(7, 3)),
        (r"\dfrac{1}{2} + \tfrac12", Fraction(1)),
        (r"\frac{\frac{1}{2}}{3}", Fraction(1, 6)),
        (r"\left( 1 + 2 \right) \times 3", Fraction(9)),
        (r"3 \cdot 4 \div 2", Fraction(6)),
        ("6÷2×5", Fraction(15)),
        ("{8}", Fraction(8)),
    ],
)
def test_arithmetic(text: str, value: Fraction) -> None:
    assert evaluate(text, irrational=False) == value
    assert evaluate(text, irrational=True) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\sqrt{3}", 1.7320508075688772),
        (r"2\sqrt{3}", 3.4641016151377544),
        (r"\sqrt3", 1.7320508075688772),
        ("√12", 3.4641016151377544),
        ("sqrt(16)", 4.0),
        (r"\sqrt[3]{8}", 2.0),
        (r"\frac{\sqrt{2}}{2}", 0.7071067811865476),
        (r"2\pi", 6.283185307179586),
        ("3π/4", 2.356194490192345),
        ("pi", math.pi),
        ("4^{1/2}", 2.0),
        (r"2\frac{1}{2}", 2.5),
        (r"-1\frac{3}{4}", -1.75),
    ],
)
def test_roots_and_pi_are_read_only_on_request(text: str, value: float) -> None:
    assert evaluate(text, irrational=True) == pytest.approx(value, abs=1e-12)
    assert evaluate(text, irrational=False) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "x", "1,000", "1 2", "1+", "*1", "1//2", "1%", "5 cm", "(1", "1)", "(]", "1/0", "0^-1", "0**-1"),
        *("(-8)^{1/3}", r"\sqrt{-1}", r"\sqrt", r"\frac{1}", "nan", "inf", "1e9999", "1_000", "１", "²", "2²"),
        *("9**9**9", "9^9^9^9", "99999^99999", "(10^200)^(10^200)", "2^(1/3)^(10^9)", "7" * 201, "(" * 199 + "1"),
        *("(" * 60 + "1" + ")" * 60, "2^" * 90 + "2", "{" * 100_000, "-" * 100_000 + "1", r"\sqrt" * 40 + "2"),
        *(
            "__import__('os')",
            "[].__class__",
            "1 if 1 else 2",
            "lambda: 1",
            "1;2",
            "1\x002",
            r"2\frac{7}{3}",
            "10.0^400.5",
        ),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_bounded_arithmetic_has_no_value(text: str) -> None:
    assert evaluate(text, irrational=True) is None
    assert evaluate(text, irrational=False) is None


def test_large_whole_numbers_stay_exact() -> None:
    assert not same_value("12345678901234567890", "12345678901234567891")
    assert same_value("2^100", "1267650600228229401496703205376")


@pytest.mark.parametrize(
    ("text", "value", "decimals"),
    [
        ("14", 14, None),
        ("14.0", 14, 1),
        (" 14. ", 14, None),
        ("$14$", 14, None),
        ("**14**", 14, None),
        (r"\boxed{13} or rather \boxed{14}", 14, None),
        ("14 cm", 14, None),
        ("14 cm^2", 14, None),
        ("14 cm²", 14, None),
        (r"14\text{ cm}", 14, None),
        ("14 km/h", 14, None),
        ("14 apples", 14, None),
        ("14%", 14, None),
        (r"14\%", 14, None),
        ("14°", 14, None),
        (r"14^\circ", 14, None),
        (r"14^{\circ}", 14, None),
        ("$14", 14, None),
        ("-$14", -14, None),
        (r"\$1,234.50", Fraction(2469, 2), 2),
        ("1,000", 1000, None),
        ("1{,}000", 1000, None),
        ("1,234,567", 1234567, None),
        ("x = 14", 14, None),
        (r"\angle ABC = 14^\circ", 14, None),
        ("１４", 14, None),
        ("۱۴", 14, None),
        ("−14", -14, None),
        ("7/2", Fraction(7, 2), None),
        (r"\frac{7}{2}", Fraction(7, 2), None),
        ("3.14", Fraction(157, 50), 2),
    ],
)
def test_number_of_an_answer(text: str, value: Fraction, decimals: int | None) -> None:
    assert read_number(text) == Reading(Fraction(value), decimals)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "A",
            "fourteen",
            "5 or 6",
            "5 and",
            "3 million",
            "2 dozen",
            "12,5",
            "1,00",
            "x=y=3",
            "5x",
            "5 < 6",
            "1:30",
        ),
        *("the answer is 14", "1/0", "9**9**9", "1" * 100_000, "$" * 50_000, "\u202e41", "14 to 15", "5 more", "1:30"),
    ],
    ids=lambda text: text[:12],
)
def test_what_is_not_one_number_is_not_read(text: str) -> None:
    assert read_number(text) is None


def test_list_of_an_answer() -> None:
    for text in ("[2007, 2008]", "2007, 2008", "(2007,2008).", r"\boxed{[2007, 2008]}", "$[2007, 2008]$"):
        assert read_numbers(text) == (Reading(Fraction(2007), None), Reading(Fraction(2008), None))
    for text in ("", "2007", "[2007]", "2007 and 2008", "[1, [2]]", "[1, x]", "[" * 1000, "1," * 1000, "\u202e1,2"):
        assert read_numbers(text) is None


def test_which_values_a_decimal_number_can_be() -> None:
    assert Reading(Fraction(7, 20), None).terminates
    assert not Reading(Fraction(7, 3), None).terminates
    assert not Reading(math.pi, None).terminates


def test_rounding() -> None:
    two_places, none = Reading(Fraction("2.33"), 2), Reading(Fraction(2), None)
    assert Reading(Fraction(7, 3), None).rounds_to(two_places)
    assert not Reading(Fraction("2.336"), 3).rounds_to(two_places)
    assert Reading(Fraction("2.4"), 1).rounds_to(none)
    assert not Reading(Fraction(10**400), None).rounds_to(two_places)
    assert not Reading(Fraction(10**400), None).equals(Reading(math.pi, None))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("14", "14.0", True),
        ("7/3", r"\frac{7}{3}", True),
        ("7/3", "2.3333333", True),  # differs by 3.3e-8
        ("7/3", "2.33", False),
        ("0.5", "0.5000009", True),
        ("0.5", "0.500001", False),  # as fractions the two differ by exactly 1e-6
        ("ABC", " abc ", True),
        (r"\sqrt{3}", r"\sqrt{3}", True),
        (r"\sqrt{4}", "2", False),
        (r"\pi", "π", False),
        ("1,000", "1000", False),
        ("", "0", False),
    ],
)
def test_same_value_as_the_reference_has_it(a: str, b: str, same: bool) -> None:
    assert same_value(a, b) is same
    assert same_value(b, a) is same
