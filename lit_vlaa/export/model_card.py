"""The model card: what the weights are, how they came about, what they score, how to use them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from lit_vlaa.export.run_files import Score

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
    """`sha256`, `bytes` and `repository` of the data file, as far as they are known."""
    command: str
    """The command that wrote the folder."""
    version: str
    """Of lit-vlaa."""


def write_card(exported: Exported) -> str:
    """The text of `README.md`, with the metadata that the Hub reads at its head."""
    return "\n".join([*_metadata(exported), *_body(exported)]) + "\n"


def _metadata(exported: Exported) -> Iterator[str]:
    path = str(_value(exported.config, "model.backbone.path"))
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: image-text-to-text"
    if _is_hub_id(path):
        yield f"base_model: {path}"
    if repository := exported.data.get("repository"):
        yield f"datasets:\n- {json.dumps(str(repository))}"
    yield f"tags:\n- lit-vlaa\n- {_stage(exported).lower()}"
    yield "---"


def _body(exported: Exported) -> Iterator[str]:
    base = str(_value(exported.config, "model.backbone.path"))
    yield f"\n# {exported.name}\n"
    steps = "" if exported.steps is None else f" for {exported.steps:,} optimiser steps"
    yield (
        f"{_shown(base)} ({exported.parameters / 1e6:,.1f}M parameters) trained by {_stage(exported)}{steps} with "
        f"lit-vlaa {exported.version}."
    )
    if start := _value(exported.config, "model.init_from"):
        yield f"It started from the weights of `{start}`."
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
        yield from (f"> {line}" for line in exported.system_prompt.splitlines())
        yield ""
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
    instructions = _value(exported.config, "data.prompt.instructions") or {}
    given = {key: text for key, text in instructions.items() if text} if isinstance(instructions, Mapping) else {}
    if given:
        yield "Behind the question stood a line by kind or source:\n"
        yield from (f"- {_shown(key)}: {_shown(text)}" for key, text in given.items())
        yield ""


def _scores(exported: Exported) -> Iterator[str]:
    yield "## Scores\n"
    if not exported.scores:
        yield "None were given to the export.\n"
        return
    yield "| evaluation | score | ± | rows | |\n|---|---:|---:|---:|---|"
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
        value = _value(exported.config, key)
        if (value in (None, [], 0, -1) and key != "seed_everything") or (
            title == "LoRA alpha" and not exported.adapters
        ):
            continue
        yield f"| {title} (`{key}`) | {_shown(value)} |"
    file = _value(exported.config, "data.data_file")
    if file is not None:
        known = [f"SHA-256 `{exported.data['sha256']}`"] if "sha256" in exported.data else []
        yield f"| data (`data.data_file`) | {'; '.join([_shown(PurePath(str(file)).name), *known])} |"
    yield f"\n`{CONFIG_NAME}` is the whole configuration; the run again, and this folder from its checkpoint:\n"
    yield f"```bash\nlit-vlaa fit --config {CONFIG_NAME}\n{exported.command}\n```"


def _stage(exported: Exported) -> str:
    return exported.module.removesuffix("Module") or "training"


def _is_hub_id(path: str) -> bool:
    return bool(_HUB_ID.fullmatch(path)) and not path.startswith((".", "/"))


def _value(config: Mapping[str, Any], key: str) -> Any:
    """A value by its dotted key, with or without `init_args` in between."""
    found: Any = config
    for name in key.split("."):
        if not isinstance(found, Mapping):
            return None
        inner = found.get("init_args")
        found = found[name] if name in found else inner.get(name) if isinstance(inner, Mapping) else None
    return found


def _shown(value: Any) -> str:
    """A value in one cell of a Markdown table."""
    text = " ".join(str(value).split()) if not isinstance(value, list | tuple) else ", ".join(map(str, value))
    return text.replace("|", "\\|").replace("<", "&lt;")
