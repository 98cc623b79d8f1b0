"""Reduces a worked solution or a sentence to the one expression that it commits to.

A truth is trusted: its last box, line or formula counts. An answer is hostile text: around its expression only prose
that affirms it is allowed ("the equation is ..."), because "not 5", "half of $10$" and "5 or 6" must not pay.
"""

from __future__ import annotations

import re

from lit_vlaa.answers import bare, unstyled

DENIAL = re.compile(
    r"\b(?:no|not|never|none|neither|nor|cannot|except|excluding|but|unless|other|than|rather|instead|without|wrong|"
    r"incorrect|false|unknown|maybe|perhaps|possibly|might|may|could|or|either|options?|choices?|negative|minus|plus|"
    r"times|twice|thrice|double|triple|half|divided|multipl[a-z]+|least|most|reciprocal|opposite|inverse|squared|"
    r"cubed|(?:square|cube)d?\s(?:of|root))\b|n['’]t\b",
    re.IGNORECASE,
)
"""Words that turn an expression into another one, or deny it."""

_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_MARK = re.compile(r"\banswer\b\s*(?:\bis\b)?\s*[:=]?\s*", re.IGNORECASE)
_DELIMITER = re.compile(r"\$\$?|\\[()\[\]]")
_CLOSING = {"$": "$", "$$": "$$", r"\(": r"\)", r"\[": r"\]"}
_COMMITS = (
    r"\b(?:is|are|be|equals?|equal\s+to|gets?|gives?|gave|yields?|obtain|find|have|has|as|therefore|thus|hence|so|then|"
    r"(?:given|defined|described|represented|expressed)\s+by)\b"
)
_LEAD = re.compile(rf"(?:{_COMMITS}|(?<=[A-Za-z])\s?:)\s*", re.IGNORECASE)
_COMMITTED = re.compile(rf"(?:{_COMMITS}|[A-Za-z]\s?:|[A-Za-z)}}]\s?(?:=|≈|\\approx)|[.,;!?])$", re.IGNORECASE)
_WRAPPING = (" ", "\n", "$", r"\[", r"\(", r"\]", r"\)", "*", "`", r"\displaystyle", r"\quad", r"\therefore", "∴")
_AFTERWARDS = re.compile(r"(?:[^\d+\-*/^=<>≤≥≠%°!|\\_±√∛π∞×·÷½]|\\[\])])*")
_SENTENCE = re.compile(r"[.!?;](?=\s|$)|\n")
_ROUGHLY = re.compile(r"(?:approximately|about|roughly|≈|\\approx|~|=)\s*", re.IGNORECASE)
_LINE = re.compile(r"\n|⇒|⟹|\\Rightarrow\b|\\implies\b|\\Longrightarrow\b")
_RELATION = re.compile(r"[=<>≤≥]|\\(?:le|ge|in)\b|\\(?:le|ge)q")


def _boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of all outermost `\boxed{...}` groups that are closed and not empty."""
    found: list[tuple[int, int, str]] = []
    position = 0
    while (match := _BOX.search(text, position)) is not None:
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
        if depth:
            break
        if content := text[match.end() : end - 1].strip():
            found.append((match.start(), end, content))
        position = end
    return found


def _spans(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every formula between math delimiters."""
    found: list[tuple[int, int, str]] = []
    opened: re.Match[str] | None = None
    for mark in _DELIMITER.finditer(text):
        if opened is None:
            opened = mark if mark.group() in _CLOSING else None
        elif mark.group() == _CLOSING[opened.group()]:
            if content := text[opened.end() : mark.start()].strip():
                found.append((opened.start(), mark.end(), content))
            opened = None
    return found


def _unwrapped(text: str, *, at_end: bool) -> str:
    """Strips math delimiters, emphasis and blanks from one end."""
    while text:
        wrapping = next((w for w in _WRAPPING if (text.endswith(w) if at_end else text.startswith(w))), None)
        if wrapping is None:
            break
        text = text[: -len(wrapping)] if at_end else text[len(wrapping) :]
    return text


def _affirmed(before: str, after: str) -> bool:
    """True when the prose around an expression says nothing but that it is the answer."""
    before, after = _unwrapped(unstyled(before), at_end=True), unstyled(after)
    rest = _unwrapped(after, at_end=False)
    if after[:1].isalnum() or not _AFTERWARDS.fullmatch(_SENTENCE.split(rest, maxsplit=1)[0]):
        return False
    if before and not _COMMITTED.search(before[-40:]):
        return False
    return not DENIAL.search(_SENTENCE.split(before)[-1]) and not DENIAL.search(rest)


def _last_line(text: str, *, trusted: bool) -> str | None:
    """The last of several lines, if it is a conclusion; None for a single line."""
    lines = [line.strip() for line in _LINE.split(text) if line.strip(" $*`\\[]()")]
    if len(lines) < 2:
        return None
    return lines[-1] if trusted or _RELATION.search(lines[-1]) or _LEAD.search(lines[-1]) else ""


def final_texts(text: str, *, trusted: bool) -> list[str]:
    """Returns readings of a text's final expression, most literal first; empty when it commits to none.

    Args:
        text: An answer or a truth: an expression, a worked solution ending in a dagger and `Answer: ...`, or prose
            with one expression.
        trusted: The text is a truth, not the policy's.
    """
    text = re.sub(r"[ \t]+", " ", text.rpartition("†")[2]).strip()
    boxes = _boxes(text)
    if boxes:
        committed = len({box for _, _, box in boxes}) == 1 and _affirmed(text[: boxes[0][0]], text[boxes[-1][1] :])
        return [bare(boxes[-1][2])] if trusted or committed else []
    marks = list(_MARK.finditer(text))
    if marks and marks[-1].end() < len(text):
        before = _SENTENCE.split(text[: marks[-1].start()])[-1].rstrip()
        if not trusted and (DENIAL.search(before) or before.removesuffix("**")[-1:] in set("-+*/^")):
            return []
        text = text[marks[-1].end() :].lstrip("* ")
    text = text.strip().rstrip(".")
    readings = [bare(text)]
    last = None if r"\begin{" in text else _last_line(text, trusted=trusted)
    if last is not None:
        text = last.rstrip(".")
        readings = [*readings, bare(text)] if trusted else [bare(text)]
    if text:
        readings += _within_prose(text, trusted=trusted)
    return [_ROUGHLY.sub("", reading, count=1) if _ROUGHLY.match(reading) else reading for reading in readings]


def _within_prose(text: str, *, trusted: bool) -> list[str]:
    """The one formula of a sentence, and what follows its last "is"."""
    readings: list[str] = []
    spans = _spans(text)
    if len({content for _, _, content in spans}) == 1:
        start, end, content = spans[0]
        if trusted or (len(spans) == 1 and _affirmed(text[:start], text[end:])):
            readings.append(content)
    leads = list(_LEAD.finditer(text))
    if leads and (trusted or not DENIAL.search(_SENTENCE.split(text[: leads[-1].start()])[-1])):
        readings.append(text[leads[-1].end() :])
    return readings
