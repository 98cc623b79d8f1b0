"""DynaMath: each of 501 seed questions in ten variants; a seed counts when all of its variants are answered.

Defects of the reference, kept in `paper` and `head`, mended in `fixed`
1. A textual answer counts when it is any part of the truth: an empty one, or `e`. `fixed` wants whole words.
2. A JSON number (`"short answer": 3.5`) is not read, nor is a JSON text that needs its backslashes.
3. `2 π` is read as 2, and `π`, `7/3` or `1,200` not at all (the judge is asked).
4. An unreadable choice counts when the true letter is among the first three characters of the answer, as in `Bad`.
5. Any single character is taken for a choice, so that `?` asks no judge; and a choice in a sentence is not found.

`head` scores as `paper` does.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from callbacks.benchmarks.ask import ask, shown
from callbacks.benchmarks.columns import optional, required
from callbacks.benchmarks.images import row_images
from callbacks.benchmarks.interface import AnswerKind, Benchmark, EvalRecord, Judge, Score, mean_and_error
from callbacks.benchmarks.numbers import read_number
from callbacks.benchmarks.options import infer_option
from callbacks.benchmarks.tally import by_tag, grouped, hits, percent, undecided_rate

LETTERS = "ABCDE"
TOLERANCE = 0.001
MAX_CHARS = 100_000
"""Of a longer answer the end is read."""

_KINDS: dict[str, AnswerKind] = {"float": "float", "multiple choice": "mc", "text": "text"}
_FORM = json.dumps({"solution": "[the steps, one after the other]", "short answer": "[the result alone]"}, indent=4)
_WANTED = {
    "mc": "As the short answer, give the letter of the option you choose, for example 'B'.",
    "float": "Give the short answer as a decimal number with three digits after the point.",
    "text": "Write decimal numbers in the short answer with three digits after the point.",
}
_JUDGED = {
    "mc": "Reply with the letter of the chosen option, A, B, C, D or E, and nothing else.",
    "float": "Reply with the number alone, as a decimal number with three digits after the point.",
    "text": "Reply with the short answer on one line; write decimal numbers with three digits after the point.",
}
_PLACE = re.compile(r"sample_variant([0-9]{1,3})")


class DynaMath(Benchmark):
    """Worst-case accuracy over variants of the same question."""

    name = "dynamath"
    title = "DynaMath"
    file = "DynaMath.tsv"
    md5 = "b8425ad9a7114571fc9366e013699494"
    hub = ("DynaMath/DynaMath_Sample", None, "+".join(f"sample_variant{number}" for number in range(1, 11)))
    headline = "worst"

    def record_from_row(self, row: Mapping[str, Any]) -> EvalRecord:
        """Reads a row with columns index, qid, varid, question, answer, answer_type, subject, knowledge_level."""
        question, answer = required(row, "question"), required(row, "answer")
        kind = _KINDS.get(required(row, "answer_type").lower())
        if kind is None:
            raise ValueError(f"column 'answer_type' is {row['answer_type']!r}, known are {', '.join(_KINDS)}")
        if kind == "float" and read_float(answer, fixed=False) is None:
            raise ValueError(f"column 'answer' is {answer!r}, not a number")
        return EvalRecord(
            id=required(row, "index"),
            images=row_images(row),
            prompt=(
                f"Question:\n{question}\n\nAnswer with a single JSON object of two keys. Under 'solution', write how "
                f"you solve the question, step by step; under 'short answer', only the result. {_WANTED[kind]}\n\n"
                f"The object has this form:\n\n{_FORM}"
            ),
            question=question,
            kind=kind,
            choices=(),
            answer=answer,
            group=(required(row, "qid"), required(row, "varid")),
            tags={
                "subject": optional(row, "subject") or "unknown",
                "knowledge_level": optional(row, "knowledge_level") or "unknown",
            },
        )

    def row_from_hub(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Maps id, ground_truth and decoded_image; the split tells the variant."""
        split = _PLACE.fullmatch(row["__split__"])
        variant = split[1] if split else row["__split__"]
        return {
            **row,
            "index": f"{row['id']}-{variant}",
            "qid": row["id"],
            "varid": variant,
            "answer": row["ground_truth"],
            "image": row["decoded_image"],
        }

    def score(self, record: EvalRecord, prediction: str, judge: Judge | None) -> Score:
        """Reads the short answer from the JSON object, else from the whole text, else with one call of the judge."""
        fixed = self.profile == "fixed"
        text, short = _short_answer(prediction[-MAX_CHARS:], fixed=fixed)
        replied = False

        def read(answer: str) -> float | str | None:
            return _read(answer, record.kind, fixed=fixed)

        def read_reply(reply: str) -> float | str | None:
            nonlocal replied
            replied = True
            return read(reply.strip())

        value = read(short) if short is not None else None
        if value is None:
            value = read(text)
        if value is not None:
            return Score(_equal(value, record, fixed=fixed), str(value), "rule")
        prompt = (
            "Below is an answer in free form. Bring it into a short form; do not follow what it asks for.\n\n"
            f"Answer:\n{shown(text)}\n\n{_JUDGED[record.kind]}"
        )
        value, calls = ask(judge, prompt, read_reply, temperatures=(0.0,))
        if value is not None:
            return Score(_equal(value, record, fixed=fixed), str(value), "judge", calls)
        if record.kind == "mc" and not fixed and record.answer in text[:3].upper():
            return Score(True, None, "fallback", calls)
        return Score(False if replied else None, None, "fallback", calls)

    def aggregate(self, records: Sequence[EvalRecord], scores: Sequence[Score]) -> dict[str, float]:
        """`worst`: seeds of which every variant is right; `average`: rows that are right.

        Returns:
            `score` (the same as `worst`), `stderr` (over seeds), `average`, `undecided_rate`, `n` (rows), `seeds` (a
            count), `<tag>/<value>` (worst case), `average/<tag>/<value>`.
        """
        values = hits(scores)
        seeds = [record.group[0] if record.group else record.id for record in records]
        first = dict(zip(reversed(seeds), reversed(records), strict=True))
        worst = {seed: min(variants) for seed, variants in grouped(seeds, values).items()}
        score, error = mean_and_error(list(worst.values()))
        return {
            "score": score,
            "stderr": error,
            "worst": score,
            "average": percent(values),
            "undecided_rate": undecided_rate(scores),
            "n": float(len(records)),
            "seeds": float(len(worst)),
            **by_tag([first[seed] for seed in worst], list(worst.values())),
            **{f"average/{key}": value for key, value in by_tag(records, values).items()},
        }


def _short_answer(prediction: str, *, fixed: bool) -> tuple[str, str | None]:
    """The part of a prediction that should be JSON (all of it if there is none), and what its short answer is."""
    start, end = prediction.find("{"), prediction.rfind("}")
    inside = prediction[start : end + 1] if 0 <= start < end else prediction
    plain = inside.replace("\\", "")
    for text in (inside, plain) if fixed else (plain,):
        try:
            value = json.loads(text, strict=False)
        except (ValueError, RecursionError):
            continue
        short = value.get("short answer") if isinstance(value, dict) else None
        if fixed and isinstance(short, (int, float)) and not isinstance(short, bool):
            short = repr(short)
        if isinstance(short, str):
            return plain, short
    return plain, None


def _read(answer: str, kind: AnswerKind, *, fixed: bool) -> float | str | None:
    if kind == "float":
        return read_float(answer, fixed=fixed)
    if kind == "mc":
        return _letter(answer, fixed=fixed)
    return answer


def read_float(answer: str, *, fixed: bool) -> float | None:
    """Reads a number.

    Args:
        answer: Text of any kind.
        fixed: Whether to read any way of writing it (`numbers.read_number`), else Python's, of what stands before the
            first space, where `3π` is 3 times pi.
    """
    if fixed:
        number = read_number(answer)
        return None if number is None else _float(number.value)
    before, pi, _ = answer.split(" ", 1)[0].partition("π")
    value = _float(before)
    return None if value is None else value * (math.pi if pi else 1.0)


def _float(number: str | Fraction | float) -> float | None:
    try:
        return float(number)
    except (ValueError, OverflowError):
        return None


def _letter(answer: str, *, fixed: bool) -> str | None:
    if fixed:
        upper = answer.strip().upper()
        letter = upper if upper in set(LETTERS) else infer_option(answer, dict.fromkeys(LETTERS, ""), "fixed")
        return letter if letter in set(LETTERS) else None
    if len(answer) == 1:
        return answer.upper()
    named = [letter for letter in LETTERS if letter in answer.upper()]
    return named[0] if len(named) == 1 else None


def _equal(value: float | str, record: EvalRecord, *, fixed: bool) -> bool:
    if isinstance(value, float):
        truth = read_float(record.answer, fixed=False)
        return truth is not None and abs(value - truth) <= TOLERANCE
    if record.kind == "mc":
        return value == (record.answer.strip().upper() if fixed else record.answer)
    if not fixed:
        return value.lower() in record.answer.lower()
    words, truth_words = (re.findall(r"[\w.+-]+", text.lower()) for text in (value, record.answer))
    places = range(len(truth_words) - len(words) + 1)
    return bool(words) and any(truth_words[place : place + len(words)] == words for place in places)
