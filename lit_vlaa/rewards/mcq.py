"""Reward of multiple-choice questions: the one option that the answer commits to.

An answer commits to a letter by being it, by leading with it, by naming it in a conclusion, or by giving the option's
text. Two options that both stand as possible commit to nothing, whichever comes first.
"""

from __future__ import annotations

import re
import string
from itertools import pairwise

from lit_vlaa.answers import bare, boxed, unstyled
from lit_vlaa.rewards.errors import UnparsableTruthError

MAX_ANSWER_CHARS = 4000
"""A longer answer commits to nothing; keeps the search for mentions short on hostile text."""

_LINE_MARK = re.compile(r"^[ \t]*\(?([A-Z])[):.](?!\w)[ \t]*", re.MULTILINE)
_INLINE_MARK = re.compile(r"(?:^|(?<=[\s(]))\(?([A-Z])[):.](?!\w)\s*")
_ALONE = re.compile(r"\(?\s*([A-Za-z])\s*\)?\s*[.:]?")
# Repeats are bounded: the search runs over the policy's text in the trainer's own process.
_LEADING = re.compile(
    r"(?:\(([A-Za-z])\)|([A-Za-z])\s{0,8}[):.])\s{0,8}[:.]?\s{1,8}(?=\S)|([A-Z])\s{1,8}[-–—:]\s{1,8}(?=\S)"
)
_NAMED = re.compile(
    r"\b(?i:answers?|options?|choices?|so|therefore|thus|hence|is)\b(?i:\s{1,4}(?:is|must\s{1,4}be|would\s{1,4}be|option|choice)){0,4}"
    r"\s{0,4}[:=]?\s{0,4}"
    r"(?:\(([A-Za-z])\)|([A-Z])(?!\w|'))"
)
_MENTION = re.compile(r"(?<![\w'\\])\(?([A-Z])(?![\w'])\)?")
_RULED_OUT = re.compile(
    r"(?:\b(?:not|isn't|never|neither|nor|except|without|eliminates?|rules?\s+out|excludes?|rather\s+than|instead\s+of|over)"
    r"(?:\s+(?:be|is|option|choice|answer|the))*)\s*[\"'(*]*\s*$",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"\s+[a-z]")
_EITHER = re.compile(r"\b(?:or|either|and|maybe|perhaps|possibly|also|both|neither)\b|[/,&]", re.IGNORECASE)
_NO_OPTION = re.compile(r"\b(?:none|neither|all|both)\s+of\b", re.IGNORECASE)


def _consecutive(matches: list[re.Match[str]], text: str) -> dict[str, str]:
    """The last run of marks A, B, C, ... with the text that follows each; empty when there are fewer than two."""
    start = next((i for i in reversed(range(len(matches))) if matches[i].group(1) == "A"), None)
    if start is None:
        return {}
    run: list[re.Match[str]] = []
    for match in matches[start:]:
        if len(run) < 26 and match.group(1) == string.ascii_uppercase[len(run)]:
            run.append(match)
    if len(run) < 2:
        return {}
    ends = [*(match.start() for match in run[1:]), len(text)]
    return {m.group(1): text[m.end() : end].strip() for m, end in zip(run, ends, strict=True)}


def parse_options(question: str) -> dict[str, str]:
    """Returns the options of a question, letter to text: `A: 4`, `A) 4`, `(A) 4` or `A. 4`, by line or in one line."""
    return _consecutive(list(_LINE_MARK.finditer(question)), question) or _consecutive(
        list(_INLINE_MARK.finditer(question)), question
    )


def _plain(text: str) -> str:
    """An option's text for comparison: case, blanks, math delimiters and final punctuation do not count."""
    text = (
        unstyled(text)
        .replace("√", r"\sqrt")
        .replace("°", " deg")
        .replace(r"^{\circ}", " deg")
        .replace(r"^\circ", " deg")
    )
    text = re.sub(r"\bdegrees?\b", "deg", text.replace(r"\left", "").replace(r"\right", "").replace("$", ""))
    text = re.sub(r"\s+", " ", text).strip(" .;,*`\"'").casefold()
    return text.removesuffix("deg").rstrip()


def _by_text(text: str, options: dict[str, str], *, whole: bool) -> str | None:
    """The one option whose text the answer is (`whole`) or states without denying it."""
    plain = _plain(text)
    texts = {letter: _plain(option) for letter, option in options.items() if _plain(option)}
    if whole:
        same = [letter for letter, option in texts.items() if option == plain]
        return same[0] if len(same) == 1 else None
    found: dict[str, str] = {}
    for letter, option in texts.items():
        for match in re.finditer(rf"(?<![\w.]){re.escape(option)}(?!\w|\.\d)", plain):
            if not _RULED_OUT.search(plain[max(0, match.start() - 40) : match.start()]):
                found[letter] = option
                break
    longest = [a for a, text_a in found.items() if not any(text_a != b and text_a in b for b in found.values())]
    return longest[0] if len(longest) == 1 else None


def _mentions(text: str, letters: str) -> list[tuple[int, str]]:
    """(position, letter) of each option letter that is neither the article "A" nor ruled out."""
    found = []
    for match in _MENTION.finditer(text):
        letter, start, end = match.group(1), match.start(), match.end()
        if letter not in letters or _RULED_OUT.search(text[max(0, start - 40) : start]):
            continue
        in_brackets = match.group().startswith("(")
        if (
            letter in "AI"
            and not in_brackets
            and _ARTICLE.match(text, end)
            and not _EITHER.match(text[end : end + 40].lstrip())
        ):
            after = text[end : end + 12].split()
            if not after or after[0].rstrip(".,;") not in {"is", "because", "since", "as"}:
                continue
        found.append((start, letter))
    return found


def chosen_option(answer: str, question: str = "") -> str | None:
    """Returns the capital letter of the option that the answer commits to, or None.

    Args:
        answer: The content of the answer block.
        question: The question with its options, if it lists any; makes an option's text count as its letter.
    """
    boxes = {box for box in boxed(answer) if box}
    if len(boxes) > 1 or len(answer) > MAX_ANSWER_CHARS:
        return None
    text = bare(unstyled(bare(boxes.pop() if boxes else answer))).replace("**", "")
    options = parse_options(question)
    letters = "".join(options) or string.ascii_uppercase
    if alone := _ALONE.fullmatch(text):
        letter = alone.group(1).upper()
        return letter if letter in letters else None
    if same := _by_text(text, options, whole=True):
        return same
    if (lead := _LEADING.match(text)) is not None:
        return _leading(text, lead, letters, options)
    return None if _NO_OPTION.search(text) else _in_prose(text, letters, options)


def _in_prose(text: str, letters: str, options: dict[str, str]) -> str | None:
    """The option that a sentence names, by letter or by text."""
    mentions = _mentions(text, letters)
    different = {letter for _, letter in mentions}
    if len(different) > 1:
        different = _concluded(text, mentions)
    stated = _by_text(text, options, whole=False)
    if not mentions:
        bracketed = {m.group(1).upper() for m in _NAMED.finditer(text) if m.group(1)} & set(letters)
        return bracketed.pop() if len(bracketed) == 1 else stated
    letter = different.pop()
    return letter if not different and (stated in {None, letter} or _named(text, letter)) else None


def _leading(text: str, lead: re.Match[str], letters: str, options: dict[str, str]) -> str | None:
    """The letter of "C: 27 degrees", unless what follows says something else."""
    letter = next(group for group in lead.groups() if group).upper()
    rest = text[lead.end() :]
    if letter not in letters:
        return None
    meant = _by_text(rest, options, whole=True)
    if meant is not None:
        return letter if meant == letter or _plain(options.get(letter, "")) == _plain(rest) else None
    others = {other for _, other in _mentions(rest, letters)} - {letter}
    starts = _plain(rest).startswith(_plain(options[letter])) if options.get(letter) else False
    return letter if starts or not others else None


def _concluded(text: str, mentions: list[tuple[int, str]]) -> set[str]:
    """The letters that a conclusion names ("the answer is C"), all mentioned letters when another is still in play."""
    named = {
        (m.start(1) if m.group(1) else m.start(2)): (m.group(1) or m.group(2)).upper() for m in _NAMED.finditer(text)
    }
    standing = {position for position, _ in mentions} | {position + 1 for position, _ in mentions}
    kept = {position: letter for position, letter in named.items() if position in standing}
    everything = {letter for _, letter in mentions}
    if len(set(kept.values())) != 1:
        return everything
    for (left, first), (right, second) in pairwise(mentions):
        between = text[left + 1 : right]
        if (
            first != second
            and len(between) <= 24
            and _EITHER.search(between)
            and not re.search(r"[a-z]{3,} [a-z]{2,}", between)
        ):
            return everything
    return set(kept.values())


def _named(text: str, letter: str) -> bool:
    return any((m.group(1) or m.group(2)).upper() == letter for m in _NAMED.finditer(text))


def parse_truth(truth: str, question: str = "") -> str:
    """Reads the true letter from `A`, `A)`, `(a)`, `A. text`, a box, or the option's text.

    Raises:
        UnparsableTruthError: None of these.
    """
    boxes = boxed(truth)
    text = bare(unstyled(boxes[-1] if boxes else truth))
    options = parse_options(question)
    if alone := _ALONE.fullmatch(text):
        return alone.group(1).upper()
    if lead := _LEADING.match(text):
        return next(group for group in lead.groups() if group).upper()
    if same := _by_text(text, options, whole=True):
        return same
    raise UnparsableTruthError(f"mcq truth {truth[:60]!r} is neither an option letter nor an option's text")


def score(answer: str, truth: str, *, question: str = "") -> float:
    """Returns 1.0 when the answer commits to the true option and to no other, else 0.0.

    Args:
        answer: The content of the answer block.
        truth: The true option: `C`, `C)`, `(c)`, `C. 27` or its text.
        question: The question with its options.

    Raises:
        UnparsableTruthError: The truth names no option.
    """
    return float(chosen_option(answer, question) == parse_truth(truth, question))
