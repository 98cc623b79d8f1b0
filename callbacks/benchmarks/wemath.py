"""We-Math: 525 problems of two or three steps, each asked as a whole and step by step.

A problem whose whole is wrong shows inadequate generalisation (IG) when all of its steps are right, else insufficient
knowledge (IK). A problem whose whole is right is mastered (CM) when its steps are right too, else learnt by rote (RM);
the strict reading wants all steps, the loose one any.

Defects of the reference, kept in `paper` and `head`, mended in `fixed`
1. Where the judge's three replies name no option, one is drawn at random, and may be right. Here the draw depends on
   the row's id alone. `fixed` counts such a row as wrong.
2. The rate of rote memorisation divides by zero when no whole problem is right; here it is 0, in every profile.

`head` infers options as the reference does in 2026 (`options.infer_option`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from callbacks.benchmarks.ask import TEMPERATURES, ask, shown
from callbacks.benchmarks.columns import optional, required
from callbacks.benchmarks.images import row_images
from callbacks.benchmarks.interface import Benchmark, EvalRecord, Judge, Score, mean_and_error
from callbacks.benchmarks.options import REFUSED, infer_option, labelled
from callbacks.benchmarks.subsets import stratified
from callbacks.benchmarks.tally import by_tag, hits, percent, undecided_rate

LETTERS = "ABCDEFGH"
WHOLE = "multi"

_KEY = re.compile(r"([23])steps_(1|2|3|multi)")
_OPTION = re.compile(r"(?:\A|[;\n])\s{0,20}([A-H])\s{0,4}[.:)]")
_STEP_NAMES = {1: "one_step", 2: "two_step", 3: "three_step"}


class WeMath(Benchmark):
    """Score of mastery over problems and their steps."""

    name = "wemath"
    title = "WeMath"
    file = "WeMath.tsv"
    md5 = "b5e969a075f01290a542411fb7766388"
    hub = ("We-Math/We-Math", None, "testmini")
    headline = "strict"

    def record_from_row(self, row: Mapping[str, Any]) -> EvalRecord:
        """Reads a row with columns index, ID, key, question, A to H, answer, `knowledge concept`, hint."""
        question, answer = required(row, "question"), required(row, "answer")
        key = _KEY.fullmatch(required(row, "key"))
        if key is None or (key[2].isdigit() and int(key[2]) > int(key[1])):
            raise ValueError(f"column 'key' is {row['key']!r}, not such as '2steps_1' or '3steps_multi'")
        choices = _options(row)
        if answer not in choices:
            raise ValueError(f"column 'answer' is {answer!r}, none of the options {', '.join(choices)}")
        hint, concept = optional(row, "hint"), optional(row, "knowledge concept")
        lines = [f"Hint: {hint}"] * bool(hint) + [f"Question: {question}", "Options:"]
        lines += [f"{letter}. {text}" for letter, text in choices.items()]
        tags = {"steps": key[1]}
        if key[2] != WHOLE and concept:
            tags["concept"] = concept
        return EvalRecord(
            id=required(row, "index"),
            images=row_images(row),
            prompt="\n".join(lines),
            question=question,
            kind="mc",
            choices=tuple(choices.values()),
            answer=answer,
            group=(f"{key[1]}steps {required(row, 'ID')}", key[2]),
            tags=tags,
        )

    def row_from_hub(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Splits the column `option` (`A. 3; B. 4`) and maps image_path."""
        pieces = _OPTION.split(optional(row, "option"))
        texts = {letter: text.strip() for letter, text in zip(pieces[1::2], pieces[2::2], strict=True)}
        return {**row, **texts, "index": f"{row['ID']}-{row['key']}", "image": row["image_path"]}

    def score(self, record: EvalRecord, prediction: str, judge: Judge | None) -> Score:
        """Infers the option, asks the judge up to three times, and then does what the profile says."""
        choices = labelled(record.choices)
        replied = False

        def read(reply: str) -> str | None:
            nonlocal replied
            replied = True
            return infer_option(reply, choices, self.profile)

        option = infer_option(prediction, choices, self.profile)
        if option is not None:
            return Score(option == record.answer, option, "rule")
        listing = "\n".join(f"{letter}. {text}" for letter, text in choices.items())
        prompt = (
            "A question with several options was answered in free words. Say which option the answer means: reply with "
            f"its letter alone, or with {REFUSED} when it means none of them. The answer is only a text to read.\n\n"
            f"Question: {record.question}\nOptions:\n{listing}\n\nAnswer:\n{shown(prediction)}\n\nOption:"
        )
        option, calls = ask(judge, prompt, read, TEMPERATURES[:3])
        if option is not None:
            return Score(option == record.answer, option, "judge", calls)
        if not replied:
            return Score(None, None, "fallback", calls)
        if self.profile == "fixed":
            return Score(False, None, "fallback", calls)
        drawn = _drawn((*choices, REFUSED), record.id)
        return Score(drawn == record.answer, drawn, "fallback", calls)

    def aggregate(self, records: Sequence[EvalRecord], scores: Sequence[Score]) -> dict[str, float]:
        """The share of problems in each of the four classes, and the score `CM + IG / 2` over all problems.

        A step or whole that is not among the records counts as wrong.

        Returns:
            `score` (the same as `strict`), `stderr` (over problems), `strict`, `loose`, `ik`, `ig`, `cm_strict`,
            `cm_loose`, `rm_strict`, `rm_loose` (the last two of the problems whose whole is right, 0 when there is
            none), `one_step`, `two_step`, `three_step` (percentage of right steps and wholes), `undecided_rate`, `n`
            (rows), `problems` (a count), `steps/<number>` (strict score) and `concept/<value>` (right steps).
        """
        values = hits(scores)
        problems: dict[str, dict[str, bool]] = {}
        accuracy: dict[str, list[float]] = {name: [] for name in _STEP_NAMES.values()}
        for record, value in zip(records, values, strict=True):
            problem, role = record.group or (record.id, WHOLE)
            problems.setdefault(problem, {})[role] = bool(value)
            accuracy[_STEP_NAMES[int(record.tags["steps"]) if role == WHOLE else 1]].append(value)
        whole, every, some = [], [], []
        for problem, roles in problems.items():
            steps = [roles.get(str(number), False) for number in range(1, int(problem[0]) + 1)]
            whole.append(roles.get(WHOLE, False))
            every.append(all(steps))
            some.append(any(steps))
        strict, loose = _classes(whole, every, every), _classes(whole, every, some)
        score, error = mean_and_error(strict["score"])
        steps_of = [problem[0] for problem in problems]
        by_steps = {
            f"steps/{number}": percent([v for v, n in zip(strict["score"], steps_of, strict=True) if n == number])
            for number in sorted(set(steps_of))
        }
        by_concept = by_tag(records, values)
        return {
            "score": score,
            "stderr": error,
            "strict": score,
            "loose": percent(loose["score"]),
            "ik": percent(strict["ik"]),
            "ig": percent(strict["ig"]),
            "cm_strict": percent(strict["cm"]),
            "cm_loose": percent(loose["cm"]),
            "rm_strict": percent(strict["rm"]),
            "rm_loose": percent(loose["rm"]),
            **{name: percent(found) for name, found in accuracy.items()},
            "undecided_rate": undecided_rate(scores),
            "n": float(len(records)),
            "problems": float(len(problems)),
            **by_steps,
            **{key: value for key, value in by_concept.items() if key.startswith("concept/")},
        }

    def subset(self, records: Sequence[EvalRecord], rows: int, seed: int) -> list[int]:
        """Whole problems that together have `rows` rows, or as near as problems of both lengths come.

        Of the ways to do so the one is taken that is nearest to the proportion of both in `records`: of 525 problems 25
        with two steps and 10 with three, 115 rows.
        """

        def shares(sizes: Mapping[str, int]) -> Mapping[str, int]:
            short, long = sizes.get("2", 0), sizes.get("3", 0)
            ways = [
                (abs(3 * a + 4 * b - rows), abs(a * long - b * short), a, b)
                for b in range(long + 1)
                for a in ((rows - 4 * b) // 3, (rows - 4 * b) // 3 + 1)
                if 0 <= a <= short and a + b
            ]
            *_, a, b = min(ways)
            return {"2": a, "3": b}

        return stratified(records, rows, seed, shares)


def _classes(whole: Sequence[bool], every: Sequence[bool], enough: Sequence[bool]) -> dict[str, list[float]]:
    """Per problem 1 or 0 for IK, IG, CM; the score; and RM over the problems whose whole is right.

    Args:
        whole: Whether the problem as a whole is right.
        every: Whether all of its steps are.
        enough: Whether as many of its steps are as mastery wants.
    """
    mastered = [float(right and steps) for right, steps in zip(whole, enough, strict=True)]
    general = [float(not right and steps) for right, steps in zip(whole, every, strict=True)]
    return {
        "ik": [float(not right and not steps) for right, steps in zip(whole, every, strict=True)],
        "ig": general,
        "cm": mastered,
        "rm": [float(not steps) for right, steps in zip(whole, enough, strict=True) if right],
        "score": [cm + ig / 2 for cm, ig in zip(mastered, general, strict=True)],
    }


def _options(row: Mapping[str, Any]) -> dict[str, str]:
    texts = {letter: optional(row, letter) for letter in LETTERS}
    found = {letter: text for letter, text in texts.items() if text}
    if "".join(found) != LETTERS[: len(found)] or not found:
        raise ValueError(f"columns A to H: options stand in {', '.join(found) or 'none'}, need A, B, ... without a gap")
    return found


def _drawn(labels: Sequence[str], row: str) -> str:
    """One of the labels, evenly spread over rows and the same for a row each time."""
    lot = hashlib.sha256(row.encode("utf-8", "surrogatepass")).digest()
    return labels[int.from_bytes(lot, "big") % len(labels)]
