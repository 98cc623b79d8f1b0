"""When benchmarks are evaluated, on which rows, and where the numbers go.

Answers are greedy, and kept on disk by the weights and settings that they depend on: an evaluation that was interrupted
goes on where it stopped, on any number of ranks, and the same weights are never asked the same question twice.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from callbacks.benchmarks.interface import Benchmark, EvalRecord, Judge, Profile
from callbacks.benchmarks.published import PUBLISHED
from callbacks.benchmarks.registry import load_benchmark
from callbacks.evaluation.checkpoints import check_monitors, save_by_score
from callbacks.evaluation.computation import digests
from callbacks.evaluation.generate import Encoder
from callbacks.evaluation.progress import Progress, after_training
from callbacks.evaluation.publish import publish
from callbacks.evaluation.report import AVERAGE, Result, Scope, read_summary, scalars
from callbacks.evaluation.rows import load_rows, subset_sizes
from callbacks.evaluation.runner import NoRowLeftError, Runner
from lit_vlaa.prompts import DEFAULT_SYSTEM_PROMPT
from lit_vlaa.protocols import AnsweringModule, Preparable
from lit_vlaa.types import SamplingParams

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


class BenchmarkEvaluation(Callback):
    """Evaluates the model on benchmarks: during training on a subset, at its end and by `validate` and `test` in full.

    Logged: `eval/<benchmark>`, the number that the paper reports, in percent; `eval/<benchmark>_stderr`; further
    numbers below `eval/<benchmark>/`; `eval/average`. `ModelCheckpoint(monitor="eval/<benchmark>", mode="max")` keeps
    the best checkpoint if its `every_n_train_steps` is this callback's `every_n_steps`, a multiple of the steps that a
    batch gives. TensorBoard shows a table and a bar chart.

    Written: `<dirpath>/<benchmark>/<name>.jsonl` with every answer, what was extracted of it and the verdict, where
    name is `step_<n>`, `final`, `validate` or `test`; `<dirpath>/<name>.png`; `<dirpath>/summary.json`. An evaluation
    of the same name replaces them, so give each model a `dirpath` of its own. The answers themselves lie in folders
    named after weights and settings.
    """

    preflight = "callbacks.evaluation.preflight:run"  # what `lit-vlaa doctor` has look at the files

    def __init__(
        self,
        *,
        benchmarks: list[str] | None = None,
        custom: list[Benchmark] | None = None,
        data_dir: str | None = None,
        profile: Profile = "paper",
        every_n_steps: int | None = None,
        at_start: bool = False,
        at_end: bool = False,
        subset: dict[str, int] | int | None = None,
        subset_seed: int = 0,
        max_new_tokens: int = 800,
        batch_size: int = 128,
        system_prompt: str | None = None,
        judge: Judge | None = None,
        dirpath: str | None = None,
        base: str | None = None,
        published: str | None = None,
    ) -> None:
        """Sets what is evaluated and when; reads nothing yet.

        Args:
            benchmarks: Names of benchmarks that ship with the program.
            custom: Benchmarks of your own, and the generic one, as classes with their settings.
            data_dir: Folder of the benchmarks' TSV files; one that is not there is loaded from the Hub.
            profile: Scoring of `benchmarks`: as in the `paper`, as the reference does today (`head`), or with the
                reference's defects mended (`fixed`).
            every_n_steps: Optimiser steps between two evaluations on the subset; each takes place at the first end of
                a batch at or past a multiple. Null for none.
            at_start: Evaluate the subset ahead of the first step: the row that later ones are compared with.
            at_end: Evaluate in full when training ends.
            subset: Rows of each benchmark during training, by name or the same for all; the default comes to about 650
                rows of the paper's six, and 100 of any other. Whole groups are kept, strata are in proportion.
            subset_seed: Decides which rows these are.
            max_new_tokens: Length limit of an answer (paper: 800).
            batch_size: Rows that are prepared, answered and written together on each rank.
            system_prompt: First turn of every chat, empty for none; null takes the data module's own.
            judge: Asked where rules do not decide, such as `callbacks.benchmarks.judge.EndpointJudge`; null leaves such
                rows undecided, which count as wrong.
            dirpath: Folder of answers and results, the same for all ranks; null takes `benchmarks` in
                `--trainer.default_root_dir`.
            base: The base model's `summary.json`, whose numbers stand beside the results; null takes this run's own
                from ahead of the first step, beside those of the subset.
            published: Row of the paper's table to stand beside the results, such as `VLAA-Thinker-3B`.

        Raises:
            ValueError: If a setting is out of range or a name is unknown.
        """
        self.benchmarks: list[Benchmark] = [
            *(load_benchmark(name, profile=profile) for name in benchmarks or []),
            *(custom or []),
        ]
        names = [benchmark.name for benchmark in self.benchmarks]
        for name in names:
            if names.count(name) > 1 or name == AVERAGE or not _NAME.fullmatch(name):
                raise ValueError(
                    f"BenchmarkEvaluation: {name!r} cannot be a benchmark's name: letters, digits, `_`, `.` and `-` "
                    f"alone, each name once, and not {AVERAGE}"
                )
        if not names:
            raise ValueError("BenchmarkEvaluation: no benchmark is named; give benchmarks or custom")
        self.subset = subset_sizes(names, subset)
        numbers = {"every_n_steps": every_n_steps, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
        for option, value in numbers.items():
            if value is not None and value < 1:
                raise ValueError(f"BenchmarkEvaluation: {option} must be at least 1, got {value}")
        if published is not None and published not in PUBLISHED:
            raise ValueError(f"BenchmarkEvaluation: published {published!r} is none of {', '.join(PUBLISHED)}")
        self.base, self.published = None if base is None else Path(base).expanduser(), published
        if self.base is not None and not read_summary(self.base):
            raise ValueError(f"BenchmarkEvaluation: base {base} is no summary.json of an evaluation")
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser()
        self.every_n_steps, self.at_start, self.at_end = every_n_steps, at_start, at_end
        self.subset_seed, self.batch_size = subset_seed, batch_size
        self.params = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0)
        self.system_prompt, self.judge = system_prompt, judge
        self.dirpath = None if dirpath is None else Path(dirpath).expanduser()
        self._records: dict[str, list[EvalRecord]] = {}
        self._progress = Progress()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads the benchmarks and tries out the judge, before any work.

        Raises:
            ValueError: If data, judge or module do not serve; the message says what to do.
        """
        if stage == "predict":
            return
        if not all(hasattr(type(pl_module), name) for name in ("complete", "rollout_mode", "step_boundary")):
            raise ValueError(f"BenchmarkEvaluation: {type(pl_module).__name__} cannot answer prompts")
        if stage == "fit":
            self._progress = Progress(last=trainer.global_step)
            names = {AVERAGE, *(benchmark.name for benchmark in self.benchmarks)}
            check_monitors(trainer, pl_module, names=names, every_n_steps=self.every_n_steps)
        for benchmark in self.benchmarks:
            if benchmark.name not in self._records:
                self._records[benchmark.name] = load_rows(benchmark, self.data_dir)
        if isinstance(self.judge, Preparable):
            self.judge.prepare()
        if self.judge is None and (unjudged := [b.title for b in self.benchmarks if not b.rules_suffice]):
            rank_zero_warn(
                f"no judge is given: {', '.join(unjudged)} are scored by rules alone, not comparable with the "
                "leaderboard; see undecided_rate"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sees to what an interruption leaves of a run that has nothing left to train."""
        after_training(trainer, lambda: self._catch_up(trainer, pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates the weights that the run starts from, or ends what an interruption left."""
        if self._progress.pending:
            save_by_score(trainer, pl_module, self._on_the_way(trainer, pl_module))
        elif self.at_start and not trainer.global_step:
            self._on_the_way(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Evaluates when it is time."""
        if self._progress.due(trainer.global_step, self.every_n_steps):
            # For ModelCheckpoint; the loggers have it already, and under its own step.
            pl_module.log_dict(self._on_the_way(trainer, pl_module), logger=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates in full."""
        if self.at_end and self._progress.full != trainer.global_step:
            self._log(trainer, self._evaluate(trainer, pl_module, "final", "full"))
            self._progress.full = trainer.global_step

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates in full, where validation is a command of its own."""
        if trainer.state.fn == "validate":
            self._log_command(trainer, pl_module, "validate")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates in full."""
        self._log_command(trainer, pl_module, "test")

    def state_dict(self) -> dict[str, Any]:
        """When the last evaluation was, and whether it is still going on."""
        return asdict(self._progress)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the rhythm of the interrupted run."""
        self._progress = Progress(**state_dict)

    def _catch_up(self, trainer: Trainer, module: LightningModule) -> None:
        """Evaluates what `on_train_start` and `on_train_end` would have, had Lightning called them."""
        if self._progress.pending:
            save_by_score(trainer, module, self._on_the_way(trainer, module))
        if trainer.global_step:
            self.on_train_end(trainer, module)

    def _on_the_way(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        self._progress.last, self._progress.pending = trainer.global_step, True
        values = self._evaluate(trainer, module, f"step_{trainer.global_step}", "subset")
        self._progress.pending = False
        self._log(trainer, values)
        return values

    def _evaluate(self, trainer: Trainer, module: LightningModule, label: str, scope: Scope) -> dict[str, float]:
        """Evaluates all benchmarks and reports; training goes on afterwards as if nothing had happened.

        Raises:
            NoRowLeftError: If a benchmark has no score, once the others are reported; while training it is a warning.
        """
        started = time.perf_counter()
        policy = cast("AnsweringModule", module)
        folder = self.dirpath or Path(trainer.default_root_dir) / "benchmarks"
        prompt = self._prompt(trainer)
        results: list[Result] = []
        lost: list[str] = []
        with isolate_rng():
            weights, settings = digests(
                trainer, policy, system_prompt=prompt, max_new_tokens=self.params.max_new_tokens
            )
            runner = Runner(
                trainer=trainer,
                module=policy,
                encode=Encoder(policy.processor, prompt),
                params=self.params,
                batch_size=self.batch_size,
                judge=self.judge,
                judge_threads=getattr(self.judge, "concurrency", 1),
            )
            for benchmark in self.benchmarks:
                own = folder / benchmark.name
                rows = self._rows(benchmark, scope)
                try:
                    results.append(runner.run(benchmark, rows, own / settings, own / f"{label}.jsonl"))
                except NoRowLeftError as error:
                    lost.append(str(error))
                if trainer.training and benchmark is not self.benchmarks[-1]:
                    policy.step_boundary()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # caches of long answers lie across the room that training needs
        if trainer.is_global_zero and results:
            shown = publish(
                trainer,
                results,
                folder=folder,
                label=label,
                scope=scope,
                weights=weights,
                base=self.base,
                published=self.published,
            )
            if scope == "full":
                rank_zero_info(f"\n{shown}\n")
        rank_zero_info(f"benchmarks ({label}) took {time.perf_counter() - started:.0f} s: {folder / 'summary.json'}")
        if lost and not trainer.training:
            raise NoRowLeftError("; ".join(lost))
        for reason in lost:
            rank_zero_warn(f"{reason}. It is left out of eval/{AVERAGE}")
        return scalars(results)

    def _rows(self, benchmark: Benchmark, scope: Scope) -> list[EvalRecord]:
        records = self._records[benchmark.name]
        if scope == "full":
            return records
        return [records[place] for place in benchmark.subset(records, self.subset[benchmark.name], self.subset_seed)]

    def _prompt(self, trainer: Trainer) -> str:
        if self.system_prompt is not None:
            return self.system_prompt
        own = getattr(getattr(trainer, "datamodule", None), "prompt", None)
        prompt: str = getattr(own, "system_prompt", DEFAULT_SYSTEM_PROMPT)
        return prompt

    def _log_command(self, trainer: Trainer, module: LightningModule, label: str) -> None:
        """Logs headlines where Lightning prints them, and the rest where only loggers see it."""
        values = self._evaluate(trainer, module, label, "full")
        first = {name: value for name, value in values.items() if name.count("/") == 1}
        module.log_dict(first, rank_zero_only=True)
        self._log(trainer, {name: value for name, value in values.items() if name not in first})

    def _log(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Sends numbers to the loggers now: Lightning would wait for its own turn, or leave them out."""
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
