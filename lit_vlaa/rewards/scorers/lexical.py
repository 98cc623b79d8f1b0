"""The cheap scorer of open-ended answers that needs no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import add
from typing import TYPE_CHECKING

from lit_vlaa.rewards.open_ended import escape_template_tokens

if TYPE_CHECKING:
    from lit_vlaa.types import RewardRequest

MAX_CHARS = 4000
"""What is compared of a text; the rest is cut."""

_CHAR_ORDERS, _WORD_ORDERS = 6, 2
_RECALL_WEIGHT = 2**2
_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")

Counts = tuple[Counter[str], ...]
"""n-grams of a text and how often each occurs: characters of orders 1 to 6, then words of orders 1 and 2."""


class LexicalScorer:
    """chrF++ (overlap of character and word n-grams, case ignored) with the row's truth.

    Scores go from 0 (nothing shared) to `scale` (the same text), as a share of what a verbatim copy gets.

    A stand-in where no reward model is at hand: it sees neither image nor meaning. Unrelated English sentences share
    about 0.2 of their n-grams; the default baseline sits there, so that only more than that is paid. With the reward's
    default b of 0.2 a chrF of 0.3 then pays 0.33, 0.5 pays 0.70 and a verbatim copy 0.96.

    Source: Popović, "chrF++: words helping character n-grams" (2017).

    Args:
        scale: Score of a verbatim copy.
        baseline: Score up to which nothing is paid, in units of `scale`.
    """

    def __init__(self, *, scale: float = 20.0, baseline: float = 4.0) -> None:
        if not 0 <= baseline < scale:
            raise ValueError(f"baseline must lie in [0, scale), got baseline={baseline}, scale={scale}")
        self.scale = scale
        self.similarity_baseline = baseline

    def __call__(self, requests: Sequence[RewardRequest], answers: Sequence[str]) -> list[float | None]:
        """Scores each answer against its request's truth.

        Returns:
            A score in [0, scale] for each answer, 0 for an empty one; None where the request has no truth.
        """
        scores: list[float | None] = []
        for request, answer in zip(requests, answers, strict=True):
            truth, most = _reference(request.truth.strip()[:MAX_CHARS])
            scores.append(self.scale * similarity(count(answer), truth) / most if most > 0 else None)
        return scores


def _tokens(text: str) -> Iterator[str]:
    """Words; a punctuation mark at the end of one, or else at its start, is a word of its own."""
    for word in text.split():
        if len(word) > 1 and word[-1] in _PUNCTUATION:
            yield from (word[:-1], word[-1])
        elif len(word) > 1 and word[0] in _PUNCTUATION:
            yield from (word[0], word[1:])
        else:
            yield word


def count(text: str) -> Counts:
    """Counts a text's n-grams; what comes after its first `MAX_CHARS` characters is left out."""
    text = escape_template_tokens(text.strip()[:MAX_CHARS]).lower()  # answers come escaped; so the truth is read alike
    letters, words = "".join(text.split()), list(_tokens(text))
    return *_ngrams(list(letters), _CHAR_ORDERS), *_ngrams([f" {word}" for word in words], _WORD_ORDERS)


def _ngrams(pieces: list[str], orders: int) -> Iterator[Counter[str]]:
    """Counts runs of 1, 2, ... `orders` pieces, each run made of one that is shorter by a piece."""
    runs = pieces
    yield Counter(runs)
    for order in range(2, orders + 1):
        runs = list(map(add, runs, pieces[order - 1 :]))
        yield Counter(runs)


@lru_cache(maxsize=8)
def _reference(text: str) -> tuple[Counts, float]:
    """A truth's n-grams and its similarity to itself, kept for the answers of one group, which share their truth.

    A text of a few letters has no long n-grams, and so less than 1 even with itself.
    """
    counts = count(text)
    return counts, similarity(counts, counts)


def similarity(given: Counts, truth: Counts) -> float:
    """Returns chrF++ in [0, 1]: the mean over all orders of the F-score in which recall counts twice."""
    scores = []
    for mine, wanted in zip(given, truth, strict=True):
        few, many = (mine, wanted) if len(mine) < len(wanted) else (wanted, mine)
        matches = sum(min(times, many[gram]) for gram, times in few.items() if gram in many)
        precision, recall = matches / max(mine.total(), 1), matches / max(wanted.total(), 1)
        weighted = _RECALL_WEIGHT * precision + recall
        scores.append((1 + _RECALL_WEIGHT) * precision * recall / weighted if weighted else 0.0)
    return sum(scores) / len(scores)
