"""What answers: a backbone, how it draws, and what it is told, from a checkpoint or a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datamodules.check.settings import MAX_IMAGE_PIXELS
from lit_vlaa.backbone import Backbone, build_backbone
from lit_vlaa.checkpoints import is_sharded_checkpoint
from lit_vlaa.export.model_card import CONFIG_NAME
from lit_vlaa.export.run_files import config_beside
from lit_vlaa.perplexity_module import for_scoring
from lit_vlaa.prompts import PromptConfig, build_messages
from lit_vlaa.run_config import backbone_of, read_config
from lit_vlaa.types import Prompt, Record, Sample, SamplingParams

_BASE = (
    "--model=lit_vlaa.sft.SFTModule",
    "--data=datamodules.VLAAThinkingDataModule",
    "--data.split=sft",
    "--data.data_file=none",
    "--data.image_root=.",
)


@dataclass(frozen=True, slots=True)
class Policy:
    """A model that answers as in its training."""

    backbone: Backbone
    sampling: SamplingParams
    prompt: PromptConfig
    max_image_pixels: int

    def encode(self, record: Record, images: Sequence[Any]) -> Prompt:
        """Asks a question as in training.

        Args:
            record: The question, its kind for the instruction behind it.
            images: RGB images, one for each of the record's paths.
        """
        space = self.prompt.resolve_box_space(self.backbone.processor.box_space)
        messages = build_messages(record, self.prompt, box_space=space)
        return self.backbone.processor.encode(Sample(record, messages, tuple(images), space))


def load(model: str, config: Sequence[Path], rest: Sequence[str], *, device: str) -> Policy:
    """Loads a model.

    Args:
        model: A `.ckpt` file, a folder of sharded FSDP2, a folder in the Hub's layout, a Hub id, or `tiny`.
        config: Configuration of the run; without one, what lies beside a checkpoint or in an exported folder.
        rest: Flags of `lit-vlaa fit`.
        device: Of PyTorch's; `auto` for a GPU where there is one.

    Raises:
        ValueError: If it cannot be loaded; the message names the file or flag.
        UsageError: If flags cannot be parsed.
    """
    path = Path(model)
    trained = path.suffix == ".ckpt" or is_sharded_checkpoint(path)
    found = [config_beside(path)] if trained else [path / CONFIG_NAME]
    files = list(config) or [file for file in found if file is not None and file.is_file()]
    if trained and not files:
        raise ValueError(f"there is no config.yaml beside {model}: name the run's configuration with --config")
    words = [f"--config={file}" for file in files] or list(_BASE)
    if trained:
        words.append(f"--model.init_args.init_from={model}")
    else:
        words += [f"--model.init_args.backbone.path={model}", "--model.init_args.backbone.revision=null"]
        words.append("--model.init_args.init_from=null")
    parsed = read_config([*words, *rest])
    arguments, data = parsed["model"]["init_args"], parsed["data"]["init_args"]
    if "backbone" not in arguments:
        raise ValueError(f"--config: {parsed['model']['class_path']} has no backbone")
    backbone = build_backbone(for_scoring(backbone_of(arguments["backbone"])), init_from=arguments.get("init_from"))
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        backbone = backbone.eval().to(place)
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA raises the latter
        raise ValueError(f"--device {device}: {error}") from error
    prompt = data.get("prompt")
    return Policy(
        backbone,
        SamplingParams(**arguments["sampling"].as_dict()),
        PromptConfig() if prompt is None else PromptConfig(**prompt.as_dict()),
        int(data.get("max_image_pixels") or MAX_IMAGE_PIXELS),
    )
