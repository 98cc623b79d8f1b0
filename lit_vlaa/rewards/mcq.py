"""Reward of multiple-choice questions: the one option that the answer commits to.

The option is read without a look at the truth, so no answer can be right for two truths. An answer commits to a letter
by being it, by mentioning no other, by naming it in a conclusion or in front of its reasons, or by giving the option's
text. Two options that both stand as possible commit to nothing, whichever comes first.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from lit_vlaa.answers import bare, boxed, legible, unstyled
from lit_vlaa.rewards.errors import UnparsableTruthError
from lit_vlaa.rewards.options import NO_OPTIONS, Options, plain, read_options

# Every repeat is bounded or stands alone: the patterns run over the policy's text in the trainer's own process.
_ALONE = re.compile(r"[\s(\[{<]{0,4}([A-Za-z])[\s)\]}>.,:;!?]{0,6}")
_LEADING = re.compile(
    r"(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])\s{0,8}[):.])\s{0,8}[:.]?\s{1,8}(?=\S)|([A-Z])\s{1,8}[-–—:=→]\s{1,8}(?=\S)"
)
_MENTION = re.compile(r"(?<![\w'\\°&#\ufffd])(?:[(\[{'\"]\s?([A-Za-z])\s?[)\]}'\"]|([A-Z])(?!\+\+|'))(?![\w#\ufffd])")
_SPELLED = re.compile(
    r"\b(?:answer|option|choice|choose|pick|select|letter)s?\b(?:\s{1,4}(?:is|would\s+be|option|choice|letter)){0,3}"
    r"\s{0,4}[:=]?\s{0,4}([a-z])(?=\s{0,4}(?:[.,;:!?)]|$))|^([a-z])(?=\s+is\s+(?:the\s+)?(?:correct|right|answer)\b)",
    re.IGNORECASE,
)
_SAID = re.compile(
    r"\b(?:answers?|choose|pick|select|go(?:ing)?\s+with|(?:correct|right|best)\s+(?:option|choice|letter|one))\b"
    r"(?:\s{1,4}(?:is|must\s+be|would\s+be|should\s+be|option|choice|letter|the|correct|right|final)){0,5}\W{0,6}$",
    re.IGNORECASE,
)
_DEDUCED = re.compile(
    r"(?:\b(?:so|therefore|thus|hence|leaves|leaving|must\s+be|it\s+is|it's)\b|[→⇒])"
    r"(?:\s{1,4}(?:it|this|is|must\s+be|would\s+be|only|us|with|option|choice|the|answer)){0,5}\W{0,4}$",
    re.IGNORECASE,
)
_NAMED = re.compile(r"\b(?:option|choice|is)\b\W{0,4}$", re.IGNORECASE)
_CONFIRMED = re.compile(
    r"[\s\"'*)\].]{0,4}(?:\b(?:is|are|must\s+be|would\s+be|seems|looks)(?:\s+(?:the|only|most|best|also|\w{1,12}ly)){0,3}"
    r"\s+(?:right|correct|true|answer|best|solution|one|option|choice|possible|plausible|valid)\b|[✓✔✅])",
    re.IGNORECASE,
)
_RULED_OUT = re.compile(
    r"(?:\b(?:not|isn't|aren't|never|neither|nor|except|without|besides|(?:cannot|can't|couldn't)\s+be|"
    r"eliminat(?:e|es|ed|ing)|(?:rules?|ruled|ruling)\s+out|exclud(?:e|es|ed|ing)|reject(?:s|ed|ing)?|"
    r"(?:rather|other)\s+than|instead\s+of|over|(?:any|every|all)\w{0,6}\s+(?:\w{1,12}\s+)?but)"
    r"(?:\s+(?:be|is|options?|choices?|answers?|the)){0,4}|[¬~!≠])[\s\"'(*:=]{0,6}$",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"[\s\"'*)\].]{0,4}(?:\b(?:is|are|was|were|can|could|do|does|did|will|would|should|must|has|have|seems?)"
    r"(?:\s+(?:be|been|both|all|also|just|simply|\w{1,12}ly)){0,3}\s*(?:not|n't|wrong|incorrect|false|out|excluded|"
    r"eliminated|ruled\s+out|impossible|invalid|rejected|discarded|too\s+\w{1,20})\b"
    r"|\b(?:isn't|aren't|can't|cannot|couldn't|doesn't|don't|won't|wouldn't|fails?)\b"
    r"|[:(\-–—]\s?(?:wrong|incorrect|false)\b|[✗✘❌]|~~)",
    re.IGNORECASE,
)
_REASONS = re.compile(
    r"[\s.,:;)\]*\-–—]{1,8}(?:because|since|as|explanation|reason|reasoning|given|while|whereas|due)\b", re.IGNORECASE
)
_HEDGED = re.compile(
    r"(?:\b(?:or|maybe|perhaps|possibly|also|either|alternatively)\b|[/|])[\s(]{0,4}(?:option\s|choice\s)?\W{0,2}$",
    re.IGNORECASE,
)
_OR_ELSE = re.compile(r"\W{0,3}\bor\b", re.IGNORECASE)
_BESIDE = re.compile(
    r"(?:^|[.,;:\n]|(\band|\bboth|&))[\s(*]{0,4}(?:option\s|choice\s)?[(*]{0,3}$",
    re.IGNORECASE,
)
_VERBS = "is|was|isn't|cannot|can|must|would|should|could|has|does|gives|matches|shows|seems|looks|means|equals"
_VERB = re.compile(rf"\s+(?:{_VERBS})\b")
_AFTER_LETTER = re.compile(
    rf"\s+(?:{_VERBS}|are|because|since|as|and|or|nor|not|have|only|due|given|which|where|while|but|for|from|by|with|than|"
    r"to|through|also|maybe|perhaps|probably|likely|wrong|correct|right|vs|versus|xor|plus|so|then|hence)\b"
)
_NO_OPTION = re.compile(
    r"\b(?:none|neither|all|both|any|each|every|either)\s+of\s+(?:the\s+(?:above|options|choices|answers)|these|those|them)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+")
_NAMING = frozenset({"option", "options", "choice", "choices", "answer", "letter"})
_LINKING = frozenset(
    {"and", "or", "nor", "vs", "versus", "maybe", "perhaps", "possibly", "also", "either", "both", "else", "even", "to"}
    | {"through", "thru", "xor", "plus", "then", "probably", "likely", "alternatively"}
)
_WINDOW = 48
_MANY = 64
"""Mentions in a text from which on it is a list, not an answer."""


class _Group(NamedTuple):
    """Letters that a text mentions in one breath: `C`, or `A, B and D`."""

    start: int
    end: int
    letters: frozenset[str]


def _mentions(text: str, letters: str) -> list[tuple[int, int, str]]:
    """(start, end, letter) of each option letter that is neither an article, a pronoun nor a unit."""
    found: dict[int, tuple[int, int, str]] = {}
    for match in _MENTION.finditer(text):
        letter, start, end = match.group(1) or match.group(2), match.start(), match.end()
        if letter.upper() not in letters or (letter.islower() and letter > "j"):
            continue
        if match.group(2):
            word_follows = text[end : end + 1].isspace() and text[end : end + 2].strip().islower()
            if letter in "AI" and word_follows and not _AFTER_LETTER.match(text, end):
                continue
            unit = text[max(0, start - 2) : start].rstrip(" ")[-1:].isdecimal()  # 27 C
            if unit and text[end : end + 1] not in {":", ")", "."}:
                continue
        found[match.start(1) if match.group(1) else start] = (start, end, letter.upper())
    for match in _SPELLED.finditer(text):
        group = 1 if match.group(1) else 2
        letter = match.group(group).upper()
        if letter in letters:
            found.setdefault(match.start(group), (match.start(group), match.end(group), letter))
    return sorted(found.values())


def _joined(text: str, end: int, start: int, after: int) -> bool:
    """True when the mentions that end at `end` and start at `start` make one list; the second one ends at `after`."""
    between = text[end:start]
    if len(between) > _WINDOW:
        return False
    words = set(_WORD.findall(between.lower()))
    if words - _NAMING:
        return words <= _NAMING | _LINKING
    marks = set(_WORD.sub("", between).strip())
    return not (marks and marks <= set(".,;:-–— ") and _VERB.match(text, after))


def _groups(text: str, letters: str) -> list[_Group]:
    groups: list[_Group] = []
    for start, end, letter in _mentions(text, letters):
        if groups and _joined(text, groups[-1].end, start, end):
            groups[-1] = _Group(groups[-1].start, end, groups[-1].letters | {letter})
        else:
            groups.append(_Group(start, end, frozenset(letter)))
    return groups


class _Reader:
    """One text with its mentions of options."""

    def __init__(self, text: str, options: Options) -> None:
        self.text, self.options = text, options
        groups = _groups(text, options.letters)
        self.a_list = len(groups) > _MANY
        kept = [] if self.a_list else groups
        self.denied = {g for g in kept if self._before(_RULED_OUT, g) or _DENIED.match(text, g.end)}
        self.standing = [group for group in kept if group not in self.denied]

    def choice(self) -> str | None:
        """The letter that the text commits to."""
        possible = {letter for group in self.standing for letter in group.letters}
        stated = self.options.stated_in(self.text, counts=_counts)
        concluded = self._concluded()
        leading = bool(self.standing) and self._at_start(self.standing[0])
        if self.a_list or (concluded is None and not leading and _NO_OPTION.search(self.text)):
            return None
        if not possible:
            letter = stated
        elif len(possible) == 1:
            letter = next(iter(possible))
            if stated not in {None, letter} and concluded is None:
                return None
        else:
            letter = None if concluded is None or self._hedged(concluded) else concluded
        if letter is None or any(letter in group.letters for group in self.denied) or self._mislabelled(letter):
            return None
        return letter

    def _before(self, pattern: re.Pattern[str], group: _Group) -> re.Match[str] | None:
        return pattern.search(self.text, max(0, group.start - _WINDOW), group.start)

    def _concluded(self) -> str | None:
        """The one letter that the text's conclusions name, or that leads and is followed by reasons."""
        definite = [g for g in self.standing if self._before(_SAID, g) or _CONFIRMED.match(self.text, g.end)]
        if self.standing and self._leads(self.standing[0]):
            definite.append(self.standing[0])
        deduced = [group for group in self.standing if self._before(_DEDUCED, group)]
        named = [group for group in self.standing if self._before(_NAMED, group)]
        found = {group.letters for group in (definite + deduced[-1:] if definite else deduced[-1:] or named)}
        letters = found.pop() if len(found) == 1 else frozenset()
        return next(iter(letters)) if len(letters) == 1 else None

    def _at_start(self, group: _Group) -> bool:
        return not self.text[: group.start].strip("\"'([{*# \n")

    def _leads(self, group: _Group) -> bool:
        """True for `C because ...` and for `C: 27, because ...` with the option's own text."""
        if len(group.letters) > 1 or not self._at_start(group):
            return False
        if _REASONS.match(self.text, group.end):
            return True
        (letter,) = group.letters
        own, rest = self.options.plain.get(letter), plain(self.text[group.end :].lstrip(" ):.]-–—=→"))
        if own is None or not rest.startswith(own):
            return False
        return _REASONS.match(rest[len(own) :].removeprefix(" deg")) is not None

    def _hedged(self, letter: str) -> bool:
        """True when another option stands beside the chosen one: "C. D", "C: 27 or B: 6"."""
        for group in self.standing:
            if group.letters == {letter}:
                continue
            after = self.text[group.end :].lstrip(" )*")[:1]
            beside = self._before(_BESIDE, group) if after in {"", ".", ",", ";", "\n", ":"} else None
            if self._before(_HEDGED, group) or (beside and (after != ":" or beside.group(1))):
                return True
        return False

    def _mislabelled(self, letter: str) -> bool:
        """True when the letter stands in front of another option's text: `C: 4` where A is 4."""
        for group in self.standing:
            line = self.text[group.end :].lstrip("\"'*)] \n")[:400].splitlines()[:1]
            if line and line[0][:1] in {":", ".", "-", "=", ")"} | ({line[0][:1]} if group.start == 0 else set()):
                meant = self.options.named_by(line[0].lstrip(":.-=) "))
                if letter in group.letters and meant not in {None, letter}:
                    return self.options.plain[meant or letter] != self.options.plain.get(letter)
        return False


def _counts(text: str, start: int, end: int) -> bool:
    """True when an option's text at this place is neither denied nor one of two possibilities."""
    before = (text, max(0, start - _WINDOW), start)
    after = (_DENIED.match(text, end), _OR_ELSE.match(text, end))
    return not any((_RULED_OUT.search(*before), _HEDGED.search(*before), *after))


def _committed(text: str, options: Options) -> str | None:
    text = bare(unstyled(bare(text))).replace("**", "")
    if alone := _ALONE.fullmatch(text):
        letter = alone.group(1).upper()
        return letter if letter in options.letters else None
    if (lead := _LEADING.match(text)) and (letter := next(filter(None, lead.groups())).upper()) in options.texts:
        rest = plain(text[lead.end() :])
        if rest == options.plain.get(letter):  # the option as it stands, whatever letters its text holds
            return letter
    return options.named_by(text) or _Reader(text, options).choice()


def _choose(answer: str, options: Options) -> str | None:
    text = legible(answer)
    if text is None:
        return None
    found = {_committed(part, options) for part in boxed(text) or [text]}
    return found.pop() if len(found) == 1 else None


def parse_options(question: str) -> dict[str, str]:
    """Returns the options of a question, letter to text: `A: 4`, `A) 4`, `(A) 4` or `A. 4`, by line or in one line."""
    return dict(read_options(question).texts)


def chosen_option(answer: str, question: str = "") -> str | None:
    """Returns the capital letter of the option that the answer commits to, or None.

    Args:
        answer: The content of the answer block.
        question: The question with its options, if it lists any; makes an option's text count as its letter.
    """
    return _choose(answer, read_options(question))


def parse_truth(truth: str, question: str = "") -> str:
    """Reads the true letter from `A`, `A)`, `(a)`, `A. text`, a box, or the option's text.

    Raises:
        UnparsableTruthError: None of these.
    """
    readable = legible(truth) or ""
    boxes = boxed(readable)
    text = bare(unstyled(boxes[-1] if boxes else readable))
    if alone := _ALONE.fullmatch(text):
        return alone.group(1).upper()
    if lead := _LEADING.match(text):
        return next(group for group in lead.groups() if group).upper()
    if same := read_options(question).named_by(text):
        return same
    raise UnparsableTruthError(f"mcq truth {truth[:60]!r} is neither an option letter nor an option's text")


def score(answer: str, truth: str, *, question: str = "") -> float:
    """Returns 1.0 when the answer commits to the true option and to no other, else 0.0.

    Args:
        answer: The content of the answer block.
        truth: The true option: `C`, `C)`, `(c)`, `C. 27` or its text.
        question: The question with its options. Where the truth is none of them, the question does not list its options
            after all (they may stand in the image), and any letter can be chosen.

    Raises:
        UnparsableTruthError: The truth names no option.
    """
    wanted, options = parse_truth(truth, question), read_options(question)
    return float(_choose(answer, options if wanted in options.letters else NO_OPTIONS) == wanted)
