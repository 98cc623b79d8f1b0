"""Runs `lit-vlaa` commands on a small generated data set, in this process or in several ranks, and reads their logs."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import Callback, Trainer

from helpers import launch
from helpers.hatchery import Hatched, hatchery
from lit_vlaa.cli import main

MODULES = {"sft": "lit_vlaa.sft.SFTModule", "grpo": "lit_vlaa.grpo.GRPOModule"}
_QUIET = {"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False}
_CLOCK = ("time/", "rollout/tokens_per_second", "train/tokens_per_second")


def lit(*words: str) -> int:
    """Runs one command in this process; returns its exit code.

    On one thread: sums have one order then, so that runs can be compared bit by bit.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mock.patch.object(sys, "argv", ["lit-vlaa"]), mock.patch.dict(os.environ, environment, clear=True):
            return main(words)
    finally:
        torch.set_num_threads(threads)


def started(words: Sequence[str], log: Path, *, cwd: Path, rank: int | None = None, port: int = 0) -> Hatched:
    """Starts a command in a process and a session of its own; what it prints goes to `log`.

    It is forked from a process that has imported everything, so Lightning cannot start further ranks from it.

    Args:
        words: After `lit-vlaa`.
        log: Written anew.
        cwd: Where it runs.
        rank: Which of two ranks it is; None for a command of one process.
        port: Where the two meet.
    """
    environment = launch.environment_alone() if rank is None else launch.environment_of_rank(rank, 2, port)
    log.write_bytes(b"")
    return hatchery(rank or 0, environment).start(
        target="helpers.commands:program", arguments=list(words), environment=environment, cwd=str(cwd), log=log
    )


def program() -> None:
    """What a process of `started` does."""
    sys.exit(main(sys.argv[1:]))


def lit_in_ranks(*commands: Sequence[str], code: int = 0, ranks: int = 2, timeout: float = 150) -> None:
    """Runs commands one after the other in the same few processes, as a launcher such as torchrun would start them.

    Raises:
        AssertionError: If one of them does not end with `code`.
    """
    # Each command makes a process group of its own, and a port may linger after the last one.
    ports = [launch.free_port() for _ in commands]
    codes = launch.run_ranks(
        "helpers.commands:run_all", ranks=ranks, timeout=timeout, commands=[list(c) for c in commands], ports=ports
    )
    assert codes == [[code] * len(commands)] * ranks, codes


def run_all(commands: list[list[str]], ports: list[int]) -> list[int]:
    """What every rank of `lit_in_ranks` does."""
    codes = []
    for words, port in zip(commands, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        codes.append(lit(*words))
    return codes


def run_own(commands: list[list[str]]) -> str:
    """What a rank does that has a command of its own; gives the error that the command does not catch."""
    try:
        lit(*commands[int(os.environ["RANK"])])
    except RuntimeError as error:
        return str(error)
    return ""


def command(name: str, stage: str, data: Path, root: Path, **options: Any) -> list[str]:
    """A command on the generated data set in `data`.

    Args:
        name: `fit`, `validate`, `test` or `predict`.
        stage: `sft` or `grpo`.
        data: Folder that `lit-vlaa data synthetic` wrote.
        root: Where the run's logs go.
        options: More flags, with two underscores for a dot (`trainer__max_steps=3`).
    """
    file = data / f"VLAA-Thinking-{stage.upper()}"
    flags: dict[str, Any] = {
        **_QUIET,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.default_root_dir": root,
        "trainer.num_sanity_val_steps": 0,
        "trainer.log_every_n_steps": 1,
        "model.backbone.max_pixels": 84 * 84,
        "model.sampling.max_new_tokens": 40,
        "data.split": stage,
        "data.data_file": f"{file}.json",
        "data.val_file": f"{file}-val.json",
        "data.test_file": f"{file}-test.json",
        "data.image_root": data / "images",
        "data.batch_size": 16,
        "data.eval_batch_size": 16,
        "data.num_workers": 0,
        "data.prompt.system_prompt": "",
    }
    if stage == "grpo":
        flags |= {"model.reward.math_workers": 1, "model.train_batch_size": 8}
    flags |= {key.replace("__", "."): value for key, value in options.items()}
    classes = ["--model", MODULES[stage], "--data", "datamodules.VLAAThinkingDataModule"]
    return [name, *classes, *(f"--{key}={value}" for key, value in flags.items())]


def version(root: Path, number: int = 0) -> Path:
    """The log folder of a run below `root`."""
    return root / f"version_{number}"


def checkpoint(root: Path, name: str = "", number: int = 0) -> Path:
    """A checkpoint of the first run below `root`, or of another; without a name the only one there."""
    folder = version(root, number) / "checkpoints"
    if name:
        return folder / name
    (path,) = folder.iterdir()
    return path


def logged(root: Path, number: int = 0) -> list[dict[str, float]]:
    """Rows of `metrics.csv` of the first run below `root`, or of another, without empty cells and times."""
    with (version(root, number) / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items() if v and not k.startswith(_CLOCK)} for row in rows]


def column(rows: Sequence[dict[str, float]], name: str) -> list[float]:
    """The values of one metric, by step."""
    return [row[name] for row in rows if name in row]


class StopAt(Callback):
    """Ends a run early without telling it in advance: by request or by an error."""

    def __init__(self, *, step: int, error: bool = False) -> None:
        self.step = step
        self.error = error

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step < self.step:
            return
        if self.error:
            raise RuntimeError("the machine went away")
        trainer.should_stop = True
