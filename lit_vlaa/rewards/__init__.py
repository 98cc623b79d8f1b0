"""Verifiable rewards, one file a kind; `mixed.MixedReward` scores batches, `score_response` a single response."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_vlaa.rewards.mixed import MixedReward
    from lit_vlaa.types import BoxSpace, Kind, RewardResult

__all__ = ["score_response", "truth_text"]


def truth_text(truth: float | str | Sequence[float]) -> str:
    """Writes a ground truth of any form found in data files as the text that verifiers read.

    Args:
        truth: A number, a text, or a box as a sequence of numbers, which becomes `[x1, y1, x2, y2]`.
    """
    if isinstance(truth, str):
        return truth
    if isinstance(truth, Sequence):
        return f"[{', '.join(str(value) for value in truth)}]"
    return str(truth)


@cache
def _shared() -> MixedReward:
    from lit_vlaa.rewards.mixed import MixedReward  # noqa: PLC0415 - keeps the import of this package cheap

    return MixedReward()


def score_response(
    response: str,
    *,
    kind: Kind,
    truth: float | str | Sequence[float],
    question: str = "",
    box_space: BoxSpace = "normalized",
    image_size: tuple[int, int] | None = None,
) -> RewardResult:
    r"""Scores one response with the default settings (open-ended answers by `scorers.LexicalScorer`).

    >>> score_response("<think>4 - 1</think><answer>3</answer>", kind="digit", truth=3).value
    1.0
    >>> score_response("<answer>(B)</answer>", kind="mcq", truth="B", question="Which?\nA: 4\nB: 6").value
    1.0
    >>> score_response("<answer>y = 5 sin(5x)</answer>", kind="math", truth="f(x) = -5 * sin(-5 * x)").value
    1.0

    Half of the true box, in pixels of the image as fed:

    >>> truth = [0.2, 0.2, 0.6, 0.6]
    >>> box = "<answer>[20, 20, 40, 60]</answer>"
    >>> round(score_response(box, kind="iou", truth=truth, box_space="qwen2_5_vl", image_size=(100, 100)).value, 3)
    0.5

    The status tells a wrong answer from a missing one, and both from a verifier that could not judge:

    >>> score_response("<answer>4</answer>", kind="digit", truth=3)
    RewardResult(value=0.0, kind='digit', extracted='4', status='ok')
    >>> score_response("It is 3.", kind="digit", truth=3).status
    'no_answer'
    >>> score_response("<answer>3</answer>", kind="digit", truth="three or four").status
    'unparsable_gt'

    Args:
        response: The policy's whole text, `<think>...</think><answer>...</answer>`.
        kind: Which verifier judges it.
        truth: The ground truth: a number, a text, or a box as four numbers.
        question: The question; its options make an option's text count as its letter.
        box_space: How the policy writes boxes.
        image_size: (width, height) in pixels of the image as fed to the model, for boxes in `qwen2_5_vl` space.

    Returns:
        Value in [0, 1], the extracted answer, and whether a verdict was reached. Math-Verify's processes start with the
        first answer that needs them and stay for the next.

    Raises:
        ValueError: Unknown kind or box space, or a missing image size.
    """
    from lit_vlaa.types import RewardRequest  # noqa: PLC0415 - types imports torch

    request = RewardRequest(
        response=response,
        kind=kind,
        truth=truth_text(truth),
        question=question,
        box_space=box_space,
        image_size=image_size,
    )
    return _shared()([request])[0]
