"""Reward of open-ended questions: how much better than a baseline a scorer finds the answer.

The paper's formula, `R = 1 - exp(-(s(y_hat) - s(y)) * b)` if `s(y_hat) > s(y)` else 0, with s a reward model.

Departures
1. The paper does not state b. Public code of the work it cites uses 0.2, our default.
2. `s(y)` is the score of the reference answer for scorers that judge quality. A scorer that measures *similarity to*
   the reference (`LexicalScorer`) rates the reference itself highest, so the formula would pay nothing to anybody; for
   such scorers the baseline is a fixed number in place of `s(y)`.
"""

from __future__ import annotations

import math
import re

_TAG_START = re.compile(r"<(?=[|/!<A-Za-z_])")
_BRACKET_TOKEN = re.compile(r"\[(?=/?[A-Z][A-Z_0-9]{2,40}\])")


def score(candidate: float, baseline: float, scale: float) -> float:
    """Returns the reward in [0, 1).

    Args:
        candidate: The scorer's value for the policy's answer.
        baseline: The scorer's value for the reference answer, or the fixed value that stands for it.
        scale: b of the formula, per unit of the scorer's values; positive.

    Raises:
        ValueError: A value is not finite (a scorer's failure, no verdict on the answer).
    """
    if not (math.isfinite(candidate) and math.isfinite(baseline)):
        raise ValueError(f"scorer gave {candidate} for the answer and {baseline} for the baseline; both must be finite")
    return -math.expm1(-(candidate - baseline) * scale) if candidate > baseline else 0.0


def escape_template_tokens(text: str) -> str:
    """Breaks up whatever a scorer's template or tokenizer could take for a control token.

    `<|im_end|>`, `</s>`, `<ImageHere>` and `[INST]` get a blank inside and so become plain text; "a < b" and "[1, 2]"
    stay as they are.
    """
    return _BRACKET_TOKEN.sub("[ ", _TAG_START.sub("< ", text).replace("|>", "| >"))
