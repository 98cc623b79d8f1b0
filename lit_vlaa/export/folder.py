"""Writes the folder: weights, processor, settings, card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, GenerationConfig
from transformers.utils.hub import cached_file

from lit_vlaa.backbone import Backbone, BackboneConfig, build_backbone
from lit_vlaa.backbone.adapter_state import starting_points
from lit_vlaa.backbone.processor import naming_path
from lit_vlaa.checkpoints import MODULE, header, problem
from lit_vlaa.digests import sha256_of
from lit_vlaa.export.chat_template import with_system_prompt
from lit_vlaa.export.model_card import CONFIG_NAME, Exported, write_card
from lit_vlaa.export.older_versions import for_older_versions
from lit_vlaa.export.run_files import Score, read_scores
from lit_vlaa.perplexity_module import for_scoring
from lit_vlaa.prompts import DEFAULT_SYSTEM_PROMPT
from lit_vlaa.run_config import backbone_of, read_config
from lit_vlaa.versions import installed
from lit_vlaa.whole_files import replacing

_PROCESSOR_CLASSES = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen2_vl": "Qwen2VLProcessor"}
_OF_BASE = ("video_preprocessor_config.json", "merges.txt", "vocab.json")
"""Files of a base model that this program does not use and others want."""

_MARGIN = 2**26
"""Bytes beside the weights: tokenizer, settings, card."""


def export(
    checkpoint: str,
    output_dir: Path,
    *,
    config: Sequence[Path],
    dtype: str,
    scores: Sequence[Path],
    name: str,
    max_shard_gb: float,
    command: str,
) -> list[str]:
    """Writes a checkpoint's policy as a model folder, whole or not at all.

    Args:
        checkpoint: File or sharded folder; behind `BASE::` adapters whose base was moved, as for `init_from`.
        output_dir: The folder; not there yet, or empty.
        config: The run's configuration files, as for `lit-vlaa fit`.
        dtype: Of the stored weights; `auto` takes the base model's own.
        scores: Evaluations for the card; none takes the run's own.
        name: Title of the card.
        max_shard_gb: Most gigabytes of a weight file.
        command: What the card says that wrote it.

    Returns:
        What was written, a line each.

    Raises:
        ValueError: If the checkpoint, the configuration or the scores do not fit; the message names the file.
        OSError: If the folder cannot be written.
    """
    parsed = read_config([f"--config={path}" for path in config])
    arguments = parsed["model"]["init_args"]
    if "backbone" not in arguments:
        raise ValueError(f"--config: {parsed['model']['class_path']} has no backbone to export")
    path = starting_points(checkpoint)[-1]
    if fault := problem(path):
        raise ValueError(f"CHECKPOINT {path} {fault}; give the .ckpt file of a run, or a folder of sharded FSDP2")
    found = [score for file in scores for score in read_scores(file)] if scores else _own_scores(config[-1])
    stored = _header(path)
    trained = backbone_of(arguments["backbone"])
    settings = for_scoring(trained)
    backbone = build_backbone(settings, init_from=checkpoint)
    wanted = _dtype(settings, backbone, dtype)
    _check_room(backbone, wanted, output_dir)
    backbone = backbone.to(wanted)
    plain = {key: part for key, part in _plain(parsed).items() if key != "config"}  # where it was read from
    prompt = _system_prompt(plain)
    template = with_system_prompt(backbone.processor.tokenizer.chat_template, prompt)
    backbone.processor.tokenizer.chat_template = template
    backbone.model.generation_config = _generation(backbone, _mapping(plain["model"]["init_args"].get("sampling")))
    exported = Exported(
        name=name,
        config=plain,
        module=stored.get(MODULE) or parsed["model"]["class_path"].rpartition(".")[2],
        steps=stored.get("global_step"),
        adapters=trained.adapters is not None,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        dtype=str(wanted).removeprefix("torch."),
        system_prompt=prompt,
        scores=found,
        data=_data(_mapping(plain.get("data"))),
        command=command,
        version=installed("lit-vlaa") or "unknown",
    )
    if output_dir.is_dir():
        output_dir.rmdir()
    with replacing(output_dir) as part:
        part.mkdir()
        try:
            backbone.save_pretrained(part, max_shard_size=int(max_shard_gb * 1e9))
        except SafetensorError as error:  # its own word for a full disk
            raise ValueError(f"--output-dir {output_dir} cannot be written: {error}") from error
        _complete_processor(part, settings, backbone.model.config.model_type)
        for_older_versions(part)
        shutil.copyfile(config[-1], part / CONFIG_NAME) if len(config) == 1 else _dump(exported.config, part)
        (part / "README.md").write_text(write_card(exported), encoding="utf-8")
        for file in part.glob("*.safetensors"):  # transformers leaves them to their owner alone
            file.chmod((part / "README.md").stat().st_mode)
    return [
        f"configuration: {', '.join(map(str, config))}",
        f"{exported.parameters / 1e6:,.1f}M parameters as {exported.dtype}"
        + (", adapters added to the weights" if exported.adapters else ""),
        f"{len(found)} scores in the card" if found else "no scores in the card: --scores names an evaluation's files",
        *(
            f"{CONFIG_NAME} names {place}, and more of this machine's folders perhaps: look before you publish"
            for place in _local_places(plain)[:1]
        ),
        f"written: {output_dir}",
    ]


def _own_scores(config: Path) -> list[Score]:
    """The evaluation that a run made of itself; it may have ended before the first was complete."""
    try:
        return read_scores(config.parent / "benchmarks" / "summary.json")
    except ValueError:
        return []


def _header(path: Path) -> dict[str, Any]:
    """What a checkpoint says of the run, as far as it has the form that it should have."""
    stored, wanted = header(path), {MODULE: str, "global_step": int}
    return {name: stored[name] for name, kind in wanted.items() if isinstance(stored.get(name), kind)}


def _local_places(value: Any) -> list[str]:
    """Absolute paths anywhere in a configuration."""
    if isinstance(value, Mapping | list):
        values = value.values() if isinstance(value, Mapping) else value
        return [place for one in values for place in _local_places(one)]
    return [value] if isinstance(value, str) and value.startswith("/") else []


def _dtype(settings: BackboneConfig, backbone: Backbone, wanted: str) -> torch.dtype:
    """The type to store weights in."""
    found: Any = None if wanted == "auto" else getattr(torch, wanted)
    if found is None and settings.path != "tiny":
        with naming_path(settings):
            found = AutoConfig.from_pretrained(
                settings.path, revision=settings.revision, trust_remote_code=settings.trust_remote_code
            ).dtype
    return found if isinstance(found, torch.dtype) else next(backbone.parameters()).dtype


def _check_room(backbone: Backbone, dtype: torch.dtype, output_dir: Path) -> None:
    needed = sum(parameter.numel() for parameter in backbone.parameters()) * dtype.itemsize + _MARGIN
    there = next(parent for parent in output_dir.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ValueError(f"--output-dir {output_dir}: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def _system_prompt(config: Mapping[str, Any]) -> str:
    """What the policy was told ahead of every question."""
    prompt = _mapping(_mapping(config["data"].get("init_args")).get("prompt"))
    found = prompt.get("system_prompt", DEFAULT_SYSTEM_PROMPT)
    return str(found or "")


def _generation(backbone: Backbone, sampling: Mapping[str, Any]) -> GenerationConfig:
    """How transformers and vLLM draw unless told otherwise: as in the run."""
    temperature = float(sampling.get("temperature", 0.0))
    drawn: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        drawn |= {"temperature": temperature, "top_p": float(sampling.get("top_p", 1.0))}
        drawn |= {"top_k": int(sampling.get("top_k", 0))}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        **drawn,
        max_new_tokens=int(sampling.get("max_new_tokens", 1024)),
        bos_token_id=backbone.model.config.get_text_config().bos_token_id,
        eos_token_id=list(backbone.processor.stop_token_ids),
        pad_token_id=backbone.processor.pad_token_id,
    )


def _complete_processor(folder: Path, settings: BackboneConfig, model_type: str) -> None:
    """Adds what transformers' combined processor and older versions look for."""
    path = folder / "preprocessor_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    size = content["size"]
    content |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    content["processor_class"] = _PROCESSOR_CLASSES[model_type]
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in () if settings.path == "tiny" else _OF_BASE:
        try:
            found = cached_file(settings.path, name, revision=settings.revision)
        except OSError:
            continue  # the base model does without
        if found and not (folder / name).exists():
            shutil.copyfile(str(found), folder / name)


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the data file."""
    file = _mapping(data.get("init_args")).get("data_file")
    if file is None or not Path(str(file)).is_file():
        return {}
    path = Path(str(file))
    known: dict[str, Any] = {"sha256": sha256_of(path)}
    try:
        known["repository"] = json.loads((path.parent / "download.json").read_text(encoding="utf-8"))["repository"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return known  # made by other means than `lit-vlaa data download`
    return known


def _dump(config: Mapping[str, Any], folder: Path) -> None:
    import yaml  # noqa: PLC0415 - only where several files were merged

    (folder / CONFIG_NAME).write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")


def _plain(value: Any) -> Any:
    """A parsed configuration as mappings, lists and plain values."""
    value = value.as_dict() if hasattr(value, "as_dict") else value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
