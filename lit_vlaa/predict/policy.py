"""What answers: a backbone, how it draws, and what it is told, from a checkpoint or a model folder."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers.utils.hub import cached_file

from datamodules.check.settings import MAX_IMAGE_PIXELS
from lit_vlaa.backbone import Backbone, BackboneConfig, build_backbone
from lit_vlaa.backbone.adapter_state import starting_points
from lit_vlaa.checkpoints import is_sharded_checkpoint
from lit_vlaa.export.model_card import CONFIG_NAME
from lit_vlaa.export.run_files import config_beside, value_at
from lit_vlaa.hints import missing
from lit_vlaa.perplexity_module import for_scoring
from lit_vlaa.prompts import PromptConfig, build_messages
from lit_vlaa.run_config import backbone_of, read_config
from lit_vlaa.types import KINDS, Prompt, Record, Sample, SamplingParams

_BASE: dict[str, Any] = {
    "model": {"class_path": "lit_vlaa.sft.SFTModule", "init_args": {}},
    "data": {
        "class_path": "datamodules.VLAAThinkingDataModule",
        "init_args": {"split": "sft", "data_file": "none", "image_root": "."},
    },
}
_OF_FOLDERS = {
    "model": ("backbone.dtype", "backbone.min_pixels", "backbone.max_pixels", "sampling"),
    "data": ("prompt", "max_image_pixels"),
}
"""What is taken from the configuration in a model's folder, which may be a stranger's: how the model is asked. The rest
could name classes, files and `trust_remote_code`."""
_WHOLE_RUN = ("lit_vlaa.sft.SFTModule", "lit_vlaa.grpo.GRPOModule")
"""Modules whose own defaults count for what a folder's configuration leaves out."""
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_MOST_CHARS = 2**20


@dataclass(frozen=True, slots=True)
class Settings:
    """Which model, and how it is asked; read before anything large is loaded."""

    backbone: BackboneConfig
    init_from: str | None
    sampling: SamplingParams
    prompt: PromptConfig
    max_image_pixels: int

    def without_line(self, records: Sequence[Record]) -> list[str]:
        """Kinds that change nothing: no line stands behind their questions."""
        return sorted({record.kind for record in records} - {"", *KINDS, *self.prompt.instructions})


@dataclass(frozen=True, slots=True)
class Policy:
    """A model that answers as in its training."""

    backbone: Backbone
    settings: Settings

    def encode(self, record: Record, images: Sequence[Any]) -> Prompt:
        """Asks a question as in training.

        Args:
            record: The question, its kind for the instruction behind it.
            images: RGB images, one for each of the record's paths.
        """
        prompt = self.settings.prompt
        space = prompt.resolve_box_space(self.backbone.processor.box_space)
        messages = build_messages(record, prompt, box_space=space)
        return self.backbone.processor.encode(Sample(record, messages, tuple(images), space))

    def fingerprint(self, seed: int) -> str:
        """Tells apart models and settings that answer differently.

        Args:
            seed: Of what is drawn.
        """
        dtype = str(next(self.backbone.parameters()).dtype)
        facts = [self.backbone.origin, dtype, self.backbone.processor.settings, asdict(self.settings.sampling)]
        text = json.dumps([*facts, asdict(self.settings.prompt), seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_settings(model: str, config: Sequence[Path], rest: Sequence[str]) -> Settings:
    """Finds out what to load, and how to ask it.

    Args:
        model: A `.ckpt` file or a folder of sharded FSDP2, behind `BASE::` as for `init_from`; a folder in the Hub's
            layout, a Hub id, or `tiny`.
        config: Configuration of the run; without one, what lies beside a checkpoint or in an exported folder.
        rest: Flags of `lit-vlaa fit`.

    Raises:
        ValueError: If there is no such model, or its configuration cannot be used; the message names the file or flag.
        UsageError: If flags cannot be parsed.
    """
    path = starting_points(model)[-1]
    trained = path.suffix == ".ckpt" or is_sharded_checkpoint(path)
    _check_place(model, path, trained=trained)
    with tempfile.TemporaryDirectory() as scratch:
        words, parsed = [f"--config={file}" for file in config], None
        if trained:
            beside = None if words else config_beside(path)
            if not words and beside is None:
                raise ValueError(f"there is no config.yaml beside {path}: name the run's configuration with --config")
            words = [*(words or [f"--config={beside}"]), f"--model.init_args.init_from={model}"]
        else:
            which = [f"--model.init_args.backbone.path={model}", "--model.init_args.backbone.revision=null"]
            which.append("--model.init_args.init_from=null")
            if not words:
                words = [_asked(Path(scratch), {})]
                told = _folder_config(model, read_config([*words, *which, *rest]))
                words = [_asked(Path(scratch), told)]
            words += which
        parsed = read_config([*words, *rest])
    arguments, data = parsed["model"]["init_args"], parsed["data"]["init_args"]
    if "backbone" not in arguments:
        raise ValueError(f"--config: {parsed['model']['class_path']} has no backbone")
    prompt = data.get("prompt")
    return Settings(
        for_scoring(backbone_of(arguments["backbone"])),
        arguments.get("init_from"),
        SamplingParams(**arguments["sampling"].as_dict()),
        PromptConfig() if prompt is None else PromptConfig(**prompt.as_dict()),
        int(data.get("max_image_pixels") or MAX_IMAGE_PIXELS),
    )


def load(settings: Settings, *, device: str) -> Policy:
    """Loads the model.

    Args:
        settings: Which one.
        device: Of PyTorch's; `auto` for a GPU where there is one.

    Raises:
        ValueError: If it cannot be loaded; the message names the file or flag.
    """
    backbone = build_backbone(settings.backbone, init_from=settings.init_from)
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        backbone = backbone.eval().to(place)
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA raises the latter
        raise ValueError(f"--device {device}: {error}") from error
    return Policy(backbone, settings)


def _check_place(model: str, path: Path, *, trained: bool) -> None:
    if trained and not path.exists():
        raise ValueError(f"MODEL {path} {missing(path)}")
    if not trained and path.is_file():
        raise ValueError(f"MODEL {path} is a file, but no .ckpt; a model in the Hub's layout is named by its folder")
    if not trained and path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(
            f"MODEL {path} is a folder without config.json: give a folder of `lit-vlaa export`, or a .ckpt file"
        )
    if not trained and model != "tiny" and not path.exists() and not _HUB_ID.fullmatch(model):
        raise ValueError(f"MODEL {model}: there is no such file or folder, and it is no Hub id (OWNER/NAME)")


def _folder_config(model: str, parsed: Any) -> dict[str, Any]:
    """The configuration that `lit-vlaa export` has put into a folder or a repository of the Hub, if it did.

    Raises:
        ValueError: If it is there and cannot be read.
    """
    file: str | None = str(Path(model) / CONFIG_NAME)
    if model == "tiny":
        return {}
    if not Path(model).is_dir():
        try:
            file = cached_file(model, CONFIG_NAME, revision=parsed["model"]["init_args"]["backbone"]["revision"])
        except (OSError, ValueError):
            return {}  # made by others, or not to be had: then loading the model says so
    if file is None or not Path(file).is_file():
        return {}
    try:
        with Path(file).open(encoding="utf-8") as opened:
            found = yaml.safe_load(opened.read(_MOST_CHARS))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


def _asked(folder: Path, given: dict[str, Any]) -> str:
    """A flag with a configuration that says no more than how a model is asked.

    Args:
        folder: To write it to.
        given: A configuration from anywhere.
    """
    merged: dict[str, Any] = {key: {**part, "init_args": dict(part["init_args"])} for key, part in _BASE.items()}
    if (module := value_at(given, "model.class_path")) in _WHOLE_RUN:
        merged["model"]["class_path"] = module
    for part, keys in _OF_FOLDERS.items():
        for key in keys:
            value = _plain(value_at(given, f"{part}.{key}"))
            if value is not None:
                outer, _, inner = key.rpartition(".")
                place = merged[part]["init_args"]
                (place.setdefault(outer, {}) if outer else place)[inner] = value
    file = folder / CONFIG_NAME
    file.write_text(yaml.safe_dump(merged), encoding="utf-8")
    return f"--config={file}"


def _plain(value: Any, depth: int = 2) -> Any:
    """Texts, numbers and mappings of them; aliases of YAML could make anything deeper endless.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(value, dict) and depth:
        return {str(key): _plain(one, depth - 1) for key, one in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ValueError(f"{CONFIG_NAME} of the model's folder has another form than `lit-vlaa export` gives it")
