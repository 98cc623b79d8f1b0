"""TRL's side: its trainers as users run them, timed by callbacks, with their phases told apart by wrapped methods."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PrinterCallback, Qwen2_5_VLProcessor, TrainerCallback

from benchmarks.eos import planned_generate
from benchmarks.lockstep import Pause, Run, Values
from benchmarks.models import Setup
from benchmarks.workload import reward
from lit_vlaa.backbone import Backbone
from lit_vlaa.types import Sample

Settings = dict[str, Any]

_EQUAL: Settings = {
    "bf16": False,  # of the weights' own type, as on our side: no autocast
    "report_to": [],
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "shuffle_dataset": False,
}


def missing() -> str | None:
    """Why TRL's image path cannot run here; None if it can."""
    for name in ("trl", "torchvision"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed here; `make bench` sets up an environment with it"
    return None


def combined_processor(backbone: Backbone) -> Any:
    """The processor for images and text together that users have, with the image processor that is its default."""
    images: Any = importlib.import_module("transformers.models.qwen2_vl.image_processing_qwen2_vl")
    videos: Any = importlib.import_module("transformers.models.qwen2_vl.video_processing_qwen2_vl")
    tokenizer = backbone.processor.tokenizer
    tokenizer.padding_side = "left"  # as TRL loads it
    return Qwen2_5_VLProcessor(  # type: ignore[no-untyped-call]
        image_processor=images.Qwen2VLImageProcessor(size=backbone.processor.image_processor.size),
        tokenizer=tokenizer,
        video_processor=videos.Qwen2VLVideoProcessor(),
        chat_template=tokenizer.chat_template,
    )


class Clock(TrainerCallback):
    """Says after each optimiser step how long it took, its data left out as they were fetched before."""

    def __init__(self, setup: Setup, pause: Pause) -> None:
        """Calls `pause` after every step."""
        self.setup_ = setup
        self.pause = pause
        self.started = self.cpu_started = 0.0
        self.phases: dict[str, float] = {}
        self.values: Values = {}

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock."""
        self.phases.clear()
        self.values = {"loss": 0.0}
        self.setup_.synchronize()
        self.started, self.cpu_started = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stops it."""
        self.setup_.synchronize()
        seconds = time.perf_counter() - self.started
        cpu = time.process_time() - self.cpu_started
        update = {"update": seconds - sum(self.phases.values())} if self.phases else {}
        self.pause({"step": seconds, "cpu": cpu, **self.phases, **update, **self.values})

    def timed(self, method: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """`method`, whose seconds are added to `phase`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = method(*args, **kwargs)
            self.setup_.synchronize()
            self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - started
            return result

        return call

    def summed(self, training_step: Callable[..., Any]) -> Callable[..., Any]:
        """A trainer's `training_step`, whose losses of one optimiser step are added up."""

        def call(*args: Any, **kwargs: Any) -> Any:
            loss = training_step(*args, **kwargs)
            self.values["loss"] = self.values["loss"] + loss.detach()
            return loss

        return call


def sft(setup: Setup, rows: Sequence[Sample], *, steps: int, rate: float, eps: float = 1e-8, settings: Settings) -> Run:
    """A training of `steps` SFT steps on `rows`.

    Args:
        setup: Model and device.
        rows: Of every step.
        steps: Optimiser steps.
        rate: Learning rate.
        eps: Adam's epsilon.
        settings: Go to `SFTConfig`, besides `micro_batch` (rows of a forward pass) and `by_length`: rows of like
            length follow each other, which leaves the step's gradient as it is.
    """
    options = dict(settings)
    micro, by_length = options.pop("micro_batch"), options.pop("by_length", False)

    def run(pause: Pause) -> None:
        trl: Any = importlib.import_module("trl")
        backbone = setup.backbone()
        # transformers takes this model for one whose losses are means of micro-batches; TRL's fused head, which
        # computes the loss here, can divide by the tokens of the whole step, as our side does.
        backbone.model.accepts_loss_kwargs = True
        items = [_sft_row(backbone, row) for row in rows]
        if by_length:
            items.sort(key=lambda item: len(item["completion"]))
        clock = Clock(setup, pause)
        with tempfile.TemporaryDirectory() as folder:
            trainer = trl.SFTTrainer(
                model=backbone.model,
                args=trl.SFTConfig(
                    output_dir=folder,
                    use_cpu=setup.device == "cpu",
                    learning_rate=rate,
                    adam_epsilon=eps,
                    max_steps=steps,
                    max_length=None,
                    per_device_train_batch_size=micro,
                    gradient_accumulation_steps=len(rows) // micro,
                    **_EQUAL,
                    **options,
                ),
                train_dataset=Dataset.from_list(items),
                processing_class=combined_processor(backbone),
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.training_step = clock.summed(trainer.training_step)
            trainer.train()
        _release(setup)

    return run


def grpo(
    setup: Setup,
    rows: Sequence[Sample],
    *,
    steps: int,
    rate: float,
    lengths: list[int] | None,
    eps: float = 1e-8,
    replay: list[list[int]] | None = None,
    on_model: Callable[[nn.Module], None] | None = None,
    settings: Settings,
) -> Run:
    """A training of `steps` rollouts and their updates.

    Args:
        setup: Model and device.
        rows: Prompts of every rollout.
        steps: Optimiser steps.
        rate: Learning rate.
        lengths: Planned completion lengths, prompt by prompt; None where `replay` gives the completions.
        eps: Adam's epsilon.
        replay: Completions to take instead of sampling.
        on_model: Is shown the model before it trains.
        settings: Go to `GRPOConfig`, besides `micro_batch` (completions of a forward pass).
    """
    options = dict(settings)
    micro = options.pop("micro_batch")
    scale = setup.scale
    accumulate = len(rows) * scale.group_size // micro

    def run(pause: Pause) -> None:
        trl: Any = importlib.import_module("trl")
        backbone = setup.backbone()
        model, stops = backbone.model, backbone.processor.stop_token_ids
        if on_model is not None:
            on_model(model)
        clock = Clock(setup, pause)
        hook: Any = nullcontext() if lengths is None else planned_generate(model, lengths, stops)
        with tempfile.TemporaryDirectory() as folder, hook:
            trainer = trl.GRPOTrainer(
                model=model,
                reward_funcs=lambda prompts, **_: [reward(i, scale.group_size) for i in range(len(prompts))],
                args=trl.GRPOConfig(
                    output_dir=folder,
                    use_cpu=setup.device == "cpu",
                    learning_rate=rate,
                    adam_epsilon=eps,
                    max_steps=steps,
                    per_device_train_batch_size=micro,
                    gradient_accumulation_steps=accumulate,
                    steps_per_generation=accumulate,
                    num_generations=scale.group_size,
                    max_completion_length=scale.limit,
                    temperature=scale.temperature,
                    loss_type="grpo",
                    beta=0.0,
                    **_EQUAL,
                    **options,
                ),
                train_dataset=Dataset.from_list([_grpo_row(row) for row in rows]),
                processing_class=combined_processor(backbone),
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            _instrument(trainer, clock, replay)
            trainer.train()
        _release(setup)

    return run


def _instrument(trainer: Any, clock: Clock, replay: list[list[int]] | None) -> None:
    def noted(*args: Any, **kwargs: Any) -> Any:
        clock.values["prompts"] = args[0]
        completions, logprobs = (replay, None) if replay is not None else generate(*args, **kwargs)
        clock.values["lengths"] = [len(ids) for ids in completions]
        return completions, logprobs

    def told_apart(*args: Any, **kwargs: Any) -> Any:
        # What is left of it is tokenising, preparing images (twice) and padding.
        result = prepare(*args, **kwargs)
        known = sum(clock.phases.get(name, 0.0) for name in ("rollout", "reward", "old log-probabilities"))
        clock.phases["prepare"] -= known
        return result

    def scored(*args: Any, **kwargs: Any) -> Any:
        return (before if not torch.is_grad_enabled() else score)(*args, **kwargs)

    generate = trainer._generate_single_turn
    score = trainer._get_per_token_logps_and_entropies
    before = clock.timed(score, "old log-probabilities")
    prepare = clock.timed(trainer._generate_and_score_completions, "prepare")
    trainer._generate_single_turn = clock.timed(noted, "rollout")
    trainer._get_per_token_logps_and_entropies = scored
    trainer._calculate_rewards = clock.timed(trainer._calculate_rewards, "reward")
    trainer._generate_and_score_completions = told_apart
    trainer.training_step = clock.summed(trainer.training_step)


def _sft_row(backbone: Backbone, row: Sample) -> dict[str, Any]:
    """Plain text, so that both sides learn the same tokens: TRL's chat path adds a line's end to the answer."""
    tokenizer: Any = backbone.processor.tokenizer
    prompt = tokenizer.apply_chat_template(row.messages, tokenize=False, add_generation_prompt=True)
    return {"prompt": prompt, "completion": f"{row.record.response}<|im_end|>", "images": list(row.images)}


def _grpo_row(row: Sample) -> dict[str, Any]:
    texts = [" ".join(str(part["text"]) for part in m["content"] if part["type"] == "text") for m in row.messages]
    turns = [{"role": m["role"], "content": text} for m, text in zip(row.messages, texts, strict=True)]
    return {"prompt": turns, "images": list(row.images)}


def _release(setup: Setup) -> None:
    if setup.device == "cuda":
        torch.cuda.empty_cache()
