r"""Reward of mathematical answers: equal as mathematics, by Math-Verify behind a front end of our own.

The front end takes an answer through these steps, each a file: `readings` (the final expression of a text), `notation`
(one spelling), `layouts`, `statements`, `units` and `syntax` (expression trees), `comparison` (what must be equal) and
`refutation` (is it different for certain?). It refutes most wrong answers at once, which also closes the cases in which
Math-Verify calls different things equal. What it cannot refute is confirmed in worker processes (`workers`), by an
exact identity in SymPy or else by Math-Verify: a point is paid only when both agree. A truth outside the grammar (an
integral, a word) is compared as text; only if it is a value in LaTeX does Math-Verify decide alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from lit_vlaa.rewards.algebra.comparison import RIGHT, WRONG, Parsed, Plan, compare
from lit_vlaa.rewards.algebra.expressions import ExpressionError
from lit_vlaa.rewards.algebra.layouts import parse_answer
from lit_vlaa.rewards.algebra.notation import compact
from lit_vlaa.rewards.algebra.readings import final_texts
from lit_vlaa.rewards.algebra.syntax import MAX_CHARS
from lit_vlaa.rewards.errors import UnparsableTruthError
from lit_vlaa.rewards.workers import MathPool, Pair, PairVerdict
from lit_vlaa.types import RewardStatus

__all__ = ["Plan", "conclude", "plan", "score"]

MAX_ANSWER_CHARS = 4000
"""A longer answer is wrong without being read."""

_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_VERDICTS = frozenset(["yes", "no", "true", "false", "none", "odd", "even", "undefined"])


def _read(text: str, *, trusted: bool) -> tuple[Parsed | None, str]:
    """The first reading that parses, and the most reduced text."""
    readings = final_texts(text, trusted=trusted)
    for reading in readings:
        try:
            return parse_answer(reading), reading
        except ExpressionError:
            continue
    return None, readings[-1] if readings else ""


@lru_cache(maxsize=4096)
def _read_truth(truth: str) -> tuple[Parsed | None, str, str]:
    """The truth's parsed form, its text and its compact text."""
    parsed, text = _read(truth, trusted=True)
    return parsed, text, compact(text)


def plan(answer: str, truth: str) -> Plan:
    """Decides what it can without Math-Verify and says what is left to confirm.

    Args:
        answer: The content of the answer block, hostile text.
        truth: The row's ground truth.

    Raises:
        UnparsableTruthError: The truth is empty or too long.
    """
    wanted, truth_text, same = _read_truth(truth)
    if not same or (wanted is None and len(truth_text) > MAX_CHARS):
        raise UnparsableTruthError(
            f"math truth {truth[:80]!r} has no final expression of at most {MAX_CHARS} characters"
        )
    if len(answer) > MAX_ANSWER_CHARS:
        return WRONG
    given, answer_text = _read(answer, trusted=False)
    short = compact(answer_text)
    if same == short or (answer_text != answer and same == compact(answer)):
        return RIGHT
    if _WORDS.fullmatch(same) and (wanted is None or same.casefold() in _VERDICTS):
        return RIGHT if same.casefold() == short.casefold() else WRONG
    if wanted is None:
        # Math-Verify takes `dy/dx = 2x` for `dy/dx = 3x`, and any two expressions with an infinity for the same.
        unsafe = "=" in truth_text + answer_text or r"\infty" in truth_text
        if unsafe or not short or len(answer_text) > MAX_CHARS or "\\" not in truth_text:
            return WRONG
        latex = (text.replace("$", "") for text in (truth_text, answer_text))
        return Plan(possible=True, pairs=(Pair("latex", *latex),))
    return WRONG if given is None else compare(wanted, given)


def conclude(decided: Plan, verdicts: Sequence[PairVerdict]) -> tuple[float, RewardStatus]:
    """Turns a plan and the verdicts on its pairs into a reward and a status.

    One difference makes the answer wrong whatever else failed.
    """
    if not decided.possible or "different" in verdicts:
        return 0.0, "ok"
    failures: tuple[tuple[PairVerdict, RewardStatus], ...] = (
        ("unparsable_gt", "unparsable_gt"),
        ("timeout", "timeout"),
        ("error", "verifier_error"),
    )
    for verdict, status in failures:
        if verdict in verdicts:
            return 0.0, status
    return 1.0, "ok"


def score(answer: str, truth: str, *, pool: MathPool) -> tuple[float, RewardStatus]:
    """Judges one answer: (1.0 or 0.0, status).

    Raises:
        UnparsableTruthError: The truth is empty or too long.
    """
    decided = plan(answer, truth)
    return conclude(decided, pool.verify_many(decided.pairs))
