"""Finding the answer in a response, and the text helpers that several verifiers share.

Everything here reads hostile text: each function is linear in its input, raises nothing and evaluates nothing.
"""

from __future__ import annotations

import re
import unicodedata

_OPEN, _CLOSE = "<answer>", "</answer>"
_THINK, _END_THINK = "<think>", "</think>"
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_STYLE = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|normal)|operatorname\*?|mbox)\s*\{")
_WORD = re.compile(r"[a-z]+", re.IGNORECASE)

_SMALL = {
    word: value
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
}
_TENS = {
    word: 10 * value
    for value, word in enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 2)
}


def extract_answer(response: str) -> str | None:
    """Returns what stands between the response's answer tags.

    This is the paper's implicit format reward: without exactly one `<answer>...</answer>` block nothing is paid.

    Args:
        response: The policy's decoded text.

    Returns:
        The block's content without surrounding blanks. None when the response has no block, more than one (or a stray
        second tag), an empty one, or one that stands inside the thinking part. A `</think>` that was never opened
        closes a thinking part that began with the response, because some templates open it in the prompt.
    """
    if response.count(_OPEN) != 1 or response.count(_CLOSE) != 1:
        return None
    before, _, rest = response.partition(_OPEN)
    inside, closed, after = rest.partition(_CLOSE)
    if not closed or _THINK in inside or _END_THINK in inside:
        return None
    if before.rfind(_THINK) > before.rfind(_END_THINK):
        return None
    closing = after.find(_END_THINK)
    if closing >= 0 and not 0 <= after.find(_THINK) < closing:
        return None
    return inside.strip() or None


def _closing_brace(text: str, start: int) -> int:
    """Index of the brace that closes the group whose content begins at `start`, or -1."""
    depth = 1
    for index in range(start, len(text)):
        if text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return index
    return -1


def boxed(text: str) -> list[str]:
    r"""Returns the contents of all outermost `\boxed{...}` groups, in order; an unclosed group is no group."""
    found: list[str] = []
    position = 0
    while (match := _BOX.search(text, position)) is not None:
        end = _closing_brace(text, match.end())
        if end < 0:
            break
        found.append(text[match.end() : end].strip())
        position = end + 1
    return found


def unstyled(text: str) -> str:
    r"""Removes LaTeX's text and font commands (`\text{...}`, `\mathrm{...}`) and keeps what they hold."""
    pieces: list[str] = []
    depth = 0
    styled: list[int] = []
    position = 0
    while position < len(text):
        match = _STYLE.match(text, position) if text[position] == "\\" else None
        if match is not None:
            styled.append(depth)
            depth += 1
            position = match.end()
            continue
        char = text[position]
        position += 1
        if char == "{":
            depth += 1
        elif char == "}" and depth:
            depth -= 1
            if styled and styled[-1] == depth:
                styled.pop()
                continue
        pieces.append(char)
    return "".join(pieces)


def bare(text: str) -> str:
    r"""Strips what only wraps an answer: blanks, Markdown emphasis, quotes, math delimiters (`$`, `\(`, `\[`)."""
    pairs = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ('"', '"'))
    text = text.strip()
    shrunk = True
    while shrunk:
        shrunk = False
        for left, right in pairs:
            if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
                inner = text[len(left) : len(text) - len(right)]
                if left not in inner and right not in inner:
                    text, shrunk = inner.strip(), True
                    break
    return text


def ascii_digits(text: str) -> str:
    """Writes every decimal digit of any script, and the minus signs of typography, in ASCII; superscripts stay."""
    if text.isascii():
        return text
    text = text.translate({0x2212: "-", 0x2010: "-", 0x2011: "-", 0xFE63: "-", 0xFF0D: "-", 0xFF0E: "."})
    return "".join(char if char.isascii() or not char.isdecimal() else str(unicodedata.decimal(char)) for char in text)


def spelled_numbers(text: str) -> list[tuple[int, int, int]]:
    """Finds English number words from zero to 999 ("three", "twenty-one", "one hundred and five").

    Args:
        text: Any text.

    Returns:
        (start, end, value) of each number, in order; `end` is exclusive.
    """
    words = [(m.start(), m.end(), m.group().lower()) for m in _WORD.finditer(text)]
    found: list[tuple[int, int, int]] = []
    index = 0

    def joined(left: int, right: int) -> bool:
        return right < len(words) and text[words[left][1] : words[right][0]] in {" ", "-"}

    def below_hundred(at: int) -> tuple[int, int] | None:
        word = words[at][2] if at < len(words) else ""
        if word in _TENS:
            if joined(at, at + 1) and 1 <= _SMALL.get(words[at + 1][2], 0) <= 9:
                return _TENS[word] + _SMALL[words[at + 1][2]], at + 2
            return _TENS[word], at + 1
        return (_SMALL[word], at + 1) if word in _SMALL else None

    while index < len(words):
        number = below_hundred(index)
        if number is None:
            index += 1
            continue
        value, after = number
        if joined(after - 1, after) and words[after][2] == "hundred" and 1 <= value <= 9:
            value, after = 100 * value, after + 1
            start = after + 1 if joined(after - 1, after) and words[after][2] == "and" else after
            tail = below_hundred(start) if joined(start - 1, start) else None
            if tail is not None:
                value, after = value + tail[0], tail[1]
        found.append((words[index][0], words[after - 1][1], value))
        index = after
    return found
