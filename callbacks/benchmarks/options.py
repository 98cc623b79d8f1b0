"""Which option of a multiple-choice question an answer names, by rule alone.

The rule is VLMEvalKit's, in the forms that its state of April 2025 (`paper`) and of 2026 (`head`) give it. Its defects,
kept there and mended in `fixed`: the article that begins a sentence read as option A ("A square has ..."), an option's
text found inside a longer word or number (option "5" in "15"), an option without text found in every answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from string import ascii_uppercase

from callbacks.benchmarks.interface import Profile

REFUSED = "Z"
"""The label of an answer that declines to choose."""

MAX_ANSWER_CHARS = 20_000
"""Of a longer answer the end is read."""

# Messages of served models, which the reference looks for word by word.
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_TOKENS = 4
_ANSWER_IS_HEAD = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_ANSWER_IS_FIXED = re.compile(r"\b[Aa]nswer\s{1,3}is(?:\s{1,3}(?:option|choice))?[\s:]{1,3}[*(\[]{0,4}([A-Z])\b")
_ARTICLE = re.compile(
    r"(?:^|[.!?\n])\s{0,4}A\s{1,4}(?!(?:or|and|but|is|was|must|would|because|since|as|to|for|with)\b)(?=[a-z])"
)


def labelled(texts: Iterable[str]) -> dict[str, str]:
    """The texts of a row's options by their labels A, B, ....

    Args:
        texts: At most 26.

    Raises:
        ValueError: If there are more.
    """
    options = tuple(texts)
    if len(options) > len(ascii_uppercase):
        raise ValueError(f"{len(options)} options where at most {len(ascii_uppercase)} can be labelled")
    return dict(zip(ascii_uppercase, options, strict=False))


def infer_option(answer: str, choices: Mapping[str, str], profile: Profile) -> str | None:
    """Reads the option that an answer names.

    Args:
        answer: The reduced response.
        choices: Texts of the options by label.
        profile: `paper`: the only label among the answer's tokens, else the only option whose text stands in it.
            `head`: the label must be among the last four tokens; "answer is X" (A to D) counts too; no look at the
            texts when the answer is more than twice as long as they are together. `fixed`: as `paper`, without the
            defects named at the top of this file.

    Returns:
        A label of `choices`, `Z` for a refusal, None where nothing or more than one option is named.
    """
    answer = answer[-MAX_ANSWER_CHARS:]
    if any(refusal in answer for refusal in _REFUSALS):
        return REFUSED
    return _by_label(answer, choices, profile) or _by_text(answer.lower(), choices, profile)


def _by_label(answer: str, choices: Mapping[str, str], profile: Profile) -> str | None:
    tokens = answer.translate(_PUNCTUATION).split()
    seen = set(tokens)
    named = [label for label in choices if label in seen]
    if profile == "fixed" and "A" in named and tokens.count("A") == len(_ARTICLE.findall(answer)):
        named.remove("A")
    if len(named) == 1 and (profile != "head" or tokens.index(named[0]) >= len(tokens) - _LAST_TOKENS):
        return named[0]
    if not named and REFUSED in seen:
        return REFUSED
    if profile == "paper":
        return None
    # Fixed takes the last statement, for a response may correct itself.
    said = _ANSWER_IS_HEAD.findall(answer)[:1] if profile == "head" else _ANSWER_IS_FIXED.findall(answer)[-1:]
    return said[0].upper() if said and said[0].upper() in choices else None


def _by_text(answer: str, choices: Mapping[str, str], profile: Profile) -> str | None:
    texts = {label: text.lower() for label, text in choices.items()}
    if profile == "head" and len(answer) > 2 * sum(map(len, texts.values())):
        return None
    if profile == "fixed":
        found = {label: text.strip() for label, text in texts.items() if _stands_in(text.strip(), answer)}
        named = [a for a, text in found.items() if not any(text != other and text in other for other in found.values())]
    else:
        named = [label for label, text in texts.items() if text in answer]
    return named[0] if len(named) == 1 else None


def _stands_in(text: str, answer: str) -> bool:
    """Whether a text stands in an answer as a piece of its own, not within a word or number."""
    start = answer.find(text) if text else -1
    while start >= 0:
        end = start + len(text)
        before, after = answer[max(0, start - 1) : start], answer[end : end + 2]
        inside = (
            (text[0].isalnum() and (before.isalnum() or before in {".", "-", "/"}))
            or (text[-1].isalnum() and after[:1].isalnum())
            or (text[-1].isdigit() and after[:1] in {".", "/", ","} and after[1:].isdigit())
        )
        if not inside:
            return True
        start = answer.find(text, start + 1)
    return False
