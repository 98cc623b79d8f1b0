"""Wrong answers made of ground truths, to see that nobody pays for them."""

from __future__ import annotations

import re
from decimal import Decimal, localcontext

from lit_vlaa.rewards.algebra.expressions import ExpressionError
from lit_vlaa.rewards.algebra.readings import final_texts
from lit_vlaa.rewards.algebra.statements import parse_statement
from lit_vlaa.rewards.digit import final_number
from lit_vlaa.rewards.errors import UnparsableTruthError
from lit_vlaa.rewards.iou import parse_truth as parse_box
from lit_vlaa.rewards.mcq import parse_options
from lit_vlaa.rewards.mcq import parse_truth as parse_letter
from lit_vlaa.types import Kind

_UNRELATED = "Frogs croak loudly by night; my umbrella was left behind on bus number nine."
_NUMBER = re.compile(r"(?<!\d)(?<!\d\.)\d+", re.ASCII)
_DIGITS = 15
"""Of a longer number the last digits are changed alone."""


def wrong_answer(kind: Kind, truth: str, question: str = "") -> str | None:
    """Makes a well-formed wrong answer of a ground truth.

    Args:
        kind: Which verifier judges it.
        truth: The ground truth.
        question: The question with its options, if it lists any.

    Returns:
        The answer; None for a truth that cannot be read, and for kinds other than the five.
    """
    try:
        match kind:
            case "digit":
                return _next_number(truth)
            case "mcq":
                return _another_option(truth, question)
            case "math":
                return _changed_expression(truth)
            case "iou":
                return _box_elsewhere(truth)
            case "open_ended":
                return _UNRELATED
    except UnparsableTruthError:
        pass
    return None


def _next_number(truth: str) -> str | None:
    number = final_number(truth)
    if number is None:
        return None
    with localcontext(prec=len(number) + 2):
        return format(Decimal(number) + 1, "f")


def _another_option(truth: str, question: str) -> str:
    letters = "".join(parse_options(question)) or "ABCD"
    letter = parse_letter(truth, question)
    return letters[(letters.find(letter) + 1) % len(letters)]


def _changed_expression(truth: str) -> str | None:
    """The final expression with its last number one larger; one without numbers gets `+1`."""
    readings = final_texts(truth, trusted=True)
    expression = next((text for text in readings if _parses(text)), readings[-1] if readings else "")
    if not expression:
        return None
    candidates = [f"{expression}+1", f"{expression[:-1]}+1{expression[-1]}"]  # the second for a list in brackets
    numbers = list(_NUMBER.finditer(expression))
    if numbers:
        start, end = max(numbers[-1].start(), numbers[-1].end() - _DIGITS), numbers[-1].end()
        candidates.insert(0, f"{expression[:start]}{int(expression[start:end]) + 1}{expression[end:]}")
    return next((text for text in candidates if _parses(text)), candidates[0])


def _parses(text: str) -> bool:
    try:
        parse_statement(text)
    except ExpressionError:
        return False
    return True


def _box_elsewhere(truth: str) -> str:
    """The largest strip beside the true box; a small corner when the truth covers the image."""
    x1, y1, x2, y2 = parse_box(truth)
    strips = {x1: [0, 0, x1, 1], 1 - x2: [x2, 0, 1, 1], y1: [0, 0, 1, y1], 1 - y2: [0, y2, 1, 1]}
    return str(strips[max(strips)] if max(strips) > 0 else [0, 0, 0.1, 0.1])
