"""What can be wrong with a data file: names, how bad each is, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
"""`error`: a run stops at it, or cannot feed the row; `warning`: it runs and learns less or wrongly; `note`: worth
knowing."""


class Problem(NamedTuple):
    """One kind of finding."""

    severity: Severity
    headline: str
    remedy: str
    skippable: bool = False
    """Whether `--data.on_bad_record skip` leaves such rows out, so that no run stops at them."""


class Finding(NamedTuple):
    """One thing that is wrong with one row, or with the file."""

    problem: str
    row: int
    """In the original file, from 1; 0 for the file as a whole."""
    detail: str
    source: str = ""
    kind: str = ""
    id: str = ""


_LEAVE = "mend the row, or leave such rows out with --data.on_bad_record skip"
_SHORTEN = "shorten or leave out the row, or lower --model.backbone.max_pixels where the image takes most"


def _row(headline: str, remedy: str = _LEAVE) -> Problem:
    return Problem("error", headline, remedy, skippable=True)


def _warning(headline: str, remedy: str) -> Problem:
    return Problem("warning", headline, remedy)


PROBLEMS: Mapping[str, Problem] = MappingProxyType(
    {
        "file_broken": Problem(
            "error", "the file cannot be read from here on", "get it again: rows after this place were not looked at"
        ),
        "no_rows": Problem(
            "error", "no row that a run can use", "see the other findings, or whether this is the file that was meant"
        ),
        "bad_row": _row("rows that are no JSON object"),
        "bad_id": _row("ids that cannot be used"),
        "bad_question": _row("questions that are missing, empty or no text"),
        "bad_image": _row("image fields that are no usable paths"),
        "bad_verifier_type": _row("rows whose verifier is not known", f"write its verifier_type, or {_LEAVE}"),
        "bad_gt": _row("ground truths that cannot be used"),
        "bad_answer": _row("responses that cannot be learned"),
        "bad_meta": _row("meta that cannot be read"),
        "image_missing": _row(
            "images that are not there", "see --data.image_root, or get them with `lit-vlaa data download`"
        ),
        "image_outside": _row(
            "images that a link takes out of the image root", "copy or bind-mount them below the image root"
        ),
        "image_broken": _row("images that cannot be decoded", f"get them again; {_LEAVE}"),
        "image_too_large": _row(
            "images with more pixels than --data.max_image_pixels", "make them smaller, or raise the flag"
        ),
        "image_unfeedable": _row("images that the processor refuses", f"crop them; {_LEAVE}"),
        "kind_unscored": Problem(
            "error",
            "rows of a kind that nothing scores",
            "name its function by --model.verifiers, or leave such rows out with --data.kinds",
        ),
        "over_long": Problem(
            "error",
            "rows of more than a million characters, whose tokens were not counted",
            "shorten or leave out the row",
        ),
        "over_context": Problem("error", "rows longer than the model's context", _SHORTEN),
        "truths_fail": Problem(
            "error",
            "kinds of which a run would have too many answers without a verdict",
            "mend the truths, or raise --model.reward.max_failed",
        ),
        "leaked_row": Problem(
            "error", "questions on an image that another file has too", "take such rows out of one of the files"
        ),
        "leaked_image": _warning("images that another file has too", "take such rows out of one of the files"),
        "shared_id": _warning("ids that another file has too", "rename them, if the rows are not the same"),
        "duplicate_id": _warning("ids that an earlier row has", "rename them; a run writes #<row> after such ids"),
        "duplicate_row": _warning("the question and the image of an earlier row", "take one of the rows out"),
        "contradicting_row": _warning(
            "the question and the image of an earlier row with another answer", "find out which is right"
        ),
        "over_budget": _warning(
            "rows longer than --model.max_tokens_per_micro_batch",
            f"raise it, as such a row goes through the model alone and takes more memory than was planned for; or "
            f"{_SHORTEN}",
        ),
        "response_too_long": _warning(
            "responses longer than --model.sampling.max_new_tokens",
            "raise it: a model that learned them is cut off before its answer",
        ),
        "truth_unparsable": _warning(
            "truths that their verifier cannot read", "mend them: their rows never get a reward"
        ),
        "truth_earns_less": _warning(
            "truths that do not earn the reward when given as the answer", "mend them; see `lit-vlaa rewards check`"
        ),
        "mutant_paid": _warning(
            "truths of which a wrong answer earns half or more", "mend them; see `lit-vlaa rewards check`"
        ),
        "box_frame": _warning(
            "boxes that are not in the frame that they are said to be in", "set --data.truth_boxes as the line says"
        ),
        "trace_form": _warning(
            "responses with text between the trace and the answer", "the format reward would not count them as formed"
        ),
        "placeholder_count": _warning(
            "questions with another number of <image> marks than images", "see whether an image is missing"
        ),
        "control_token": _warning(
            "text that holds control tokens of the chat", "take them out; a run breaks them up, so nothing is forged"
        ),
        "odd_unicode": _warning(
            "text with characters that do not show, or that stand for lost ones", "clean the text: see the code points"
        ),
        "image_turned": _warning(
            "photographs with an orientation tag, which is ignored", "turn their pixels and drop the tag"
        ),
        "repeated_image": Problem("note", "images that an earlier row has", "fine where the questions differ"),
        "image_suffix": Problem("note", "files of another format than their name says", "the content decides"),
        "image_mode": Problem(
            "note", "images of an unusual kind", "converted to 8-bit RGB; of an animation the first frame is taken"
        ),
    }
)
"""Every kind of finding, the gravest first."""


def severity_of(problem: str, *, skips: bool) -> Severity:
    """How bad a finding is for a run.

    Args:
        problem: A key of `PROBLEMS`.
        skips: Whether the run leaves bad rows out.
    """
    found = PROBLEMS[problem]
    return "warning" if skips and found.skippable else found.severity
