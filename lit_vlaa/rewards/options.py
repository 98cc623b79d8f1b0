"""The options of a multiple-choice question: finding them in the question, recognising their text in an answer."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter

from lit_vlaa.answers import ascii_digits, unstyled

# At the start of lines a run of A, B, ... is sign enough; MathVerse writes `A:65°` without a blank.
_LINE_MARK = re.compile(r"^[ \t]*\(?([A-Z])[):.][ \t]*", re.MULTILINE)
_INLINE_MARK = re.compile(r"(?:^|(?<=[\s(]))\(?([A-Z])[):.](?!\w)\s*")
_SPELLINGS = (
    (re.compile(r"\\(?:left|right|displaystyle)(?![a-z])|\\[,;!: ]|[$*`]"), ""),
    (re.compile(r"\^\s?(?:\{\s?\\circ\s?\}|\\circ(?![a-z]))|°|\\degree(?![a-z])|\bdegrees?\b"), " deg "),
    (re.compile(r"\\?\bsqrt(?![a-z])|\\sqrt"), "√"),
    (re.compile(r"√\s?[{(]\s?(\w{1,40})\s?[)}]"), r"√\1"),
    (re.compile(r"\\[dt]?frac\s?\{\s?([^{}]{1,80}?)\s?\}\s?\{\s?([^{}]{1,80}?)\s?\}"), r"\1/\2"),
    (re.compile(r"\\(?:times|cdot)(?![a-z])|[×·]"), "*"),
    (re.compile(r"\\pi(?![a-z])"), "π"),
    (re.compile(r"(?<=\d)\.0{1,9}(?!\d)"), ""),
    (re.compile(r"\s{0,9}([=+*/^<>√()-])\s{0,9}"), itemgetter(1)),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True, slots=True)
class Options:
    """What a question offers."""

    texts: dict[str, str]
    """Letter to text, in order; empty when the question lists no options."""
    plain: dict[str, str]
    """Letter to text in the form that `plain` gives, without options that have no text."""

    @property
    def letters(self) -> str:
        """The letters that can be chosen: all capitals when the question lists none."""
        return "".join(self.texts) or string.ascii_uppercase

    def named_by(self, text: str) -> str | None:
        """The one option whose text this is."""
        wanted = plain(text)
        same = [letter for letter, option in self.plain.items() if option == wanted]
        return same[0] if len(same) == 1 else None

    def stated_in(self, text: str, *, counts: Callable[[str, int, int], bool]) -> str | None:
        """The one option whose text stands in `text` as a piece of its own.

        Args:
            text: An answer.
            counts: Told a plain text and where an option starts and ends in it, says whether that place counts.
        """
        given = plain(text)
        found = {a: b for a, b in self.plain.items() if any(counts(given, *place) for place in _places(b, given))}
        longest = [a for a, b in found.items() if not any(b != other and b in other for other in found.values())]
        return longest[0] if len(longest) == 1 else None


def _places(option: str, given: str) -> Iterator[tuple[int, int]]:
    """Where an option's text stands in a plain text, not as a part of a word, a number or a formula."""
    start = given.find(option)
    while start >= 0:
        end = start + len(option)
        before, after = given[max(0, start - 1) : start], given[end : end + 2]
        joined = before.isalnum() or (before and before in "_.-+*/^√\\") or after[:1].isalnum()
        if not joined and not (after[:1] and after[0] in "_+*/^√") and not re.match(r"[.-]\d", after):
            yield start, end
        start = given.find(option, end)


def plain(text: str) -> str:
    """An option's text for comparison: case, blanks, LaTeX's way of writing it and final punctuation do not count."""
    text = ascii_digits(unstyled(text)).casefold()
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return text.strip(" .;,\"'").removesuffix("deg").rstrip()


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


NO_OPTIONS = Options({}, {})


@lru_cache(maxsize=64)
def read_options(question: str) -> Options:
    """Reads the options of a question: `A: 4`, `A) 4`, `(A) 4` or `A. 4`, by line or in one line."""
    texts = _consecutive(list(_LINE_MARK.finditer(question)), question) or _consecutive(
        list(_INLINE_MARK.finditer(question)), question
    )
    return Options(texts, {letter: plain(text) for letter, text in texts.items() if plain(text)})
