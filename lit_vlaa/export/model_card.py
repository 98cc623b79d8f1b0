"""The model card: what the weights are, how they came about, what they score, how to use them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from lit_vlaa.export.run_files import Score, value_at
from lit_vlaa.study.markdown import text

CONFIG_NAME = "lit_vlaa_config.yaml"
"""The run's configuration beside the weights."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

_RECIPE = (
    ("model.optim.lr", "peak learning rate"),
    ("model.optim.min_lr", "final learning rate"),
    ("model.optim.schedule", "schedule"),
    ("model.optim.optimizer", "optimiser"),
    ("model.optim.weight_decay", "weight decay"),
    ("model.backbone.freeze", "frozen"),
    ("model.backbone.lora.rank", "LoRA rank"),
    ("model.backbone.lora.alpha", "LoRA alpha"),
    ("model.backbone.quantize", "base quantised to"),
    ("model.backbone.max_pixels", "most pixels of an image"),
    ("model.group_size", "completions a prompt"),
    ("model.train_batch_size", "prompts an optimiser step"),
    ("model.kl.coefficient", "KL coefficient"),
    ("model.loss.clip_low", "clip below"),
    ("model.loss.clip_high", "clip above"),
    ("model.sampling.temperature", "temperature of rollouts"),
    ("model.sampling.max_new_tokens", "most tokens of a completion"),
    ("data.batch_size", "rows or prompts a batch"),
    ("trainer.max_steps", "most steps"),
    ("trainer.max_epochs", "epochs"),
    ("trainer.precision", "precision"),
    ("seed_everything", "seed"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What the card tells of."""

    name: str
    config: Mapping[str, Any]
    """The run's configuration: `seed_everything`, `trainer`, `model`, `data`."""
    module: str
    """Class of the module that was trained."""
    steps: int | None
    """Optimiser steps taken."""
    adapters: bool
    """Whether adapters were added to the base's weights."""
    parameters: int
    dtype: str
    system_prompt: str
    scores: Sequence[Score]
    data: Mapping[str, Any]
    """`sha256` and `repository` of the data file, as far as they are known."""
    command: str
    """The command that wrote the folder."""
    version: str
    """Of lit-vlaa."""


def write_card(exported: Exported) -> str:
    """The text of `README.md`, with the metadata that the Hub reads at its head."""
    return "\n".join([*_metadata(exported), *_body(exported)]) + "\n"


def _metadata(exported: Exported) -> Iterator[str]:
    path = str(value_at(exported.config, "model.backbone.path"))
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: image-text-to-text"
    if _is_hub_id(path):
        yield f"base_model: {path}"
    if _HUB_ID.fullmatch(repository := str(exported.data.get("repository"))):
        yield f"datasets:\n- {repository}"
    yield f"tags:\n- lit-vlaa\n- {json.dumps(_stage(exported).lower())}"
    yield "---"


def _body(exported: Exported) -> Iterator[str]:
    base = str(value_at(exported.config, "model.backbone.path"))
    yield f"\n# {text(exported.name)}\n"
    steps = "" if exported.steps is None else f" for {exported.steps:,} optimiser steps"
    yield (
        f"{text(without_folders(base))} ({exported.parameters / 1e6:,.1f}M parameters) trained by "
        f"{text(_stage(exported))}{steps} with "
        f"lit-vlaa {exported.version}."
    )
    if start := value_at(exported.config, "model.init_from"):
        yield f"It started from the weights of {text(without_folders(str(start)))}."
    if exported.adapters:
        yield "Its adapters are added to the base's weights; nothing else is needed to load it."
    yield f"Weights are stored as {exported.dtype}."
    yield "\nLicence and limits are those of the base model and the data; fill in what holds for yours.\n"
    yield from _use(exported)
    yield from _scores(exported)
    yield from _training(exported)


def _use(exported: Exported) -> Iterator[str]:
    yield "## Use\n"
    if exported.system_prompt:
        yield "The chat template begins chats without a system turn as in training:\n"
        yield f"{_fenced(exported.system_prompt)}\n"
    yield (
        "```python\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        'model = AutoModelForImageTextToText.from_pretrained("FOLDER_OR_HUB_ID", dtype="auto", device_map="auto")\n'
        'processor = AutoProcessor.from_pretrained("FOLDER_OR_HUB_ID")\n'
        'content = [{"type": "image", "url": "picture.jpg"}, {"type": "text", "text": "How many chairs are there?"}]\n'
        "inputs = processor.apply_chat_template(\n"
        '    [{"role": "user", "content": content}],\n'
        "    add_generation_prompt=True,\n"
        "    tokenize=True,\n"
        "    return_dict=True,\n"
        '    return_tensors="pt",\n'
        ").to(model.device)\n"
        "tokens = model.generate(**inputs)\n"
        'print(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n'
        "```\n"
    )
    instructions = value_at(exported.config, "data.prompt.instructions") or {}
    given = {key: line for key, line in instructions.items() if line} if isinstance(instructions, Mapping) else {}
    if given:
        yield "Behind the question stood a line by kind or source:\n"
        yield from (f"- {_shown(key)}: {_shown(line)}" for key, line in given.items())
        yield ""


def _scores(exported: Exported) -> Iterator[str]:
    yield "## Scores\n"
    if not exported.scores:
        yield "None were given to the export.\n"
        return
    yield "± is the standard error.\n"
    yield "| evaluation | score | ± | rows | how |\n|---|---:|---:|---:|---|"
    for score in exported.scores:
        cells = (
            f"{score.value:.1f} %" if score.percent else f"{score.value:.4g}",
            "" if score.stderr is None else f"{score.stderr:.1f}" if score.percent else f"{score.stderr:.2g}",
            "" if score.rows is None else f"{score.rows:,}",
            _shown(score.note) if score.note else "",
        )
        yield f"| {_shown(score.name)} | {' | '.join(cells)} |"
    yield ""


def _training(exported: Exported) -> Iterator[str]:
    yield "## Training\n"
    yield "| setting | value |\n|---|---|"
    for key, title in _RECIPE:
        value = value_at(exported.config, key)
        if (value in (None, [], 0, -1) and key != "seed_everything") or (
            title == "LoRA alpha" and not exported.adapters
        ):
            continue
        yield f"| {title} (`{key}`) | {_shown(value)} |"
    file = value_at(exported.config, "data.data_file")
    if file is not None:
        known = [f"SHA-256 `{exported.data['sha256']}`"] if "sha256" in exported.data else []
        yield f"| data (`data.data_file`) | {'; '.join([_shown(PurePath(str(file)).name), *known])} |"
    yield f"\n`{CONFIG_NAME}` is the whole configuration; the run again, and this folder from its checkpoint:\n"
    yield _fenced(f"lit-vlaa fit --config {CONFIG_NAME}\n{exported.command}", "bash")


def _stage(exported: Exported) -> str:
    return exported.module.removesuffix("Module") or "training"


def without_folders(path: str) -> str:
    """A path as others may see it: below the working folder, or without the folders that it lies in.

    Args:
        path: Of a file or a folder, a Hub id, or checkpoints with `::` between them.
    """
    parts = [PurePath(part) for part in path.split("::")]
    here = Path.cwd()
    return "::".join(
        str(part.relative_to(here) if part.is_relative_to(here) else part.name) if part.is_absolute() else str(part)
        for part in parts
    )


def _is_hub_id(path: str) -> bool:
    return bool(_HUB_ID.fullmatch(path)) and not path.startswith((".", "/")) and not Path(path).exists()


def _fenced(content: str, language: str = "text") -> str:
    """Lines as they are; no run of backticks among them ends the block."""
    fence = "`" * (max((len(run) for run in re.findall("`+", content)), default=0) + 3)
    return f"{fence}{language}\n{content}\n{fence}"


def _shown(value: Any) -> str:
    """A value in one cell of a Markdown table."""
    return text(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
