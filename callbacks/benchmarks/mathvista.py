"""MathVista, testmini: 1,000 questions on figures (540 multiple choice, 418 whole numbers, 40 decimals, 2 lists).

Defects of the reference, kept in `paper` and `head` and mended in `fixed`:
1. A right answer of 0 counts as none and goes to the judge.
2. A list is never right.
3. A number is right only as Python's `int` or `float` reads it, without tolerance: `14.0`, `1,000`, `14 cm` are wrong.
   `fixed` reads them, and rounds a decimal answer to the places of the truth, as the benchmark's authors do.
4. A readable number that is wrong goes to the judge nonetheless; `fixed` decides it without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from callbacks.benchmarks.ask import ask
from callbacks.benchmarks.columns import labels_of, listed, optional, required
from callbacks.benchmarks.extraction import HINTS, extraction_prompt, worded
from callbacks.benchmarks.images import row_images
from callbacks.benchmarks.interface import AnswerKind, Benchmark, EvalRecord, Judge, Score
from callbacks.benchmarks.numbers import read_number, read_numbers
from callbacks.benchmarks.options import infer_option, labelled
from callbacks.benchmarks.tally import tally

_KINDS: Mapping[str, AnswerKind] = {"integer": "int", "float": "float", "list": "list"}
_MAX_NUMBER_CHARS = 400


class MathVista(Benchmark):
    """MathVista (testmini). Tags: task, skills (several, parted by ", ") and question type."""

    name = "mathvista"
    title = "MathVista"
    file = "MathVista_MINI.tsv"
    md5 = "f199b98e178e5a2a20e7048f5dcb0464"
    hub = ("AI4Math/MathVista", None, "testmini")
    plural_tags = ("skills",)

    def record_from_row(self, row: Mapping[str, Any]) -> EvalRecord:
        """Reads a row.

        Args:
            row: Cells by column: index, question, image, question_type, answer_type, choices, answer, answer_option,
                task, skills and, where they exist, unit and precision.

        Raises:
            ValueError: If a column is missing or malformed; the message names it.
        """
        question = required(row, "question")
        form = required(row, "question_type")
        choices: tuple[str, ...] = ()
        if form == "multi_choice":
            kind: AnswerKind = "mc"
            choices = listed(row, "choices")
            answer = required(row, "answer_option")
            labels = labels_of(choices, "choices")
            if answer not in tuple(labels):
                raise ValueError(f"column 'answer_option' is {answer!r}, none of the {len(labels)} choices' letters")
        elif form == "free_form":
            number = required(row, "answer_type")
            if number not in _KINDS:
                raise ValueError(f"column 'answer_type' is {number!r}, must be one of {', '.join(_KINDS)}")
            kind = _KINDS[number]
            answer = required(row, "answer")
        else:
            raise ValueError(f"column 'question_type' is {form!r}, must be multi_choice or free_form")
        precision = optional(row, "precision")
        hint = HINTS["float" + precision[0] if kind == "float" and precision[:1] in {"1", "2"} else kind]
        return EvalRecord(
            id=required(row, "index"),
            images=row_images(row),
            prompt=worded(question, hint, choices, optional(row, "unit")),
            question=question,
            kind=kind,
            choices=choices,
            answer=answer,
            tags={
                "task": optional(row, "task") or "unknown",
                "skills": ", ".join(_skills(row)) or "unknown",
                "question_type": form,
            },
        )

    def row_from_hub(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Brings the data set's columns (pid, query, decoded_image, metadata, ...) into those of the file.

        Args:
            row: A row of `AI4Math/MathVista`. `query` is the question as the file words it.
        """
        about = row.get("metadata") or {}
        choices = list(row["choices"] or ())
        right = [label for label, text in labelled(choices).items() if text == row["answer"]]
        return {
            "index": row["pid"],
            "question": row.get("query") or row["question"],
            "image": row["decoded_image"],
            "question_type": row["question_type"],
            "answer_type": row["answer_type"],
            "choices": choices,
            "answer": row["answer"],
            "answer_option": right[0] if right else "",
            "task": about.get("task"),
            "skills": about.get("skills"),
            "unit": row.get("unit"),
            "precision": row.get("precision"),
        }

    def score(self, record: EvalRecord, prediction: str, judge: Judge | None) -> Score:
        """Reads the answer by rule, and by the judge what the rule cannot read.

        Args:
            record: The row.
            prediction: The reduced response.
            judge: Asked for the answer in a response, at most five times until it replies.
        """
        by_rule = self._verdict(record, prediction, by_rule=True)
        if by_rule is not None:
            return Score(*by_rule, "rule")
        prompt = extraction_prompt(record.prompt, prediction, typed_hints=True)
        reply, calls = ask(judge, prompt, lambda text: text)
        if reply is None:
            return Score(None, None, "fallback", calls)
        hit, extracted = self._verdict(record, reply, by_rule=False) or (False, reply.strip())
        return Score(hit, extracted, "judge", calls)

    def _verdict(self, record: EvalRecord, text: str, *, by_rule: bool) -> tuple[bool, str] | None:
        """Whether an answer is right, and as what it was read; None where it must be read by the judge."""
        if record.kind == "mc":
            label = infer_option(text, labelled(record.choices), self.profile)
            return None if label is None else (label == record.answer, label)
        text = text.strip()
        if self.profile == "fixed":
            verdict = _agrees(record, text)
            return None if verdict is None else (verdict, text)
        if record.kind == "list":
            return False, text
        value, truth = _parsed(record.kind, text), _parsed(record.kind, record.answer)
        right = value is not None and value == truth
        if by_rule and not (right and value):
            return None
        return right, text

    def aggregate(self, records: Sequence[EvalRecord], scores: Sequence[Score]) -> dict[str, float]:
        """Share of right answers, over all and by task, skill and question type.

        Args:
            records: The rows.
            scores: Theirs, in the same order.
        """
        return tally(records, scores, several=self.plural_tags)


def _skills(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The row's skills: a list, or, as in the reference, the whole cell where it is none."""
    try:
        return listed(row, "skills")
    except ValueError:
        return (optional(row, "skills"),)


def _parsed(kind: AnswerKind, text: str) -> float | int | None:
    """A number as Python reads it."""
    if len(text) > _MAX_NUMBER_CHARS:
        return None
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        return None


def _agrees(record: EvalRecord, text: str) -> bool | None:
    """Whether an answer is the true number or list; None where it cannot be read."""
    if record.kind == "list":
        given, wanted = read_numbers(text), read_numbers(record.answer)
        if given is None or wanted is None:
            return None
        return len(given) == len(wanted) and all(a.equals(b) for a, b in zip(given, wanted, strict=True))
    value, truth = read_number(text), read_number(record.answer)
    if value is None or truth is None:
        return None
    return value.rounds_to(truth) if record.kind == "float" else value.equals(truth)
