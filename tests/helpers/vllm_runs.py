"""GRPO runs whose rollouts come from a server, by arguments that JSON can carry."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from callbacks import BenchmarkEvaluation
from helpers.evaluated import ToyBenchmark, answered
from helpers.modules import InMemoryData, fit, make_module, quiet_trainer, train
from lit_vlaa.checks import RunStoppedError
from lit_vlaa.generation import VLLMGenerator
from lit_vlaa.lost_engine import Notice

_PATIENCE_S = 60.0


def generator(url: str | list[str], weights_dir: str, **options: Any) -> VLLMGenerator:
    """A generator that loses no time."""
    quick = {"backoff_s": 0.01, "start_timeout_s": 5.0}
    return VLLMGenerator(url=url, weights_dir=weights_dir, **(quick | options))


def train_by(url: str, weights_dir: str, **options: Any) -> dict[str, Any]:
    """`train` of GRPO with short completions from a server."""
    settings: dict[str, Any] = {"sampling": {"max_new_tokens": 6}, "group_size": 2}
    return train("grpo", generator=generator(url, weights_dir, retries=1), **(settings | options))


def train_under(urls: dict[str, str], weights_dir: str) -> dict[str, Any]:
    """One training on two ranks under each strategy, in the same processes, with a server for each."""
    return {name: train_by(url, weights_dir, strategy=name, devices=2) for name, url in urls.items()}


def stopped_by(urls: list[str], weights_dir: str, **options: Any) -> str:
    """Why a run ended in which every rank has a server of its own."""
    try:
        train_by(urls[int(os.environ["RANK"])], weights_dir, **options)
    except RunStoppedError as stopped:
        return str(stopped)
    return ""


def evaluation_stopped_by(urls: list[str], weights_dir: str, folder: str, **options: Any) -> tuple[str, int]:
    """The same for a run that evaluates a benchmark ahead of its first step, and how many rows this rank answered.

    After its first batch each rank waits for word that another has lost its server.
    """
    module = make_module(
        "grpo",
        sampling={"max_new_tokens": 6},
        group_size=2,
        generator=generator(urls[int(os.environ["RANK"])], weights_dir, retries=0),
    )
    evaluation = BenchmarkEvaluation(
        custom=[ToyBenchmark(rows=6)], at_start=True, max_new_tokens=4, batch_size=1, dirpath=folder
    )
    given = Notice.given

    def awaited(notice: Notice) -> bool:
        end = time.monotonic() + _PATIENCE_S
        while not given(notice) and time.monotonic() < end:
            time.sleep(0.01)
        return given(notice)

    reason = ""
    with patch.object(Notice, "given", awaited):
        try:
            fit(module, InMemoryData("grpo"), callbacks=[evaluation], default_root_dir=folder, **options)
        except RunStoppedError as stopped:
            reason = str(stopped)
    own = f"/rank{os.environ['RANK']}"
    return reason, sum(len(rows) for name, rows in answered(Path(folder)).items() if name.endswith(own))


def prediction_stopped_by(urls: list[str], weights_dir: str, **options: Any) -> str:
    """Why answers to rows ended in which every rank has a server of its own."""
    module = make_module(
        "grpo",
        sampling={"max_new_tokens": 6},
        generator=generator(urls[int(os.environ["RANK"])], weights_dir, retries=0),
    )
    data = InMemoryData("grpo")
    data.predict_dataloader = data.train_dataloader  # type: ignore[method-assign]
    try:
        quiet_trainer(**options).predict(module, data, return_predictions=False)
    except RunStoppedError as stopped:
        return str(stopped)
    return ""


def all_stopped_by(**arguments: Any) -> tuple[str, tuple[str, int], str]:
    """A run that loses a server in its first rollout, one that does in an evaluation, and one that only answers."""
    folder = arguments.pop("folder")
    return (
        stopped_by(**arguments),
        evaluation_stopped_by(folder=folder, **arguments),
        prediction_stopped_by(**arguments),
    )
