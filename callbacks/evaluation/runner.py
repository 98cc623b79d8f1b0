"""One evaluation of one benchmark on all ranks: answers, verdicts, exact sums."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from callbacks.benchmarks.interface import Benchmark, EvalRecord, Judge, Score
from callbacks.evaluation.generate import Encoder, answer_rows
from callbacks.evaluation.metric import RowVerdicts, Verdicts, read_counters
from callbacks.evaluation.report import Result
from callbacks.evaluation.responses import AnswerFile, read_answers, row_digest, write_rows
from callbacks.evaluation.scoring import ScoredRow, Scorer
from lit_vlaa.checks import UsageError
from lit_vlaa.generation.protocol import EngineLostError
from lit_vlaa.lost_engine import Notice, end_if_lost
from lit_vlaa.protocols import AnsweringModule
from lit_vlaa.types import SamplingParams

_TOLD = 3
"""Rows that a warning names."""


class NoRowLeftError(ValueError):
    """Not one row of a benchmark could be put to the model, so that it has no score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """How benchmarks are put to a model."""

    trainer: Trainer
    module: AnsweringModule
    encode: Encoder
    params: SamplingParams
    batch_size: int
    judge: Judge | None
    judge_threads: int

    def run(self, benchmark: Benchmark, records: Sequence[EvalRecord], answers: Path, verdicts: Path) -> Result:
        """Evaluates; on all ranks together.

        Args:
            benchmark: Scores the answers.
            records: The rows to put to the model, the same on every rank.
            answers: Folder that keeps answers; those that are there are not asked for again.
            verdicts: The JSON Lines file to write, one line a row in the order of `records`.

        Returns:
            The numbers, the same on every rank.

        Raises:
            NoRowLeftError: If no row could be put to the model; on every rank.
            RunStoppedError: If a rank lost its rollout engine; on every rank, in training with a checkpoint. The
                answers so far are kept.
        """
        with Scorer(benchmark, self.judge, self.judge_threads) as scorer:
            failures = self._answer(records, answers, scorer)
            rows = scorer.rows()
        metric = RowVerdicts(len(records))
        metric.update(*_counters(rows, failures))
        known = read_counters(metric.to(self.trainer.strategy.root_device).compute())
        incomplete = {
            record.group[0] for record, lost in zip(records, known.failed, strict=True) if lost and record.group
        }
        kept = [
            place
            for place, record in enumerate(records)
            if known.seen[place] and not (record.group and record.group[0] in incomplete)
        ]
        own = ((row.place, (row.line(benchmark.name, benchmark.plural_tags), row.score)) for row in rows)
        everyone = dict(sorted(self._from_all_ranks(own), key=lambda pair: pair[0]))
        if self.trainer.is_global_zero:
            write_rows(verdicts, (everyone[place][0] for place in kept))
        unanswered, asked = self._warn(benchmark, scorer, failures, len(records), len(kept))
        scores = [
            replace(everyone[place][1], hit=known.hit[place], judge_calls=known.judge_calls[place]) for place in kept
        ]
        return Result(
            benchmark,
            _numbers(benchmark, records, kept, scores, known),
            judged=self.judge is not None,
            unanswered=unanswered,
            asked=asked,
        )

    def _answer(self, records: Sequence[EvalRecord], folder: Path, scorer: Scorer) -> list[tuple[int, str]]:
        """Has this rank's share of the rows answered and scored; returns the rows that could not be."""
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        # One rank looks at the images; with other files on another rank, each would take the other's rows for its own.
        digests = [row_digest(record) for record in records] if rank == 0 else []
        places = {row: place for place, row in enumerate(self.trainer.strategy.broadcast(digests))}
        stored = self._from_all_ranks(read_answers(folder, rank=rank, ranks=ranks).items())
        found = {row: answer for row, answer in stored if row in places}
        for row in sorted(found, key=places.__getitem__)[rank::ranks]:
            scorer.add(places[row], records[places[row]], found[row])
        unanswered = [row for row in places if row not in found]
        own = {row: records[places[row]] for row in unanswered[rank::ranks]}
        hidden = self.trainer.progress_bar_callback is None or rank > 0 or None  # None shows it to terminals alone
        name = f"eval {scorer.benchmark.name}"
        failures: list[tuple[int, str]] = []
        lost, notice = "", Notice()
        with (
            AnswerFile(folder, rank) as file,
            tqdm(total=len(own), desc=name, unit="row", disable=hidden, leave=False) as bar,
            self.trainer.precision_plugin.val_step_context(),
            self.module.rollout_mode(),
        ):
            try:
                for batch in answer_rows(self.module, own, self.encode, self.params, self.batch_size):
                    file.append(batch.answers)
                    for answer in batch.answers:
                        place = places[answer.row]
                        scorer.add(place, records[place], answer)
                    failures += [(places[row], reason) for row, reason in batch.failures]
                    bar.update(len(batch.answers) + len(batch.failures))
                    if notice.given():
                        break
            except EngineLostError as error:
                lost = str(error)
                notice.give()
        end_if_lost(self.trainer, lost)
        return failures

    def _from_all_ranks(self, items: Iterable[Any]) -> list[Any]:
        """What all ranks bring, in the order of the ranks."""
        own = list(items)
        if self.trainer.world_size == 1:
            return own
        gathered: list[Any] = [None] * self.trainer.world_size
        dist.all_gather_object(gathered, own)
        return [item for part in gathered for item in part]

    def _warn(
        self, benchmark: Benchmark, scorer: Scorer, failures: Sequence[tuple[int, str]], rows: int, kept: int
    ) -> tuple[int, int]:
        """Tells of rows and judge calls that came to nothing; rank 0 for all.

        Returns:
            Calls of the judge without a reply, and all of them, on all ranks.

        Raises:
            NoRowLeftError: If no row is kept.
        """
        reasons = self._from_all_ranks(reason for _, reason in failures)
        errors = self._from_all_ranks(scorer.errors)
        calls = self._from_all_ranks([(scorer.unanswered, scorer.calls)])
        unanswered, asked = (sum(column) for column in zip(*calls, strict=True))
        if not kept:
            raise NoRowLeftError(
                f"{benchmark.title}: none of the {rows} row(s) could be put to the model, so that there is no score. "
                f"{_some(reasons)}. Fetch the data again, or leave {benchmark.name} out"
            )
        if reasons:
            rank_zero_warn(
                f"{benchmark.title}: {len(reasons)} row(s) could not be put to the model; with the others of their "
                f"groups {rows - kept} are left out. {_some(reasons)}"
            )
        if errors:
            rank_zero_warn(
                f"{benchmark.title}: scoring failed for {len(errors)} row(s), undecided now. {_some(errors)}"
            )
        if unanswered:
            rank_zero_warn(f"{benchmark.title}: the judge did not answer {unanswered} of {asked} calls")
        return unanswered, asked


def _numbers(
    benchmark: Benchmark, records: Sequence[EvalRecord], kept: Sequence[int], scores: Sequence[Score], known: Verdicts
) -> dict[str, float]:
    """What the benchmark makes of the rows that are kept, and what is known of answers.

    Raises:
        UsageError: If the benchmark leaves numbers out; the answers are kept.
    """
    numbers = benchmark.aggregate([records[place] for place in kept], scores)
    if lacking := {benchmark.headline, "stderr", "undecided_rate", "n"} - numbers.keys():
        told = f"{benchmark.title}: `aggregate` of {type(benchmark).__name__} gives no {', '.join(sorted(lacking))}"
        remedy = (
            f"`callbacks.benchmarks.tally.tally` gives all; `headline` ({benchmark.headline}) is the one that counts"
        )
        raise UsageError([f"{told}; {remedy}"])
    return numbers | {
        "failed": float(sum(known.failed)),
        "truncated_rate": 100 * sum(known.truncated[place] for place in kept) / len(kept),
        "tokens": sum(known.tokens[place] for place in kept) / len(kept),
    }


def _counters(rows: Sequence[ScoredRow], failures: Sequence[tuple[int, str]]) -> tuple[list[int], dict[str, list[int]]]:
    """Places and counters for `RowVerdicts.update`."""
    places = [row.place for row in rows] + [place for place, _ in failures]
    rest = [0] * len(failures)
    return places, {
        "seen": [1] * len(rows) + rest,
        "hit": [int(row.score.hit is True) for row in rows] + rest,
        "undecided": [int(row.score.hit is None) for row in rows] + rest,
        "failed": [0] * len(rows) + [1] * len(failures),
        "truncated": [int(row.answer.finish == "length") for row in rows] + rest,
        "tokens": [row.answer.tokens for row in rows] + rest,
        "judge_calls": [row.score.judge_calls for row in rows] + rest,
    }


def _some(texts: Sequence[str]) -> str:
    return "; ".join(texts[:_TOLD]) + ("; ..." if len(texts) > _TOLD else "")
