from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from lit_vlaa.rewards.errors import UnparsableTruthError
from lit_vlaa.rewards.expressions import ExpressionError
from lit_vlaa.rewards.math import Plan, conclude, plan, score
from lit_vlaa.rewards.syntax import parse_expression
from lit_vlaa.rewards.workers import MathPool

SOLUTION = (
    "Step 1: Substitute the point (pi/10, 5) into the function:  5 = a * sin(-5 * (pi/10)).\n"
    "Step 5: Substitute the value of a back into the original function: y = -5 * sin(-5 * x).\n\n"
    "†Answer: y = -5 * sin(-5 * x)."
)


@pytest.fixture(scope="module")
def pool() -> Iterator[MathPool]:
    pool = MathPool(workers=1, timeout_s=8.0)
    yield pool
    pool.close()


RIGHT = [
    ("y = -5 * sin(-5 * x)", SOLUTION),
    (r"\[\boxed{y = -5 \sin(-5x)}\]", SOLUTION),
    (r"y = 5\sin(5x)", SOLUTION),
    (r"f(x) = -5\sin(-5x)", SOLUTION),
    ("The equation is $y = -5\\sin(-5x)$.", SOLUTION),
    ("y=|x+9|", "y = abs(x + 9)"),
    (r"y = \left|x+9\right|", "y=|x+9|"),
    ("4√2", r"4\sqrt{2}"),
    (r"\frac{\sqrt{3}}{3}", "√3/3"),
    ("1/3", "0.333333"),
    (r"1\frac{1}{2}", "3/2"),
    ("5 m", "500 cm"),
    ("5", "5 cm"),
    (r"25\text{ cm}^2", "25 square cm"),
    ("50%", "0.5"),
    ("50%", "50"),
    (r"30^\circ", "30"),
    ("-5", "a = -5"),
    ("x = 4", r"\[\boxed{4}\]"),
    ("x = 1 or x = 2", "x = 2, x = 1"),
    ("x = ±2", "x = 2 or x = -2"),
    ("(1, 2)", "(1,2)"),
    ("x > 3", "3 < x"),
    ("1 < x < 2", "2 > x > 1"),
    ("-6x + 2y - 26 = 0", "3x - y + 13 = 0"),
    ("y = 3x + 13", "3x - y + 13 = 0"),
    ("xy = 1", "y = 1/x"),
    ("x = y/2", "y = 2x"),
    ("y = log_2(x)", "y = log2(x)"),
    ("y = -3 * x**2 + 2", "y = -3x^{2} + 2"),
    ("y = 2\\sqrt{x}", "y = sqrt(4*x)"),
    ("1,234", "1234"),
    ("(-∞, 3]", r"(-\infty, 3]"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ("AB = 5", "5"),
    ("$5$", "5"),
    ("2x/2", "x"),
    ("1.5e3", "1500"),
]

WRONG = [
    # What Math-Verify alone gets wrong on program syntax, unwrapped equations, units and small numbers.
    ("y = -5 * cos(-5 * x)", SOLUTION),
    ("y = -5 * sin(-4 * x)", SOLUTION),
    ("-5", SOLUTION),
    ("y = |x - 9|", "y = abs(x + 9)"),
    ("5 cm", "5 m"),
    (r"\frac{1}{10^9}", r"\frac{1}{10^8}"),
    ("0.0000002", "0.0000001"),
    ("3x + 4y + 14 = 0", "3x - y + 13 = 0"),
    (r"$4\sqrt(2)$", "$4$"),
    ("4√3", r"4\sqrt{2}"),
    (r"\boxed{3} or \boxed{4}", "3"),
    (r"\boxed{3} and \boxed{4}", "4"),
    # Other wrong, malformed and hostile answers.
    ("5x = 5", "5"),
    ("b = -5", "a = -5"),
    ("(2, 1)", "(1, 2)"),
    ("[1, 2)", "[1, 2]"),
    ("1, 2, 3", "1, 2"),
    ("3", "3, 4"),
    ("x < 3", "x > 3"),
    ("x >= 3", "x > 3"),
    ("0.33", "1/3"),
    ("5 cm^2", "5 cm"),
    ("5m", "5"),
    ("0.05", "50%"),
    ("0 = 0", "y = 2x"),
    ("y = y", "y = 2x"),
    ("x = x + 1", "y = y + 2"),
    ("1/0", "5"),
    ("hello world", "5"),
    ("= = =", "5"),
    ("9^9^9^9", "4"),
    ("(10^9)!", "4"),
    ("9" * 3000, "4"),
    ("(" * 2000 + "4" + ")" * 2000, "4"),
    ("4+" * 1500 + "4", "4"),
    ("x" * 5000, "4"),
    ("__import__('os').system('true')", "4"),
    (r"\begin{pmatrix}1\\3\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
]


@pytest.mark.parametrize(("answer", "truth"), RIGHT)
def test_equal_as_mathematics(pool: MathPool, answer: str, truth: str) -> None:
    assert score(answer, truth, pool=pool) == (1.0, "ok")


@pytest.mark.parametrize(("answer", "truth"), WRONG)
def test_not_equal(pool: MathPool, answer: str, truth: str) -> None:
    assert score(answer, truth, pool=pool) == (0.0, "ok")


@pytest.mark.parametrize(("answer", "truth"), [case for case in WRONG if "pmatrix" not in case[0]])
def test_wrong_answers_are_refuted_without_a_worker(answer: str, truth: str) -> None:
    assert plan(answer, truth) == Plan(possible=False)


def test_the_same_text_needs_no_worker() -> None:
    assert plan("y = 2 * x", "y = 2*x") == Plan(possible=True)


@pytest.mark.parametrize("truth", ["", "  ", "$$", "word " * 400])
def test_unreadable_truth_is_no_verdict(truth: str) -> None:
    with pytest.raises(UnparsableTruthError, match="math truth"):
        plan("5", truth)


def test_conclusion_prefers_a_verdict_over_failures() -> None:
    open_plan = Plan(possible=True, pairs=(("a", "b"), ("c", "d")))
    assert conclude(open_plan, ["equal", "equal"]) == (1.0, "ok")
    assert conclude(open_plan, ["timeout", "different"]) == (0.0, "ok")
    assert conclude(open_plan, ["equal", "timeout"]) == (0.0, "timeout")
    assert conclude(open_plan, ["error", "equal"]) == (0.0, "verifier_error")
    assert conclude(open_plan, ["unparsable_gt", "error"]) == (0.0, "unparsable_gt")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 * 4", 14),
        ("-2^2", -4),
        ("2^3^2", 512),
        ("1/2*4", 2),
        (r"\frac12", 0.5),
        (r"\sqrt[3]{8}", 2),
        ("|3 - 5| * 2", 4),
        ("2|1-3|", 4),
        (r"\sin^2 1 + \cos^2 1", 1),
        (r"\sin 30°", 0.5),
        ("log_2(8)", 3),
        ("log10(1000)", 3),
        ("5!", 120),
        ("(-8)^(1/3)", -2),
        (r"\sin^{-1}(1)", 1.5707963267948966),
    ],
)
def test_grammar(text: str, value: float) -> None:
    found, error = parse_expression(text).at({})
    assert abs(found - value) < 1e-12
    assert error < 1e-7  # the arcsine is steep at 1


@pytest.mark.parametrize("text", ["", "1 2", "((", "hello", "2 +", r"\int x", "x_{a+b}", "[1", "|x"])
def test_outside_the_grammar(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse_expression(text)


def test_no_garbage_raises_or_takes_long() -> None:
    rng = random.Random(7)
    pieces = [
        *"0123456789xyabce()[]{}|+-*/^=<>.,_!%$\\√±°† \n\x00",
        r"\frac",
        r"\sqrt",
        "sin",
        "log_",
        r"\boxed{",
        "Answer:",
        r"\left",
        r"\(",
        r"\[",
        "is",
        "cm",
        "𝟛",
        "²",
        "\ud800",
        r"\begin{pmatrix}",
    ]
    start = time.perf_counter()
    for _ in range(1500):
        plan("".join(rng.choices(pieces, k=rng.randint(1, 40))), "y = 2x + 1")
    for piece in pieces:
        plan((piece * 4000)[:4000], "y = 2x + 1")
    assert time.perf_counter() - start < 10
