"""Trainings whose ranks get unlike work, to be run on one device, under DDP and under FSDP2 with the same outcome."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks import TrainingGuards
from helpers.modules import BATCH, BATCHES, InMemoryData, fit, make_module
from helpers.samples import image, sample
from lit_vlaa.checks import RunStoppedError
from lit_vlaa.training_guards import Truncation
from lit_vlaa.types import Completion, RewardRequest, RewardResult, Sample

# Adam divides gradients by their own size plus epsilon; with the stock 1e-8 it would carry rounding in gradients near
# zero into the weights at the size of the learning rate.
_COMMON: dict[str, Any] = {"optim": {"eps": 1e-3}, "max_tokens_per_micro_batch": 130}
_GRPO: dict[str, Any] = {**_COMMON, "kind": "grpo"}

CASES: dict[str, dict[str, Any]] = {
    "sft, text and images": {**_COMMON, "kind": "sft", "images": (1, 0, 2, 0)},
    "sft, several images a row": {**_COMMON, "kind": "sft", "images": (3, 2, 0, 4)},
    "sft, a rank without images": {**_COMMON, "kind": "sft", "images": (0, 2, 0, 1)},
    "sft, a rank without images, frozen tower": {
        **_COMMON,
        "kind": "sft",
        "images": (0, 2, 0, 1),
        "backbone": {"freeze": ("vision",)},
    },
    "grpo, several steps a rollout": {**_GRPO, "num_iterations": 2},
    "grpo, several images a row": {**_GRPO, "images": (3, 2, 0, 4)},
    "grpo, a rank without images": {**_GRPO, "images": (0, 2, 0, 1)},
    "grpo, a rank without images, frozen tower": {
        **_GRPO,
        "images": (0, 2, 0, 1),
        "backbone": {"freeze": ("vision",)},
        "num_iterations": 2,
        "generator": None,
        "seed": 5,
    },
    "grpo, adaptive KL": {**_GRPO, "batches": 3, "kl": {"coefficient": 0.1, "target": 1e-6, "horizon": 40}},
    "grpo, KL in the reward": {**_GRPO, "kl": {"coefficient": 0.1, "place": "reward", "estimator": "k1"}},
    "grpo, scale of the batch": {**_GRPO, "advantage": {"scale": "batch"}},
    "grpo, resampling": {**_GRPO, "advantage": {"resample": 3}},
    "grpo, resampled rollouts of its own": {**_GRPO, "advantage": {"resample": 2}, "generator": None, "seed": 5},
    "grpo, failures and truncation": {
        **_GRPO,
        "failing": ("row0", "row2", "row5"),
        "loss": {"mask_truncated": True, "aggregation": "token_mean"},
    },
    "grpo, other losses": {
        **_GRPO,
        "num_iterations": 2,
        "loss": {"ratio": "sequence", "aggregation": "constant_length", "clip_low": 1e-3, "dual_clip": 1.01},
        "advantage": {"length_penalty": 0.5, "length_buffer": 20, "weights": {"digit": 2.0}},
    },
}


class Rows(InMemoryData):
    """Rows with `images[i % 4]` images; with two ranks the even rows are rank 0's."""

    def __init__(self, kind: str, images: tuple[int, ...]) -> None:
        super().__init__(kind)
        self.images = images

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        mine: Any = self.samples()[trainer.global_rank :: trainer.world_size]
        return DataLoader(mine, batch_size=BATCH // trainer.world_size, collate_fn=self.collate)

    def samples(self) -> list[Sample]:
        rows = []
        for index in range(BATCH * BATCHES):
            images = tuple(image(84, 56, index + part) for part in range(self.images[index % 4]))
            question = "How many red circles?" + " please" * (index % 3)
            rows.append(sample(f"row{index}", question, images, str(index % 5)))
        return rows


class Keyed:
    """Completions of 5 to 40 tokens that depend on prompt, sample and attempt; every fifth is cut off.

    At first the answers of rows 0, 3 and 6 are all alike; drawn again, row 3's stay so.
    """

    def generate(self, backbone: Any, prompts: Any, *, group_size: int, key: Any, **_: Any) -> list[list[Completion]]:
        return [[self._one(backbone, prompt, place, key.attempt) for place in range(group_size)] for prompt in prompts]

    def _one(self, backbone: Any, prompt: Any, place: int, attempt: int) -> Completion:
        row = int(prompt.record.id.removeprefix("row"))
        alike = row in {0, 3, 6} and (attempt == 0 or row == 3)
        answer = prompt.record.truth if alike or place == 0 else place + 5
        text = f"<think> {'so ' * ((3 * row + 5 * place + attempt) % 16)}</think><answer>{answer}</answer>"
        tokens = backbone.processor.encode_response(text)
        cut = (row + place) % 5 == 4
        tokens = tokens[:-1] if cut else tokens
        generator = torch.Generator().manual_seed(1000 * row + place)
        logprobs = torch.rand(len(tokens), generator=generator) * 0.2 - 3.0
        return Completion(tokens, logprobs, "length" if cut else "stop")


class Judge:
    """1 for the prompt's number, half for other answers of some lengths; no verdict on rows that fail."""

    def __init__(self, failing: tuple[str, ...]) -> None:
        self.failing = failing

    def __call__(self, requests: list[RewardRequest]) -> list[RewardResult]:
        results = []
        for request in requests:
            right = f"<answer>{request.truth}<" in request.response
            value = 1.0 if right else 0.5 * (len(request.response) % 4 == 0)
            failed = request.id in self.failing
            results.append(RewardResult(value, request.kind, request.truth, "timeout" if failed else "ok"))
        return results

    def close(self) -> None:
        """Nothing to end."""


class Rewards(Callback):
    """Keeps rewards and advantages by prompt and rollout."""

    def __init__(self) -> None:
        self.seen: dict[str, list[list[float]]] = {}

    def on_train_batch_end(self, *arguments: Any) -> None:
        _, _, outputs, _, batch_idx = arguments
        for group in (outputs or {}).get("rollout", ()):
            rewards = [result.value for result in group.results]
            self.seen[f"{batch_idx}/{group.record.id}"] = [rewards, list(group.advantages)]


def run_cases(strategies: list[str], devices: int, folder: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Every case under every strategy, one after the other in the same processes.

    Args:
        strategies: Lightning's names.
        devices: Ranks.
        folder: Where each case's final weights go, to `weights_file`.

    Returns:
        By strategy and case: what was logged at each step, gradient norms, learning rates, rewards and advantages of
        this rank's prompts, and the number of optimiser steps.
    """
    outcomes: dict[str, dict[str, dict[str, Any]]] = {strategy: {} for strategy in strategies}
    for strategy in strategies:
        for name, case in CASES.items():
            outcomes[strategy][name], weights = run(strategy=strategy, devices=devices, **case)
            if int(os.environ.get("RANK", "0")) == 0:
                torch.save(weights, weights_file(folder, strategy, name))
    return outcomes


def weights_file(folder: str | Path, strategy: str, case: str) -> Path:
    """Where `run_cases` leaves the whole weights of a case."""
    return Path(folder, f"{strategy}-{list(CASES).index(case)}.pt")


def run(
    *,
    kind: str,
    strategy: str,
    devices: int,
    images: tuple[int, ...] = (1, 2, 0, 1),
    failing: tuple[str, ...] = (),
    batches: int = 2,
    **options: Any,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One case; also gives the weights, whole on every rank."""
    if kind == "grpo":
        options = {"generator": Keyed(), **options}
    module = make_module(kind, **options)
    rewards = Rewards()
    norms: list[float] = []
    if kind == "grpo":
        module.reward = Judge(failing)  # type: ignore[assignment]
    step = module.take_step

    def note(*args: Any) -> float:
        norms.append(step(*args))
        return norms[-1]

    module.take_step = note  # type: ignore[method-assign, assignment]
    trainer: dict[str, Any] = {"strategy": strategy, "devices": devices, "limit_train_batches": batches}
    outcome = fit(module, Rows(kind, images), callbacks=[rewards], **trainer)
    weights = {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
        for name, value in module.backbone.named_parameters()
    }
    kept = {key: outcome[key] for key in ("logged", "steps", "rates")}
    return {**kept, "norms": norms, "rewards": rewards.seen}, weights


def stopped(strategies: list[str], folder: str) -> dict[str, str]:
    """By strategy, what this rank says when a guard stops a run of two ranks after its second rollout."""
    said = {}
    for strategy in strategies:
        module = make_module("grpo", generator=Keyed())
        module.reward = Judge(())  # type: ignore[assignment]
        guards = TrainingGuards(truncation=Truncation(share=0.1, patience=2, action="stop"))
        own: dict[str, Any] = {"strategy": strategy, "devices": 2, "default_root_dir": f"{folder}/{strategy}"}
        try:
            fit(module, Rows("grpo", (1, 2, 0, 1)), callbacks=[guards], **own)
        except RunStoppedError as error:
            said[strategy] = str(error)
    return said
