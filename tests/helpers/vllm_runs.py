"""GRPO runs whose rollouts come from a server, by arguments that JSON can carry."""

from __future__ import annotations

import os
from typing import Any

from helpers.modules import train
from lit_vlaa.checks import RunStoppedError
from lit_vlaa.generation import VLLMGenerator


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
