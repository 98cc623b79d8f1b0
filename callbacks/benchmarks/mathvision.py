r"""MathVision, full test: 3,040 competition problems (1,532 multiple choice with five options, 1,508 free).

Departures between the profiles
1. `paper` takes the answer as it is. `head` looks into its first `\boxed{...}`, up to the first closing brace; `fixed`
   into its last one, whose braces may be nested.
2. In `paper` and `head` free answers are right as the same text in any case, or as numbers within 1e-6, where a root or
   pi is no number. `fixed` reads roots, pi, units and separators, and takes a decimal number of at least two places for
   a truth that it is the rounding of and that no decimal number is (2.33 for 7/3).
3. What `paper` and `head` find unequal goes to the judge; `fixed` asks it only where an answer is no number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from callbacks.benchmarks.arithmetic import same_value
from callbacks.benchmarks.ask import ask
from callbacks.benchmarks.columns import labels_of, listed, optional, required
from callbacks.benchmarks.extraction import HINTS, extraction_prompt, worded
from callbacks.benchmarks.images import row_images
from callbacks.benchmarks.interface import Benchmark, EvalRecord, Judge, Score
from callbacks.benchmarks.numbers import read_number
from callbacks.benchmarks.options import infer_option, labelled
from callbacks.benchmarks.tally import tally
from lit_vlaa.answers import bare, boxed, unstyled

_PLACEHOLDER = re.compile(r"\s{0,8}<image\d{1,2}>", re.ASCII)
_SPELLING = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[,;!: ]|\s+|(?<=\\)[dt](?=frac)|\$")
_MAX_ANSWER_CHARS = 20_000


class MathVision(Benchmark):
    """MathVision (full test set). Tags: category, and level where the source gives it."""

    name = "mathvision"
    title = "MathVision"
    file = "MathVision.tsv"
    md5 = "93f6de14f7916e598aa1b7165589831e"
    hub = ("MathLLMs/MathVision", None, "test")

    def record_from_row(self, row: Mapping[str, Any]) -> EvalRecord:
        """Reads a row.

        Args:
            row: Cells by column: index, question, image, choices, answer, category and, where it exists, level.

        Raises:
            ValueError: If a column is missing or malformed; the message names it.
        """
        question = required(row, "question")
        choices = listed(row, "choices")
        answer = required(row, "answer")
        labels = labels_of(choices, "choices")
        if choices and answer.upper() not in tuple(labels):
            raise ValueError(f"column 'answer' is {answer[:40]!r}, none of the {len(labels)} choices' letters")
        level = optional(row, "level")
        return EvalRecord(
            id=required(row, "index"),
            images=row_images(row),
            prompt=worded(question, HINTS["mc" if choices else "free"], choices),
            question=question,
            kind="mc" if choices else "free",
            choices=choices,
            answer=answer.upper() if choices else answer,
            tags={"category": optional(row, "category") or "unknown"} | ({"level": level} if level else {}),
        )

    def row_from_hub(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Brings the data set's columns (id, options, decoded_image, subject, ...) into those of the file.

        Args:
            row: A row of `MathLLMs/MathVision`. The places of images in its question are left out: they come first.
        """
        return {
            "index": row["id"],
            "question": _PLACEHOLDER.sub("", row["question"]),
            "image": row["decoded_image"],
            "choices": list(row["options"] or ()),
            "answer": row["answer"],
            "category": row.get("subject"),
            "level": row.get("level"),
        }

    def score(self, record: EvalRecord, prediction: str, judge: Judge | None) -> Score:
        """Reads the answer by rule, and by the judge what the rule cannot read.

        Args:
            record: The row.
            prediction: The reduced response.
            judge: Asked for the answer in a response, at most five times until it replies.
        """
        by_rule = self._verdict(record, prediction)
        if by_rule is not None and (by_rule[0] or record.kind == "mc" or self.profile == "fixed"):
            return Score(*by_rule, "rule")
        reply, calls = ask(judge, extraction_prompt(record.prompt, prediction, typed_hints=False), lambda text: text)
        if reply is None:
            return Score(None, None, "fallback", calls)
        hit, extracted = self._verdict(record, reply) or (False, reply.strip())
        return Score(hit, extracted, "judge", calls)

    def _verdict(self, record: EvalRecord, text: str) -> tuple[bool, str] | None:
        """Whether an answer is right, and as what it was read; None where it could not be read."""
        text = self._unboxed(text[-_MAX_ANSWER_CHARS:])
        if record.kind == "mc":
            label = infer_option(text, labelled(record.choices), self.profile)
            return None if label is None else (label == record.answer, label)
        text = text.strip()
        if self.profile == "fixed":
            verdict = _agrees(text, record.answer)
            return None if verdict is None else (verdict, text)
        return same_value(text, record.answer), text

    def _unboxed(self, text: str) -> str:
        if self.profile == "paper":
            return text
        if self.profile == "fixed":
            return (boxed(text) or [text])[-1]
        _, opened, rest = text.partition(r"\boxed{")
        inside, closed, _ = rest.partition("}")
        return inside if opened and closed else text

    def aggregate(self, records: Sequence[EvalRecord], scores: Sequence[Score]) -> dict[str, float]:
        """Share of right answers, over all and by category and level.

        Args:
            records: The rows.
            scores: Theirs, in the same order.
        """
        return tally(records, scores)


def _plain(text: str) -> str:
    return _SPELLING.sub("", unstyled(bare(text))).rstrip(".").lower()


def _agrees(text: str, truth: str) -> bool | None:
    """Whether an answer is the true one; None where neither spelling nor value can tell."""
    if text and _plain(text) == _plain(truth):
        return True
    given, wanted = read_number(text), read_number(truth)
    if given is None or wanted is None:
        return None
    rounded = not wanted.terminates and given.decimals is not None and given.decimals >= 2 and wanted.rounds_to(given)
    return given.equals(wanted) or rounded
