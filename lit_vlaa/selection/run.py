"""What `lit-vlaa data select` does once its flags are read."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_only

from datamodules.check.settings import MAX_IMAGE_PIXELS
from lit_vlaa.checks import UsageError, find_problems
from lit_vlaa.hints import missing
from lit_vlaa.perplexity_module import Model, for_scoring
from lit_vlaa.prompts import PromptConfig
from lit_vlaa.run_config import backbone_of, read_config
from lit_vlaa.selection.choice import Integers, Mean, averaged, drawn, ranked
from lit_vlaa.selection.report import Selection, sentences, write
from lit_vlaa.selection.rows import Pool, digest_of, read_pool, write_subsets
from lit_vlaa.selection.scores import ScoreFolder
from lit_vlaa.selection.scoring import Settings, left, score

_BASE = ("--model=lit_vlaa.sft.SFTModule", "--data=datamodules.VLAAThinkingDataModule", "--data.split=sft")


def read(given: Any, rest: Sequence[str]) -> Any:
    """Parses the configuration of the stage; without one, that of `lit-vlaa fit`.

    Args:
        given: The command's own flags; the image root is None where images lie in shards.
        rest: Those of `lit-vlaa fit`.

    Raises:
        UsageError: If they cannot work.
    """
    words = [f"--config={path}" for path in given.config] or list(_BASE)
    root = given.image_root or given.data_file
    words += [f"--data.init_args.data_file={given.data_file}", f"--data.init_args.image_root={root}"]
    words += [
        f"--trainer.{name}={value}"
        for name, value in (("accelerator", given.accelerator), ("devices", given.devices))
        if value is not None
    ]
    config = read_config([*words, *rest])
    if problems := find_problems(config):
        raise UsageError(problems)
    if "backbone" not in config["model"]["init_args"]:
        raise UsageError(
            [f"--config: {config['model']['class_path']} has no backbone; name lit_vlaa.sft.SFTModule, say"]
        )
    return config


def select(given: Any, config: Any) -> None:
    """Scores what is still to score, then chooses.

    Args:
        given: The command's own flags.
        config: The parsed configuration.

    Raises:
        ValueError: If a flag, a row or a model cannot be used.
        OSError: If a file cannot be read or written.
    """
    data = config["data"]["init_args"]
    pool = read_pool(
        given.data_file,
        given.image_root,
        on_bad_record=data.get("on_bad_record") or "error",
        cache_dir=data.get("cache_dir"),
        aha=given.aha,
        matching=given.matching or "substring",
    )
    keep = sorted(set(given.keep or [len(pool.rows)]), reverse=True)
    if keep[0] > len(pool.rows):
        raise ValueError(f"--keep {keep[0]} is more than the {len(pool.rows)} rows to choose from")
    digest = digest_of(given.data_file)
    models = scorers(given, config, digest)
    if models:
        settings = _settings(given, config)
        pending = [(model, folder) for model, folder in models if len(left(pool, folder, settings))]
        if pending:
            score(pool, pending, settings)
    if getattr(rank_zero_only, "rank", 0):  # the first process goes on alone
        return
    if given.shard:
        sys.stdout.write(f"shard {given.shard[0]}/{given.shard[1]} is scored; without --shard the command chooses\n")
        return
    selection = _chosen(given, pool, models, keep, digest)
    _write(selection, given)


def scorers(given: Any, config: Any, digest: str) -> list[tuple[Model, ScoreFolder]]:
    """What scores, each with the folder of its likelihoods.

    Args:
        given: The command's own flags.
        config: The parsed configuration.
        digest: Of the data file's bytes.

    Raises:
        ValueError: If a checkpoint is not there, or the backbone's settings cannot work together.
    """
    made = config["model"]["init_args"]
    stage = for_scoring(backbone_of(made["backbone"]))
    found = []
    for name in given.models:
        path = Path(name)
        if path.suffix == ".ckpt":
            backbone, init_from = stage, str(path)
        else:
            local = str(path.resolve()) if path.is_dir() else name
            # A revision is that of one repository.
            backbone = replace(stage, path=local, revision=stage.revision if name == stage.path else None)
            init_from = None
        model = Model(
            backbone=backbone,
            init_from=init_from,
            max_tokens=int(made.get("max_tokens_per_micro_batch", 8192)),
            batching=made.get("batching", "packed"),
            accelerator=config["trainer"]["accelerator"],
            precision=config["trainer"]["precision"],
        )
        found.append((model, ScoreFolder(given.output_dir / "scores", name, _facts(given, config, model, digest))))
    return found


def _facts(given: Any, config: Any, model: Model, digest: str) -> dict[str, Any]:
    """What likelihoods depend on; a checkpoint is known by its path, size and time."""
    backbone = {name: value for name, value in asdict(model.backbone).items() if name != "logprob_chunk"}
    checkpoint = None
    if model.init_from is not None:
        path = Path(model.init_from)
        if not path.exists():
            raise ValueError(f"--models {path} {missing(path)}")
        stat = path.stat()
        checkpoint = [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
    return {
        "data_file": digest,
        "image_root": None if given.image_root is None else str(given.image_root.resolve()),
        "part": given.part or "response",
        "backbone": backbone,
        "checkpoint": checkpoint,
        "precision": str(model.precision),
        "prompt": asdict(_prompt(config)),
    }


def _prompt(config: Any) -> PromptConfig:
    found = config["data"]["init_args"].get("prompt")
    return PromptConfig() if found is None else PromptConfig(**found.as_dict())


def _settings(given: Any, config: Any) -> Settings:
    data, trainer = config["data"]["init_args"], config["trainer"]
    return Settings(
        part=given.part or "response",
        shard=given.shard or (1, 1),
        image_root=(given.image_root or given.data_file).resolve(),
        max_image_pixels=data.get("max_image_pixels") or MAX_IMAGE_PIXELS,
        prompt=_prompt(config),
        batch_size=given.batch_size or 16,
        workers=int(data.get("num_workers") or 0),
        skip_bad=data.get("on_bad_record") == "skip",
        devices=trainer["devices"],
        num_nodes=trainer["num_nodes"],
    )


def _chosen(
    given: Any, pool: Pool, models: Sequence[tuple[Model, ScoreFolder]], keep: Sequence[int], digest: str
) -> Selection:
    """Puts the rows in order."""
    facts: dict[str, Any] = {"data_file": given.data_file.name, "sha256": digest, "aha": given.aha}
    if given.aha:
        facts["matching"] = given.matching or "substring"
    suffix = "" if given.data_file.is_dir() else ".json"
    files = {count: given.output_dir / f"{_stem(given)}-{_label(count)}{suffix}" for count in keep}
    if any(path.resolve() == given.data_file.resolve() for path in files.values()):
        raise ValueError("--output-dir and --name would overwrite --data-file; give others")
    if not models:
        seed = 42 if given.seed is None else given.seed
        facts |= {"by": "random", "seed": seed} if given.random else {"by": None}
        order: Integers = drawn(len(pool.rows), seed) if given.random else np.arange(len(pool.rows))
        return Selection(facts=facts, pool=pool, order=order, files=files)
    scores = [folder.read(pool.rows) for _, folder in models]
    if missing := sum(int((~own.done()).sum()) for own in scores):
        raise ValueError(f"{missing} likelihoods are not written yet; wait for the other processes, and run again")
    tokens = np.stack([own.tokens for own in scores])
    usable = np.flatnonzero((tokens > 0).all(axis=0))
    if keep[0] > len(usable):
        raise ValueError(f"--keep {keep[0]} is more than the {len(usable)} rows that could be scored")
    logs = np.full(len(pool.rows), np.nan)
    mean: Mean = given.mean or "perplexity"
    logs[usable] = averaged(np.stack([own.nll for own in scores])[:, usable], tokens[:, usable], mean)
    facts |= {"by": "perplexity", "order": given.order or "highest", "mean": mean, "part": given.part or "response"}
    facts["models"] = [{"name": folder.model, "scores": folder.path.name} for _, folder in models]
    order = usable[ranked(logs[usable], given.order or "highest")]
    reasons: dict[int, str] = {}
    for own in scores:
        reasons |= own.unscored
    return Selection(
        facts=facts,
        pool=pool,
        order=order,
        files=files,
        logs=logs,
        scores=scores,
        unscored=Counter(reason for place, reason in reasons.items() if not (tokens[:, place] > 0).all()),
    )


def _stem(given: Any) -> str:
    file = given.data_file.resolve()
    return str(given.name or re.sub(r"-\d+[Kk]?$", "", file.name if file.is_dir() else file.stem))


def _label(count: int) -> str:
    """25000 as `25K`, as the release calls its files."""
    return f"{count // 1000}K" if count % 1000 == 0 else str(count)


def _write(selection: Selection, given: Any) -> None:
    pool, most = selection.pool, max(selection.files)
    ranks: Mapping[int, int] = {int(pool.rows[place]): rank for rank, place in enumerate(selection.order[:most])}
    write_subsets(given.data_file, ranks, selection.files)
    report = write(selection, given.output_dir)
    sys.stdout.write("\n".join([*sentences(report, _line), f"report: {given.output_dir / 'report.md'}", ""]))


def _line(text: str) -> str:
    """One line that shows as it stands on a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)
