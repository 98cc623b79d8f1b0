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

# Tokenizers may normalise before they look for control tokens, so fullwidth forms are broken up like the ASCII ones.
_TAG_START = re.compile(r"[<＜﹤](?=[^\s\d=]|0x)")
_TAG_END = re.compile(r"[|｜](?=[>＞﹥])")
_BRACKET_TOKEN = re.compile(r"[\[［](?=(?![\d.+\-eE%]{1,60}[\]］])[^\s,;\[\]［］]{2,60}[\]］])")


def score(candidate: float, baseline: float, scale: float) -> float:
    """Returns the reward in [0, 1]; 1 only where the difference is too large for a float below 1.

    Args:
        candidate: The scorer's value for the policy's answer.
        baseline: The scorer's value for the reference answer, or the fixed value that stands for it.
        scale: b of the formula, per unit of the scorer's values; positive.

    Raises:
        ValueError: A value is no finite number (a scorer's failure, no verdict on the answer).
    """
    try:
        given, base = float(candidate), float(baseline)
    except (TypeError, ValueError, OverflowError):
        given = base = math.nan
    if not (math.isfinite(given) and math.isfinite(base)):
        raise ValueError(
            f"scorer gave {candidate!r:.40} for the answer and {baseline!r:.40} for the baseline; both must be finite"
        )
    return -math.expm1(-(given - base) * scale) if given > base else 0.0


def escape_template_tokens(text: str) -> str:
    """Breaks up whatever a scorer's template or tokenizer could take for a control token.

    `<|im_end|>`, `</s>`, `<ImageHere>` and `[INST]` get a blank inside and so become plain text; "a < b" and "[1, 2]"
    stay as they are. A second pass changes nothing.
    """
    text = _TAG_END.sub(lambda bar: bar.group() + " ", _TAG_START.sub(lambda mark: mark.group() + " ", text))
    return _BRACKET_TOKEN.sub(lambda mark: mark.group() + " ", text)
