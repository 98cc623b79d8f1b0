"""The same GRPO steps by this project's module under Lightning and by TRL's trainer, each fed in its own way."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from lightning.pytorch import Callback
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from helpers.modules import BATCH, FixedGenerator, InMemoryData, quiet_trainer, training_samples
from helpers.samples import sample, tiny_backbone
from lit_vlaa.algorithm import KLConfig
from lit_vlaa.backbone import Backbone, BackboneConfig
from lit_vlaa.grpo import GRPOModule
from lit_vlaa.optim import OptimConfig
from lit_vlaa.types import Completion, Prompt, RewardRequest, RewardResult, SamplingParams

trl: Any = importlib.import_module("trl")  # its own names are not typed

GROUP = 4
STEPS = 3
LIMIT = 32
BETA = 0.1
TEMPERATURE = 0.8
RATE = 5e-3
EPS = 1e-3
MAX_NORM = 0.05
Gradients = list[dict[str, Tensor]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one trainer made of the rollout."""

    advantages: Tensor
    """`[B * G]`."""
    gradients: Gradients
    """By optimiser step and weight, clipped to `MAX_NORM`."""
    norms: list[float]
    """By optimiser step, before clipping."""
    weights: dict[str, Tensor]
    """After the last step."""


def grade(index: int) -> float:
    """The reward of the i-th completion: differences in every group but the third."""
    prompt, number = divmod(index, GROUP)
    return 0.5 if prompt == 2 else (number * (prompt + 2) + prompt) % 7 / 6


class Uneven(FixedGenerator):
    """Completions of uneven lengths; with `cut` the last of each group has no end token."""

    def __init__(self, *, cut: bool) -> None:
        self.cut = cut

    def generate(self, *args: Any, **kwargs: Any) -> list[list[Completion]]:
        groups = super().generate(*args, **kwargs)
        if self.cut:
            for group in groups:
                group[-1] = Completion(group[-1].token_ids[:-1], group[-1].logprobs[:-1], "length")
        return groups


class Graded:
    """`grade`, and no verdict on the completions named."""

    def __init__(self, failed: Sequence[int]) -> None:
        self.failed = failed

    def __call__(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        fails = [index in self.failed for index in range(len(requests))]
        return [
            RewardResult(0.0 if fail else grade(index), "digit", None, "timeout" if fail else "ok")
            for index, fail in enumerate(fails)
        ]

    def close(self) -> None:
        """Nothing to end."""


class Unbanned(GRPOModule):
    """Gives vision tokens their probability, as TRL does."""

    def build(self, *args: Any, **kwargs: Any) -> Backbone:
        backbone = super().build(*args, **kwargs)
        backbone._banned = torch.empty(0, dtype=torch.long)
        return backbone


@contextmanager
def watched() -> Iterator[Gradients]:
    """Fills a list with all gradients at each optimiser step, in the order of the parameters that have one."""
    steps: Gradients = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        steps.append({str(id(p)): p.grad.detach().clone() for p in parameters if p.grad is not None})

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield steps
    finally:
        handle.remove()


def by_name(model: torch.nn.Module, steps: Gradients, prefix: str) -> Gradients:
    names = {str(id(parameter)): name.removeprefix(prefix) for name, parameter in model.named_parameters()}
    return [{names[key]: value for key, value in step.items()} for step in steps]


def final_weights(model: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value.detach().clone() for name, value in model.named_parameters()}


def ours(*, failed: Sequence[int] = (), cut: bool = False, **options: Any) -> Outcome:
    """The module's optimiser steps over one rollout."""
    seen: list[Any] = []
    norms: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:  # noqa: ARG002
            seen.extend(outputs["rollout"])

    module = Unbanned(
        backbone=BackboneConfig(max_pixels=84 * 84, freeze=("vision", "merger")),
        optim=OptimConfig(lr=RATE, schedule="constant", warmup_ratio=0.0, weight_decay=0.0, eps=EPS),
        generator=Uneven(cut=cut),
        sampling=SamplingParams(max_new_tokens=LIMIT, temperature=TEMPERATURE),
        group_size=GROUP,
        train_batch_size=BATCH,
        num_iterations=STEPS,
        max_grad_norm=MAX_NORM,
        **{"kl": KLConfig(coefficient=BETA), **options},
    )
    module.reward = Graded(failed)  # type: ignore[assignment]
    step = module.take_step
    module.take_step = lambda *args: norms.append(step(*args)) or norms[-1]  # type: ignore[method-assign, func-returns-value]
    trainer = quiet_trainer(limit_train_batches=1, callbacks=[Watch()])
    with watched() as steps:
        trainer.fit(module, InMemoryData("grpo", text_only=True))
    return Outcome(
        advantages=torch.tensor([value for group in seen for value in group.advantages]),
        gradients=by_name(module, steps, "backbone.model."),
        norms=norms,
        weights=final_weights(module, "backbone.model."),
    )


def theirs(
    folder: Path,
    *,
    failed: Sequence[int] = (),
    cut: bool = False,
    micro_batches: int = 2,
    from_vllm: bool = False,
    **options: Any,
) -> Outcome:
    """TRL's optimiser steps over the same rollout; `from_vllm` makes it correct for the sampler's log-probabilities."""
    backbone = tiny_backbone(freeze=("vision", "merger"))
    tokenizer, model = backbone.processor.tokenizer, backbone.model
    model.save_pretrained(folder / "reference")
    model.config._name_or_path = str(folder / "reference")  # where TRL takes its reference policy from
    rows = [sample(s.record.id, s.record.question, (), s.record.truth) for s in training_samples()[:BATCH]]
    prompts = [backbone.processor.encode(row) for row in rows]
    rollout = rollout_of(backbone, prompts, cut)
    norms: list[float] = []

    class Norms(trl.GRPOTrainer):  # type: ignore[misc]
        def _clip_grad_norm(self, model: Any) -> Any:
            norm = super()._clip_grad_norm(model)
            norms.append(float(norm))
            return norm

    trainer = Norms(
        model=model,
        reward_funcs=lambda prompts, **_: [None if i in failed else grade(i) for i in range(len(prompts))],
        args=trl.GRPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            optim="adamw_torch",
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            adam_epsilon=EPS,
            max_grad_norm=MAX_NORM,
            max_steps=STEPS,
            num_iterations=STEPS,
            num_generations=GROUP,
            per_device_train_batch_size=BATCH * GROUP // micro_batches,
            gradient_accumulation_steps=micro_batches,
            steps_per_generation=micro_batches,
            max_completion_length=LIMIT,
            temperature=TEMPERATURE,
            shuffle_dataset=False,
            use_bias_correction_kl=False,
            **{"beta": BETA, **options},
        ),
        train_dataset=Dataset.from_dict({"prompt": [row.record.id for row in rows]}),
        processing_class=tokenizer,
        rollout_func=lambda prompts, _: {key: value[: len(prompts)] for key, value in rollout.items()},
    )
    trainer.use_vllm = from_vllm
    trainer._last_loaded_step = 0  # the rollout is given: no weights need to go anywhere
    with watched() as steps:
        trainer.train()
    return Outcome(
        advantages=torch.tensor(list(trainer._logs["advantages"])),
        gradients=by_name(model, steps, ""),
        norms=norms,
        weights=final_weights(model, ""),
    )


def rollout_of(backbone: Backbone, prompts: Sequence[Prompt], cut: bool) -> dict[str, Any]:
    """The rollout in the form of TRL's `rollout_func`."""
    params = SamplingParams(max_new_tokens=LIMIT)
    groups = Uneven(cut=cut).generate(backbone, prompts, group_size=GROUP, params=params, key=None)
    return {
        "prompt_ids": [prompt.input_ids.tolist() for prompt in prompts for _ in range(GROUP)],
        "completion_ids": [completion.token_ids.tolist() for group in groups for completion in group],
        "logprobs": [completion.logprobs.tolist() for group in groups for completion in group],
    }
