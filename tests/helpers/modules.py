"""Tiny trainings of the real modules on prompts held in memory, for parity and distributed tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from helpers.samples import image, sample
from lit_vlaa.algorithm import AdvantageConfig, KLConfig, LossConfig
from lit_vlaa.backbone import BackboneConfig
from lit_vlaa.grpo import GRPOModule
from lit_vlaa.optim import OptimConfig
from lit_vlaa.policy import PolicyModule
from lit_vlaa.sft import SFTModule
from lit_vlaa.types import Completion, PromptBatch, RewardRequest, RewardResult, Sample, SamplingParams, SFTBatch

BATCH = 4
BATCHES = 3
OPTIM = OptimConfig(lr=1e-3, vision_lr=3e-4, merger_lr=5e-4, weight_decay=0.1, min_lr=1e-4, warmup_ratio=0.2)


def training_samples() -> list[Sample]:
    """Rows of uneven lengths: with one image, with two, and without."""
    rows = []
    for index in range(BATCH * BATCHES):
        images = tuple(image(84, 56, index + part) for part in range((1, 2, 0, 1)[index % 4]))
        rows.append(sample(f"row{index}", "How many red circles?" + " please" * (index % 3), images, str(index % 5)))
    return rows


class InMemoryData(LightningDataModule):
    """Serves `training_samples` as the real data module does: rank r gets every world-size-th row from r on."""

    def __init__(self, split: str, *, text_only: bool = False) -> None:
        super().__init__()
        self.split = split
        self.text_only = text_only
        self.batch_size = BATCH
        self.batches_per_epoch = BATCHES

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        rows = training_samples()[trainer.global_rank :: trainer.world_size]
        if self.text_only:
            rows = [sample(row.record.id, row.record.question, (), row.record.truth) for row in rows]
        return DataLoader(rows, batch_size=BATCH // trainer.world_size, collate_fn=self.collate)  # type: ignore[arg-type]

    def collate(self, items: list[Sample], padding: tuple[bool, ...] = ()) -> Any:
        """One batch of the split's kind; `padding` marks its rows, none of them when it is left out."""
        assert self.trainer is not None
        processor: Any = self.trainer.lightning_module.processor
        marks = padding or (False,) * len(items)
        prompts = tuple(
            dataclasses.replace(processor.encode(item), padding=mark) for item, mark in zip(items, marks, strict=True)
        )
        if self.split == "grpo":
            return PromptBatch(prompts)
        return SFTBatch(prompts, tuple(processor.encode_response(item.record.response or "") for item in items))


class EvaluatedData(InMemoryData):
    """The same with evaluation over five rows in batches of two, the last batch filled up by a repeated row."""

    def val_dataloader(self) -> DataLoader[Any]:
        def batch(numbers: list[int]) -> Any:
            return self.collate([training_samples()[n % 5] for n in numbers], tuple(n >= 5 for n in numbers))

        return DataLoader(range(6), batch_size=2, collate_fn=batch)  # type: ignore[arg-type]

    test_dataloader = val_dataloader


class FixedGenerator:
    """Completions that depend on prompt and sample alone, so that trajectories do not hang on a token's rounding.

    It announces no group, so that the reward sees a rollout in one call.
    """

    def generate(
        self,
        backbone: Any,
        prompts: Any,
        *,
        group_size: int,
        params: SamplingParams,  # noqa: ARG002  # as the protocol has it
        key: Any,  # noqa: ARG002
    ) -> list[list[Completion]]:
        groups = []
        for prompt in prompts:
            group = []
            for index in range(group_size):
                text = f"<think> {'so ' * index}it is {index} </think><answer>{index}</answer>"
                tokens = backbone.processor.encode_response(text)
                generator = torch.Generator().manual_seed(index + len(prompt.record.id))
                group.append(Completion(tokens, torch.rand(len(tokens), generator=generator) * 0.2 - 3.0, "stop"))
            groups.append(group)
        return groups


class FixedReward:
    """1 for the number that the prompt asks for, no verdict on one length in seven; no worker processes."""

    def __call__(self, requests: list[RewardRequest]) -> list[RewardResult]:
        results = []
        for request in requests:
            value = float(f"<answer>{request.truth}<" in request.response)
            failed = len(request.response) % 7 == 3
            results.append(RewardResult(value, request.kind, request.truth, "timeout" if failed else "ok"))
        return results

    def close(self) -> None:
        """Nothing to end."""


def make_module(kind: str, **options: Any) -> PolicyModule:
    """An SFT or GRPO module on the tiny backbone; options that are settings of their own are given as mappings."""
    if kind == "grpo" or "sampling" in options:
        options["sampling"] = SamplingParams(
            **{"max_new_tokens": 32, "temperature": 0.8, **options.get("sampling", {})}
        )
    common: dict[str, Any] = {
        "backbone": BackboneConfig(**{"max_pixels": 84 * 84, **options.pop("backbone", {})}),
        "optim": dataclasses.replace(OPTIM, **options.pop("optim", {})),
        "max_grad_norm": 0.5,
        **options,
    }
    if kind == "sft":
        return SFTModule(**common)
    parts = {"loss": LossConfig, "advantage": AdvantageConfig}
    common |= {name: config(**common.get(name, {})) for name, config in parts.items()}
    common["kl"] = KLConfig(**{"coefficient": 0.1, **common.get("kl", {})})
    module = GRPOModule(**{"generator": FixedGenerator(), "group_size": 4, "train_batch_size": 2, **common})
    if not {"reward", "scorer"} & options.keys():
        module.reward = FixedReward()  # type: ignore[assignment]
    return module


def quiet_trainer(**options: Any) -> Trainer:
    """A Trainer on the CPU that writes nothing."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "limit_train_batches": BATCHES,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "inference_mode": False,
    }
    return Trainer(**defaults | options)


def train(
    kind: str,
    *,
    strategy: str = "auto",
    devices: int = 1,
    save: str = "",
    limit_batches: int = BATCHES,
    max_steps: int = -1,
    text_only: bool = False,
    precision: str = "32-true",
    **options: Any,
) -> dict[str, Any]:
    """Trains for one pass over the rows; returns what was logged, learning rates, and a digest of the weights."""
    module = make_module(kind, **options)
    data = InMemoryData(kind, text_only=text_only)
    return fit(
        module,
        data,
        save=save,
        strategy=strategy,
        devices=devices,
        limit_train_batches=limit_batches,
        max_steps=max_steps,
        precision=precision,
    )


def fit(module: PolicyModule, data: InMemoryData, *, save: str = "", **trainer_options: Any) -> dict[str, Any]:
    """`train` for a module and data of one's own."""
    seed_everything(1, verbose=False)
    torch.set_num_threads(1)
    logged: list[dict[str, float]] = []
    rates: list[float] = []
    original = module.log_train

    def record(values: dict[str, float]) -> None:
        logged.append({k: v for k, v in values.items() if not k.startswith("time/") and "per_second" not in k})
        original(values)

    module.log_train = record  # type: ignore[method-assign]
    original_step = module.take_step

    def record_rate(*args: Any) -> float:
        rates.append(module.trainer.optimizers[0].param_groups[0]["lr"])
        return original_step(*args)

    module.take_step = record_rate  # type: ignore[method-assign, assignment]
    trainer = quiet_trainer(**trainer_options)
    trainer.fit(module, data)
    if save:
        trainer.save_checkpoint(save)
    weights = {}
    for name, parameter in module.backbone.named_parameters():
        value = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        weights[name] = [float(value.detach().double().sum()), float(value.detach().double().norm())]
    return {"logged": logged, "rates": rates, "weights": weights, "steps": trainer.global_step}


def train_all(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Several trainings in a row in the same processes."""
    return {name: train(**run) for name, run in runs.items()}
