"""Finding the answer in a response, and the text helpers that several verifiers share.

Everything here reads hostile text: each function is linear in its input, raises nothing and evaluates nothing.
"""

from __future__ import annotations

import re
import unicodedata

MAX_ANSWER_CHARS = 4000
"""A longer answer commits to nothing; bounds what reading one can cost."""

_OPEN, _CLOSE = "<answer>", "</answer>"
_THINK, _END_THINK = "<think>", "</think>"
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_STYLE = r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|normal)|operatorname\*?|mbox)\s*\{"
_STYLE_OR_BRACE = re.compile(rf"{_STYLE}|[{{}}]")
_FOREIGN_DIGIT = re.compile(r"[^\D0-9]")
_OVERLAID = re.compile("[\x00-\x7f\ufffd]([^\x00-\x7f\ufffd]+)")
_WORD = re.compile(r"[a-z]+", re.IGNORECASE)
_PAIRS = (
    *(("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")),
    *((mark, mark) for mark in ("```", "`", "**", "*", "__", "_", '"', "'")),
)

# Characters without a picture: joiners, marks of direction, soft hyphens, variation selectors, fillers, keycaps.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u2065\u206a-\u206f\u20e3\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
)
_REORDERED = re.compile("[\u202a-\u202e\u2066-\u2069]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FOLDED = (
    {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    | dict.fromkeys((0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000), " ")
    | dict.fromkeys((0x85, 0x2028, 0x2029), "\n")
    | dict.fromkeys((0x2018, 0x2019, 0x201B, 0x2032), "'")
    | dict.fromkeys((0x201C, 0x201D, 0x201F, 0xAB, 0xBB), '"')
    | {0x3001: ",", 0x3002: "."}
)
_MATH_LETTER = re.compile("[\U0001d400-\U0001d7ff]")

_SMALL_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_SMALL = {word: value for value, word in enumerate(_WORD.findall(_SMALL_WORDS))}
_TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * value for value, word in enumerate(_WORD.findall(_TENS_WORDS), 2)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


def extract_answer(response: str) -> str | None:
    """Returns what stands between the response's answer tags.

    This is the paper's implicit format reward: without exactly one `<answer>...</answer>` block nothing is paid.

    Args:
        response: The policy's decoded text.

    Returns:
        The block's content without surrounding blanks. None when the response has no block, more than one (or a stray
        second tag), one in which nothing can be seen, or one that stands inside the thinking part. A `</think>` that
        was never opened closes a thinking part that began with the response, because some templates open it in the
        prompt.
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
    inside = inside.strip()
    return inside if _seen(inside) else None


def _seen(text: str) -> bool:
    """True when a reader of the text would see anything at all."""
    if text.isascii():
        return any(char.isprintable() and char != " " for char in text)
    return any(unicodedata.category(char)[0] in "LNPS" for char in _UNSEEN.sub("", text))


def legible(answer: str) -> str | None:
    """Writes an answer the way a reader sees it.

    Characters without a picture are dropped, blanks of every kind become plain ones, fullwidth and mathematical
    letters, digits of any script and typographic quotes become ASCII. A character that is struck through or otherwise
    overlaid becomes U+FFFD, which no verifier reads.

    Args:
        answer: The content of the answer block, or one as found in a data file.

    Returns:
        The text; None when it is longer than `MAX_ANSWER_CHARS`, or when it changes the direction of writing, so that
        what is seen is not what is stored.
    """
    if len(answer) > MAX_ANSWER_CHARS or _REORDERED.search(answer):
        return None
    if answer.isascii():
        return _CONTROL.sub(" ", answer)
    text = _UNSEEN.sub("", answer.translate(_FOLDED))
    text = _MATH_LETTER.sub(lambda match: unicodedata.normalize("NFKC", match.group()), _CONTROL.sub(" ", text))
    return _OVERLAID.sub(_without_marks, ascii_digits(unicodedata.normalize("NFC", text)))


def _without_marks(match: re.Match[str]) -> str:
    """U+FFFD for a character and the marks that follow it; the match itself where none does."""
    after: str = match.group(1)
    end = next((i for i, char in enumerate(after) if unicodedata.category(char) not in {"Mn", "Me"}), len(after))
    return "\ufffd" + after[end:] if end else match.group()


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
    for match in _STYLE_OR_BRACE.finditer(text):
        mark, kept = match.group(), match.end()
        if mark == "{":
            depth += 1
        elif mark == "}":
            depth = max(depth - 1, 0)
            if styled and styled[-1] == depth:
                styled.pop()
                kept = match.start()
        else:
            styled.append(depth)
            depth += 1
            kept = match.start()
        pieces.append(text[position:kept])
        position = match.end()
    return "".join((*pieces, text[position:]))


def bare(text: str) -> str:
    r"""Strips what only wraps an answer: blanks, Markdown emphasis, quotes, math delimiters (`$`, `\(`, `\[`)."""
    text = text.strip()
    shrunk = True
    while shrunk:  # at most once for each pair: what is left holds neither of its marks
        shrunk = False
        for left, right in _PAIRS:
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
    return _FOREIGN_DIGIT.sub(lambda match: str(unicodedata.decimal(match.group())), text)


def spelled_numbers(text: str) -> list[tuple[int, int, int]]:
    """Finds English number words ("three", "twenty-one", "one hundred and five", "two thousand").

    Args:
        text: Any text.

    Returns:
        (start, end, value) of each number, in order; `end` is exclusive.
    """
    reader = _NumberWords(text)
    found: list[tuple[int, int, int]] = []
    index = 0
    while index < len(reader.words):
        number = reader.number(index)
        if number is None:
            index += 1
            continue
        value, after = number
        found.append((reader.words[index][0], reader.words[after - 1][1], value))
        index = after
    return found


class _NumberWords:
    """The words of a text, read as numbers. Each method gives (value, index of the next word), or None."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.words = [(match.start(), match.end(), match.group().lower()) for match in _WORD.finditer(text)]

    def number(self, at: int) -> tuple[int, int] | None:
        first = self._below_thousand(at)
        if first is None:
            return None
        total, (group, after), limit = 0, first, 10**12
        while (scale := _SCALES.get(self._joined(after), limit)) < limit:
            total, after, limit, group = total + group * scale, after + 1, scale, 0
            following = after + 1 if self._joined(after) == "and" else after
            tail = self._below_thousand(following) if self._joined(following) else None
            if tail is None:
                break
            group, after = tail
        return total + group, after

    def _joined(self, at: int) -> str:
        """The word at `at` when only a blank or a hyphen parts it from the word before, else an empty text."""
        if not 0 < at < len(self.words) or self.text[self.words[at - 1][1] : self.words[at][0]] not in {" ", "-"}:
            return ""
        return self.words[at][2]

    def _below_hundred(self, at: int) -> tuple[int, int] | None:
        word = self.words[at][2] if at < len(self.words) else ""
        if word in _TENS:
            unit = _SMALL.get(self._joined(at + 1), 0)
            return (_TENS[word] + unit, at + 2) if 1 <= unit <= 9 else (_TENS[word], at + 1)
        if word == "a" and self._joined(at + 1) in {"hundred", *_SCALES}:
            return 1, at + 1
        return (_SMALL[word], at + 1) if word in _SMALL else None

    def _below_thousand(self, at: int) -> tuple[int, int] | None:
        number = self._below_hundred(at)
        if number is None or self._joined(number[1]) != "hundred" or not 1 <= number[0] <= 9:
            return number
        value, after = 100 * number[0], number[1] + 1
        following = after + 1 if self._joined(after) == "and" else after
        tail = self._below_hundred(following) if self._joined(following) else None
        return (value, after) if tail is None else (value + tail[0], tail[1])
