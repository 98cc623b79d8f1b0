"""The configuration of a run as `lit-vlaa fit` would parse it, for tools that build nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, cast, get_type_hints

from jsonargparse import Namespace
from transformers import AutoConfig

from lit_vlaa.backbone.config import BackboneConfig, LoRAConfig
from lit_vlaa.backbone.processor import naming_path
from lit_vlaa.backbone.released import model_config
from lit_vlaa.lightning_cli import Parsed


def read_config(words: Sequence[str]) -> Any:
    """Parses the flags of `lit-vlaa fit`.

    Args:
        words: Its flags, `--config FILE` among them.

    Returns:
        The configuration with `trainer`, `model` and `data`.

    Raises:
        UsageError: If the flags cannot be parsed.
    """
    before = sys.argv
    # Lightning warns of arguments that it is given beside those of the process.
    sys.argv = [before[0], "fit", *words]
    try:
        return Parsed().config["fit"]
    finally:
        sys.argv = before


def backbone_of(parsed: Namespace) -> BackboneConfig:
    """The backbone of a parsed configuration.

    Raises:
        ValueError: If its settings cannot work together.
    """
    values: dict[str, Any] = parsed.as_dict()
    values["freeze"] = tuple(values["freeze"])
    lora: dict[str, Any] = values.pop("lora")
    lora |= {name: tuple(lora[name]) for name in ("parts", "targets")}
    return BackboneConfig(**values, lora=LoRAConfig(**lora))


def setting_problems(model: Namespace) -> list[str]:
    """What a module's groups of settings (`--model.kl`, `--model.optim`) refuse when they are built.

    Args:
        model: A parsed module, with `class_path` and `init_args`.
    """
    module, _, name = model["class_path"].rpartition(".")
    kinds = get_type_hints(getattr(importlib.import_module(module), name).__init__)
    found = []
    for option, kind in kinds.items():
        group = model["init_args"].get(option)
        if option != "backbone" and is_dataclass(kind) and isinstance(group, Namespace):
            try:
                cast("Callable[..., object]", kind)(**group.as_dict())
            except ValueError as error:
                found.append(str(error))
    return found


def context_of(backbone: BackboneConfig) -> int | None:
    """Positions that a backbone knows, by its own configuration; None where that does not say.

    Raises:
        ValueError: If there is no configuration; the message names the flag.
    """
    if backbone.path == "tiny":
        config: Any = model_config(backbone)
    else:
        with naming_path(backbone):
            config = AutoConfig.from_pretrained(
                backbone.path, revision=backbone.revision, trust_remote_code=backbone.trust_remote_code
            )
    text: Mapping[str, Any] = getattr(config, "text_config", config).to_dict()
    found = text.get("max_position_embeddings")
    return found if isinstance(found, int) else None
