"""Made-up mathematical problems with answers whose verdicts are known from how they were made."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

GROUP_SIZE = 4
SHARES = {"right": 0.4, "wrong": 0.4, "malformed": 0.2}
MALFORMED = (
    "", "I cannot tell from the graph.", "{right} or {wrong}", "not {right}", r"\boxed{{{right}}} \boxed{{{wrong}}}",
    "9^9^9^9", "({right}", r"\frac{{", "it could be either", "?", "{wrong}, so {wrong} or {right}", "x" * 900,
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One answer with the verdict that it deserves."""

    truth: str
    text: str
    right: bool


@dataclass(frozen=True)
class Problem:
    """A truth, other ways to write it, and wrong answers."""

    truth: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]


def wave(rng: random.Random) -> Problem:
    """A sine or cosine with an amplitude and a frequency."""
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    sign = {"sin": "", "cos": "-"}  # sin is odd: two signs cancel
    name = rng.choice(list(sign))
    other = "cos" if name == "sin" else "sin"
    return Problem(
        truth=f"y = -{a} * {name}(-{b} * x)",
        right=(rf"y = {sign[name]}{a}\{name}({b}x)", rf"$f(x) = -{a}\{name}(-{b}x)$", f"{sign[name]}{a}{name}({b}*x)"),
        wrong=(rf"y = -{a}\{other}(-{b}x)", rf"f(x) = -{a}\{name}(-{b + 1}x)", f"y = -{a + 1} * {name}(-{b} * x)"),
    )


def shifted(rng: random.Random) -> Problem:
    """An absolute value."""
    c, k = rng.randint(1, 99), rng.randint(2, 40)
    return Problem(
        truth=f"y = abs({k} * x + {k * c})",
        right=(f"y = |{k}x + {k * c}|", rf"f(x) = {k}\left|x+{c}\right|", rf"y = \lvert -{k}x - {k * c} \rvert"),
        wrong=(f"y = {k}x + {k * c}", f"y = |{k}x - {k * c}|", rf"y = \left|x+{k * c}\right|"),
    )


def parabola(rng: random.Random) -> Problem:
    """A parabola by its vertex."""
    a, h, k = rng.randint(2, 9), rng.randint(1, 20), rng.randint(1, 60)
    return Problem(
        truth=f"y = {a} * (x - {h})**2 + {k}",
        right=(rf"y = {a}x^2 - {2 * a * h}x + {a * h * h + k}", rf"$y = {a}({h}-x)^{{2}}+{k}$"),
        wrong=(f"y = {a}(x + {h})^2 + {k}", f"y = {a}x^2 - {2 * a * h}x + {a * h * h + k + 1}", f"y = (x-{h})^2+{k}"),
    )


def logarithm(rng: random.Random) -> Problem:
    """A logarithm with base 2."""
    a, c = rng.randint(2, 30), rng.randint(1, 60)
    return Problem(
        truth=f"y = {a} * log2(x + {c})",
        right=(rf"y = {a}\log_2(x+{c})", rf"f(x)=\frac{{{a}\ln(x+{c})}}{{\ln 2}}", f"{a} log_2({c} + x)"),
        wrong=(rf"y = {a}\ln(x+{c})", rf"y = {a}\log_2(x)+{c}", rf"y = {a}\log_{{10}}(x+{c})"),
    )


def quotient(rng: random.Random) -> Problem:
    """A hyperbola."""
    a, h, k = rng.randint(2, 30), rng.randint(1, 30), rng.randint(1, 30)
    return Problem(
        truth=f"y = {a} / (x - {h}) + {k}",
        right=(rf"y = \frac{{{a}}}{{x-{h}}}+{k}", rf"y = \frac{{{k}x + {a - k * h}}}{{x - {h}}}".replace("+ -", "- ")),
        wrong=(rf"y = \frac{{{a}}}{{x+{h}}}+{k}", f"y = {a}/x - {h} + {k}", rf"y = \frac{{{a}}}{{x-{h}+{k}}}"),
    )


def growth(rng: random.Random) -> Problem:
    """An exponential function."""
    a, b = rng.randint(2, 40), rng.randint(2, 9)
    return Problem(
        truth=f"y = {a} * exp({b} * x)",
        right=(rf"y = {a}e^{{{b}x}}", rf"f(x) = {a}\left(e^{{x}}\right)^{{{b}}}"),
        wrong=(rf"y = {a}e^{{x}}+{b}", f"y = {a}*{b}^x", rf"y = e^{{{a * b}x}}"),
    )


def fraction(rng: random.Random) -> Problem:
    """A rational number."""
    a, b, k = rng.randint(2, 60), rng.choice([3, 7, 11, 13, 17]), rng.randint(2, 9)
    a += a % b == 0
    return Problem(
        truth=rf"\frac{{{a}}}{{{b}}}",
        right=(f"{a * k}/{b * k}", rf"x = \dfrac{{{a * k}}}{{{b * k}}}", f"{a}/{b}"),
        wrong=(f"{b}/{a}", f"{a / b:.2f}", f"-{a}/{b}", str(a)),
    )


def surd(rng: random.Random) -> Problem:
    """A multiple of a square root."""
    a, b = rng.randint(2, 40), rng.choice([2, 3, 5, 6, 7])
    return Problem(
        truth=rf"\[\boxed{{{a}\sqrt{{{b}}}}}\]",
        right=(rf"\sqrt{{{a * a * b}}}", f"{a}√{b}", rf"\frac{{{a * b}}}{{\sqrt{{{b}}}}}"),
        wrong=(f"{a}√{b + 1}", str(a), rf"\sqrt{{{a * b}}}", f"{a} + √{b}"),
    )


def length(rng: random.Random) -> Problem:
    """A length with its unit."""
    a = rng.randint(2, 90)
    return Problem(
        truth=f"{a} m", right=(f"{100 * a} cm", rf"${a}\text{{ m}}$"), wrong=(f"{a} cm", f"{a} km", f"{a} m^2")
    )


def point(rng: random.Random) -> Problem:
    """A point of the plane."""
    a, b = rng.randint(-40, 40), rng.randint(2, 40)
    b += a == b
    return Problem(
        truth=f"({a}, {b})",
        right=(rf"$\left({a},{b}\right)$", f"x = {a}, y = {b}", rf"({a},\frac{{{2 * b}}}{{2}})"),
        wrong=(f"({b}, {a})", f"({a}, -{b})", f"({a}, {b}, 0)"),
    )


def line(rng: random.Random) -> Problem:
    """A line, solved for y or not."""
    a, b, k = rng.randint(2, 40), rng.randint(1, 90), rng.randint(2, 9)
    return Problem(
        truth=f"{a}x - y + {b} = 0",
        right=(f"y = {a}x + {b}", f"{k * a}x - {k}y + {k * b} = 0", f"${k}y - {k * a}x = {k * b}$"),
        wrong=(f"{a}x + y + {b} = 0", f"y = {a}x - {b}", f"{a}x - {k}y + {b} = 0"),
    )


def circle(rng: random.Random) -> Problem:
    """A circle."""
    a, b, r = rng.randint(1, 12), rng.randint(1, 12), rng.randint(2, 12)
    return Problem(
        truth=f"(x - {a})**2 + (y + {b})**2 = {r * r}",
        right=(
            rf"(x-{a})^{{2}}+(y+{b})^{{2}}={r}^2",
            f"x^2 + y^2 - {2 * a}x + {2 * b}y + {a * a + b * b - r * r} = 0".replace("+ -", "- "),
        ),
        wrong=(f"(x-{a})^2+(y+{b})^2={r}", f"(x+{a})^2+(y-{b})^2={r * r}", f"(x-{a})^2-(y+{b})^2={r * r}"),
    )


FAMILIES: tuple[Callable[[random.Random], Problem], ...] = (
    wave, shifted, parabola, logarithm, quotient, growth, fraction, surd, length, point, line, circle,
)  # fmt: skip


def step(prompts: int, seed: int) -> list[Answer]:
    """The answers of one step, four a prompt."""
    rng = random.Random(seed)
    answers = []
    for _ in range(prompts):
        problem = rng.choice(FAMILIES)(rng)
        for kind in rng.choices(list(SHARES), list(SHARES.values()), k=GROUP_SIZE):
            right, wrong = rng.choice(problem.right), rng.choice(problem.wrong)
            text = {"right": right, "wrong": wrong}.get(kind)
            text = rng.choice(MALFORMED).format(right=right, wrong=wrong) if text is None else text
            answers.append(Answer(problem.truth, text, kind == "right"))
    return answers
