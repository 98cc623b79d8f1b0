"""A small benchmark with pictures, and tiny runs that are evaluated on it."""

from __future__ import annotations

import json
import os
import signal
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from callbacks import BenchmarkEvaluation
from callbacks.benchmarks.interface import Benchmark, EvalRecord, Judge, Profile, Score, mean_and_error
from helpers import modules, samples
from lit_vlaa.generation import CachedGenerator


@dataclass(frozen=True)
class Picture:
    """A generated image, or one that cannot be opened."""

    seed: int
    broken: bool = False

    @property
    def fingerprint(self) -> str:
        return str(self.seed)

    def open(self) -> Image.Image:
        if self.broken:
            raise ValueError(f"toy.tsv:{self.seed + 1}: the image is broken")
        return samples.image(84, 56, self.seed)


class ToyBenchmark(Benchmark):
    """Pairs of rows; an answer is right by chance, which its checksum decides, and undecided in one case of four.

    Args:
        rows: How many.
        broken: Rows whose image cannot be opened.
        raises: Whether scoring fails.
        profile: Of the scoring.
    """

    name = "toy"
    title = "Toy"
    headline = "pairs"
    rules_suffice = False

    def __init__(
        self, *, rows: int = 10, broken: Sequence[int] = (), raises: bool = False, profile: Profile = "paper"
    ) -> None:
        super().__init__(profile=profile)
        self.rows, self.broken, self.raises = rows, tuple(broken), raises

    def load(self, data_dir: Path | None) -> list[EvalRecord]:  # noqa: ARG002  # rows are made, not read
        return [self.record_from_row({"index": number}) for number in range(self.rows)]

    def record_from_row(self, row: Mapping[str, Any]) -> EvalRecord:
        number = int(row["index"])
        return EvalRecord(
            id=f"row{number}",
            images=(Picture(number, number in self.broken),) * (number % 3 > 0),
            prompt=f"How many red circles are there? {number}",
            question="How many?",
            kind="int",
            choices=(),
            answer=str(number),
            group=(str(number // 2), str(number % 2)),
            tags={"shade": "dark" if number % 4 < 2 else "light"},
            origin=f"toy.tsv:{number + 1}",
        )

    def score(self, record: EvalRecord, prediction: str, judge: Judge | None) -> Score:
        if self.raises:
            raise RuntimeError("no verdict on hostile text")
        luck = zlib.crc32(f"{record.id} {prediction}".encode())
        if luck % 4:
            return Score(luck % 2 == 1, prediction[:5], "rule")
        reply = None if judge is None else judge(f"{record.id}: {prediction}", 0.0)
        return Score(None if reply is None else reply == "1", None, "judge", int(judge is not None))

    def aggregate(self, records: Sequence[EvalRecord], scores: Sequence[Score]) -> dict[str, float]:
        groups: dict[str, list[bool]] = {}
        for record, score in zip(records, scores, strict=True):
            assert record.group is not None
            groups.setdefault(record.group[0], []).append(score.hit is True)
        pairs, error = mean_and_error([all(hits) for hits in groups.values()])
        single, _ = mean_and_error([score.hit is True for score in scores])
        undecided, _ = mean_and_error([score.hit is None for score in scores])
        return {
            "score": single,
            "pairs": pairs,
            "stderr": error,
            "undecided_rate": undecided,
            "n": float(len(records)),
        }


class OtherBenchmark(ToyBenchmark):
    """The same under another name, and rules suffice."""

    name = "other"
    title = "Other"
    headline = "score"
    rules_suffice = True


class CountingJudge:
    """Says yes to every question that is not about an even row.

    Args:
        dead: Never answers.
        refuses: Fails when it is tried out.
    """

    concurrency = 3

    def __init__(self, *, dead: bool = False, refuses: bool = False) -> None:
        self.dead, self.refuses = dead, refuses
        self.asked: list[str] = []

    def prepare(self) -> None:
        if self.refuses:
            raise ValueError("the judge at http://127.0.0.1:9 does not answer: start it first")

    def __call__(self, prompt: str, temperature: float) -> str | None:  # noqa: ARG002
        self.asked.append(prompt)
        if self.dead:
            return None
        return str(int(prompt.partition(":")[0].removeprefix("row")) % 2)


@dataclass(frozen=True)
class FatalPicture(Picture):
    """Kills the process that opens it, once."""

    marker: str = ""

    def open(self) -> Image.Image:
        if self.marker and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return samples.image(84, 56, self.seed)


class FatalBenchmark(ToyBenchmark):
    """Kills the process at one row, once.

    Args:
        at: The row.
        marker: File that says that it has happened.
        rows: How many.
    """

    def __init__(self, *, at: int, marker: str, rows: int = 10) -> None:
        super().__init__(rows=rows)
        self.at, self.marker = at, marker

    def record_from_row(self, row: Mapping[str, Any]) -> EvalRecord:
        record = super().record_from_row(row)
        number = int(row["index"])
        return replace(record, images=(FatalPicture(number, marker=self.marker),)) if number == self.at else record


def command(name: str, root: Path, custom: Sequence[dict[str, Any]], **options: Any) -> list[str]:
    """A command that evaluates the tiny model alone.

    Args:
        name: `test` or `validate`.
        root: Where logs and results go.
        custom: Benchmarks as class paths with arguments.
        options: More flags, with two underscores for a dot; those of the callback begin with `eval__`.
    """
    callback = {"max_new_tokens": 8, "batch_size": 2, "custom": json.dumps(list(custom))}
    callback |= {key.removeprefix("eval__"): value for key, value in options.items() if key.startswith("eval__")}
    flags: dict[str, Any] = {
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.default_root_dir": root,
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
        "model.backbone.max_pixels": 84 * 84,
        "data.system_prompt": "Think.",
    }
    flags |= {key.replace("__", "."): value for key, value in options.items() if not key.startswith("eval__")}
    classes = ["--model", "lit_vlaa.sft.SFTModule", "--data", "datamodules.NoRows"]
    classes += ["--trainer.callbacks=callbacks.BenchmarkEvaluation"]
    return [
        name,
        *classes,
        *(f"--trainer.callbacks.{key}={value}" for key, value in callback.items()),
        *(f"--{key}={value}" for key, value in flags.items()),
    ]


def toy(**arguments: Any) -> dict[str, Any]:
    """`ToyBenchmark` as a config names it."""
    return {"class_path": "helpers.evaluated.ToyBenchmark", "init_args": arguments}


def verdicts(folder: Path, name: str = "test", benchmark: str = "toy") -> list[dict[str, Any]]:
    """The lines of a file of verdicts below `dirpath`."""
    return [json.loads(line) for line in (folder / benchmark / f"{name}.jsonl").read_text().splitlines()]


def answered(folder: Path, benchmark: str = "toy") -> dict[str, list[str]]:
    """Ids of the answers on disk without torn ones, by the name of their file: `settings/rank0`."""
    return {
        f"{path.parent.name}/{path.stem}": [
            json.loads(line)["id"] for line in path.read_text().splitlines() if line.endswith("}")
        ]
        for path in sorted((folder / benchmark).glob("*/rank*.jsonl"))
    }


def trained(folder: str, kind: str, strategy: str, devices: int, evaluated: bool) -> dict[str, Any]:
    """A tiny training with or without evaluations and a checkpoint by score; what it logged, and its weights."""
    callbacks: list[Callback] = []
    if evaluated:
        callbacks = [
            BenchmarkEvaluation(
                custom=[ToyBenchmark(rows=7), OtherBenchmark(broken=(1,))],
                every_n_steps=2,
                at_start=True,
                at_end=True,
                subset=5,
                max_new_tokens=5,
                batch_size=2,
                dirpath=folder,
            ),
            ModelCheckpoint(dirpath=f"{folder}/best", monitor="eval/average", mode="max", every_n_train_steps=2),
        ]
    options: dict[str, Any] = {"generator": CachedGenerator(), "seed": 3} if kind == "grpo" else {}
    return modules.fit(
        modules.make_module(kind, **options),
        modules.InMemoryData(kind),
        strategy=strategy,
        devices=devices,
        callbacks=callbacks,
        enable_checkpointing=evaluated,
    )


def trained_all(folder: str, runs: list[list[str]]) -> list[list[dict[str, Any]]]:
    """For each kind and strategy what a training gave without evaluations, and with them."""
    return [
        [trained(f"{folder}/{kind}-{strategy}", kind, strategy, 2, evaluated) for evaluated in (False, True)]
        for kind, strategy in runs
    ]
