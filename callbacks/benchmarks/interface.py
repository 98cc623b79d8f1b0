"""What a benchmark is: rows that become prompts, a rule for scoring a response, and a formula over all scores."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from PIL import Image

Profile = Literal["paper", "head", "fixed"]
"""Whose scoring to follow: the reference's as of the paper (April 2025), as of 2026, or with its defects mended."""

AnswerKind = Literal["mc", "int", "float", "list", "text", "free"]

Method = Literal["rule", "judge", "fallback"]

Judge = Callable[[str, float], str | None]
"""A language model: (prompt, temperature) -> reply; None when it could not be reached."""


class EvalImage(Protocol):
    """An image that is not decoded before it is needed. Survives pickling."""

    @property
    def fingerprint(self) -> str:
        """Another text for another image; the same on every machine. Empty where the image cannot be read.

        Answers are known again by it, so make it of the content, not of a file's name or time.
        """

    def open(self) -> Image.Image:
        """The image as RGB.

        Raises:
            ValueError: If it cannot be decoded; the message names the row.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRecord:
    """One row of a benchmark."""

    id: str
    """Unique in the benchmark: the row's `index`."""
    images: tuple[EvalImage, ...]
    """In the order in which they precede the prompt."""
    prompt: str
    """What the model reads after the images."""
    question: str
    """The question alone, for the judge."""
    kind: AnswerKind
    choices: tuple[str, ...]
    """Texts of the options A, B, ...; empty for other kinds."""
    answer: str
    """As in the file; of a `mc` row the letter."""
    group: tuple[str, str] | None = None
    """(problem, role) of rows that count together; a subset keeps problems whole."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """What scores are broken down by, such as `{"subject": "algebra"}`; the first one stratifies subsets."""
    origin: str = ""
    """`file:row` (rows counted from 1), for messages to the user."""


@dataclass(frozen=True, slots=True)
class Score:
    """The verdict on one response."""

    hit: bool | None
    """None where neither rule nor judge decided; counts as wrong, and is reported."""
    extracted: str | None
    """The answer that was judged; None when none was found."""
    method: Method
    """What decided: a rule, the judge, or what the reference does when both failed."""
    judge_calls: int = 0


class Benchmark(ABC):
    """A benchmark under one scoring profile. Subclasses hold no state beyond their settings and survive pickling."""

    name: str
    """As in `eval/<name>` and in file names, such as `mathvista`."""
    title: str
    """For tables and pictures, such as `MathVista`."""
    file: ClassVar[str] = ""
    """Name of the TSV file in the folder of benchmark data."""
    md5: ClassVar[str | None] = None
    """Of the TSV file."""
    hub: ClassVar[tuple[str, str | None, str] | None] = None
    """Hub data set: repository, configuration (or None), split."""
    headline: ClassVar[str] = "score"
    """Key of `aggregate` that the paper reports."""
    plural_tags: ClassVar[tuple[str, ...]] = ()
    """Tags whose text holds several values, parted by ", "; a row counts for each."""
    rules_suffice: ClassVar[bool] = True
    """False where the score without a judge cannot be compared with the leaderboard's."""

    def __init__(self, *, profile: Profile = "paper") -> None:
        """Chooses the scoring.

        Args:
            profile: `paper`, `head` or `fixed`.

        Raises:
            ValueError: If it is another.
        """
        if profile not in {"paper", "head", "fixed"}:
            raise ValueError(f"profile must be paper, head or fixed, got {profile!r}")
        self.profile: Profile = profile

    @abstractmethod
    def record_from_row(self, row: Mapping[str, Any]) -> EvalRecord:
        """Reads one row of the TSV file.

        Args:
            row: Cells by column, as text. `image` holds base64, or a list's repr of several.

        Raises:
            ValueError: If a column is missing or malformed; the message names it.
        """

    def row_from_hub(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Brings a row of the Hub data set into the columns of the TSV file.

        Args:
            row: The data set's columns. Images are tuples of `EvalImage`, to be handed on as they are under `image`.
                The keys `__split__` and `__row__` (from 1, as text) tell the row's place.
        """
        return row

    def load(self, data_dir: Path | None) -> list[EvalRecord]:
        """Reads all rows: from the TSV file in `data_dir`, else from the Hub data set.

        Raises:
            ValueError: If there is neither, or a row is malformed; the message names file and row.
        """
        from callbacks.benchmarks.source import load_records  # noqa: PLC0415  # it imports this module

        return load_records(self, data_dir)

    def keeps_hub_row(self, row: Mapping[str, Any]) -> bool:  # noqa: ARG002  # for subclasses
        """Whether a row of the Hub data set belongs to this benchmark; asked before `row_from_hub`."""
        return True

    def reduce(self, response: str) -> str:
        """What of a response is scored: the inside of its only answer block, else all of it."""
        return reduced(response)

    @abstractmethod
    def score(self, record: EvalRecord, prediction: str, judge: Judge | None) -> Score:
        """Judges one answer.

        Args:
            record: The row.
            prediction: What `reduce` left of the response.
            judge: Asked where rules do not decide; None without one.
        """

    @abstractmethod
    def aggregate(self, records: Sequence[EvalRecord], scores: Sequence[Score]) -> dict[str, float]:
        """The benchmark's numbers, a pure function of its rows' verdicts.

        Args:
            records: The rows that were scored: all of them, or a subset with whole groups.
            scores: Theirs, in the same order, as `score` returned them, pickled on their way between ranks; a row whose
                scoring failed has `Score(None, None, "fallback")`.

        Returns:
            Percentages: at least `score`, `stderr` (standard error of the headline), `undecided_rate`, `n` (rows, a
            count) and `<tag>/<value>` for each tag.
        """

    def subset(self, records: Sequence[EvalRecord], rows: int, seed: int) -> list[int]:
        """Chooses about `rows` rows, stratified and with whole groups, the same for every call with these arguments.

        Returns:
            Their places, ascending.
        """
        from callbacks.benchmarks.subsets import stratified  # noqa: PLC0415  # it imports this module

        return stratified(records, rows, seed)


def reduced(response: str) -> str:
    """The inside of the only `<answer>...</answer>` block, stripped, else the whole response."""
    if response.count("<answer>") == 1 and response.count("</answer>") == 1:
        _, _, rest = response.partition("<answer>")
        inside, closed, _ = rest.partition("</answer>")
        if closed:
            return inside.strip()
    return response


def mean_and_error(hits: Sequence[float]) -> tuple[float, float]:
    """Mean of values in [0, 1] and its standard error, both in percent; (0, 0) of nothing.

    The error is that of independent draws, with the sample variance's n - 1; 0 for a single value.
    """
    n = len(hits)
    if not n:
        return 0.0, 0.0
    mean = sum(hits) / n
    variance = sum((hit - mean) ** 2 for hit in hits) / (n - 1) if n > 1 else 0.0
    return 100 * mean, 100 * math.sqrt(variance / n)
