"""What rows are held against: the flags of the check, and what a stage's configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datamodules.boxes import TruthBoxes
from datamodules.check.parts import backbone_of, context_of
from datamodules.records import Split
from lit_vlaa.prompts import PromptConfig
from lit_vlaa.protocols import Verifier
from lit_vlaa.types import Kind

MAX_IMAGE_PIXELS = 64_000_000
"""As the data module has it."""
MOST_CHARS = 1 << 20
"""Of a question and its response: more is too long for the models, and to cut it into tokens takes gigabytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Tokens that a run has room for; None where nothing is said."""

    row: int | None = None
    """Of one pass: `--model.max_tokens_per_micro_batch`."""
    response: int | None = None
    """Of a completion: `--model.sampling.max_new_tokens`."""
    context: int | None = None
    """Positions that the backbone knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How rows are looked at."""

    split: Split
    image_root: Path | None
    """Resolved; None where images are not looked at, unless they lie in shards."""
    backbone: Any = None
    """`lit_vlaa.backbone.BackboneConfig` of the processor that counts tokens; None where they are not counted."""
    prompt: PromptConfig = PromptConfig()
    truth_boxes: Mapping[str, TruthBoxes] = field(default_factory=dict)
    limits: Limits = Limits()
    max_image_pixels: int = MAX_IMAGE_PIXELS
    sources: tuple[str, ...] | None = None
    """Sources that the run uses; None for all."""
    kinds: tuple[Kind, ...] | None = None
    """Kinds that the run uses; None for all."""
    verifiers: Mapping[Kind, Verifier] = field(default_factory=dict)
    """Reward kinds of the user's own."""
    max_failed: float = 0.5
    """Share of a kind's answers that may be without a verdict, as `--model.reward.max_failed`."""
    failed_window: int = 64
    """Answers that `max_failed` needs, as `--model.reward.failed_window`."""
    skips: bool = False
    """Whether the run leaves bad rows out."""
    fast: bool = False
    """Whether images are not decoded."""


def of_config(config: Any) -> Settings:
    """What a parsed configuration says of a run's rows.

    Args:
        config: With `model` and `data`, the latter of this project's data module or of one with its options.

    Raises:
        ValueError: If the backbone's settings cannot work together.
    """
    data, model = config["data"]["init_args"], config["model"]["init_args"]
    split: Split = "grpo" if model.get("group_size") is not None else "sft"
    given = {name: data.get(name) for name in ("split", "image_root", "prompt", "truth_boxes", "max_image_pixels")}
    reward = model.get("reward")
    return Settings(
        split=given["split"] or split,
        image_root=None if given["image_root"] is None else Path(given["image_root"]).expanduser().resolve(),
        backbone=backbone_of(model),
        prompt=PromptConfig() if given["prompt"] is None else PromptConfig(**given["prompt"].as_dict()),
        truth_boxes=dict(given["truth_boxes"] or {}),
        max_image_pixels=given["max_image_pixels"] or MAX_IMAGE_PIXELS,
        limits=Limits(row=model.get("max_tokens_per_micro_batch"), response=model["sampling"]["max_new_tokens"]),
        sources=None if data.get("sources") is None else tuple(data["sources"]),
        kinds=None if data.get("kinds") is None else tuple(data["kinds"]),
        verifiers=dict(model.get("verifiers") or {}),
        skips=data.get("on_bad_record") == "skip",
        **({} if reward is None else {name: reward[name] for name in ("max_failed", "failed_window")}),
    )


def with_context(settings: Settings) -> Settings:
    """The settings with what the backbone's own configuration says of its context.

    Raises:
        ValueError: If there is no configuration; the message names the flag.
    """
    return replace(settings, limits=replace(settings.limits, context=context_of(settings.backbone)))
