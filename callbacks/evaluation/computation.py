"""What answers depend on besides the rows, described so that it can be known again."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from torch import nn

from callbacks.evaluation.responses import settings_digest
from callbacks.evaluation.weights import weights_digest
from lit_vlaa.protocols import AnsweringModule


def digests(trainer: Trainer, module: AnsweringModule, *, system_prompt: str, max_new_tokens: int) -> tuple[str, str]:
    """Names what answers depend on, the same on every rank; on all ranks together.

    Args:
        trainer: Has ranks and precision.
        module: The model.
        system_prompt: Of every chat.
        max_new_tokens: Length limit of an answer.

    Returns:
        A digest of the weights, and one of these and all settings.
    """
    with module.rollout_mode():
        weights = weights_digest(module.backbone.named_parameters())
        settings = settings_digest(
            weights=trainer.strategy.broadcast(weights),
            precision=str(trainer.precision),
            system_prompt=system_prompt,
            processor=module.processor.settings,
            max_new_tokens=max_new_tokens,
            **computation(module.backbone, module.engine),
        )
    return weights, settings


def computation(backbone: nn.Module, engine: object) -> dict[str, Any]:
    """Describes how answers are computed, alike on every rank and under every strategy.

    Args:
        backbone: The model. Of its modules these count: the attention implementation of those that have a configuration
            of transformers' (`auto` is resolved there), and the scaling of peft's adapters, which is no weight.
        engine: What completes prompts. Its class counts, and its public attributes that are numbers or text.

    Returns:
        What JSON can carry.
    """
    attention: dict[str, str] = {}
    scaling: dict[str, dict[str, float]] = {}
    for name, module in backbone.named_modules():
        implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if isinstance(implementation, str):
            attention[name] = implementation
        factors = getattr(module, "scaling", None)
        if isinstance(factors, dict):
            scaling[name] = {str(adapter): float(factor) for adapter, factor in factors.items()}
    plain = {
        name: value
        for name, value in getattr(engine, "__dict__", {}).items()
        if not name.startswith("_") and isinstance(value, (str, int, float, bool))
    }
    kind = f"{type(engine).__module__}.{type(engine).__qualname__}"
    return {"attention": attention, "scaling": scaling, "engine": [kind, plain]}
