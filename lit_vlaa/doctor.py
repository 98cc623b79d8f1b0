"""`lit-vlaa doctor`: whether runs work on this machine, and how much memory a run takes, part by part."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from transformers import PretrainedConfig

from lit_vlaa.activations import decoder, image_tokens, passing_bytes
from lit_vlaa.backbone.config import BackboneConfig
from lit_vlaa.backbone.released import model_config
from lit_vlaa.checks import UsageError, find_problems
from lit_vlaa.environment import gpu_bytes, look
from lit_vlaa.flags import Flags
from lit_vlaa.generation import CachedGenerator
from lit_vlaa.memory import (
    OVERHEAD,
    PHASES,
    RewardModel,
    Run,
    estimate,
    peak,
    phase_bytes,
    pinned_bytes,
    tensors_of,
    weight_bytes,
)
from lit_vlaa.output_paths import run_problems
from lit_vlaa.placement import batch_problems, disk_lines, kept_checkpoints
from lit_vlaa.preflight import look_at_callbacks, look_at_rows
from lit_vlaa.reference import Reference
from lit_vlaa.remedies import Remedies, check
from lit_vlaa.rollout_memory import Rollouts
from lit_vlaa.run_config import backbone_of, read_config, setting_problems
from lit_vlaa.strategies import map_strategy_name

_TEXT_TOKENS = 256
"""Of a typical prompt beside its image, with the system prompt."""

_BUILT_ON = {"Skywork-VL-Reward-7B": "Qwen/Qwen2.5-VL-7B-Instruct"}
"""Released models whose shape reward models have."""


def run(words: Sequence[str]) -> int:
    """Reports on the environment and, where a run is described, on its memory.

    Args:
        words: Flags of this tool and those of `lit-vlaa fit`.

    Returns:
        0 if runs work here, `fit` would start the one described and not stop at the rows and benchmarks looked at, and
        it fits; else 1. Without a GPU to see, nor `--memory-gb`, anything fits; a data file that is not there yet is
        named and no more.
    """
    own, rest = _flags().read_beside(words)
    _check(own)
    if not rest:
        return int(_report_environment())
    config = read_config(rest)
    ranks = ranks_of(config["trainer"])
    problems = [*find_problems(config), *run_problems(config["trainer"]), *setting_problems(config["model"])]
    problems += batch_problems(config, ranks)
    memory = gpu_bytes() if own.memory_gb is None else int(own.memory_gb * 2**30)
    try:
        described, shape = run_of(config, own.prompt_tokens)
        fatal = _report_environment()
        for problem in problems:
            _say(f"as it stands, fit would refuse: {problem}")
        lines, stops = look_at_rows(config, own.rows)
        more, stops_too = look_at_callbacks(config, own.rows)
    except (ValueError, OSError) as error:
        raise UsageError([*problems, " ".join(str(error).split())]) from error
    _say(f"\nstrategy {described.strategy} on {ranks} device(s) of {config['trainer']['num_nodes']} node(s)")
    for line in [
        *lines,
        *more,
        *disk_lines(kept_checkpoints(config["trainer"], described, tensors_of(shape, described.backbone))),
    ]:
        _say(line)
    return max(int(fatal or stops or stops_too or bool(problems)), report_memory(described, shape, memory))


def _flags() -> Flags:
    parser = Flags(
        prog="lit-vlaa doctor",
        description="Tells whether runs work on this machine. With the --config and flags of `lit-vlaa fit` it also "
        "estimates how much memory that run takes on each GPU, says whether it fits, and which flags would save how "
        "much, looks at a sample of its rows, at what their truths earn, at the files of its benchmarks, and at the "
        "room that checkpoints take. Nothing is built or downloaded but the model's configuration and, where there are "
        "rows, its tokenizer.",
    )
    parser.add_argument("--memory-gb", type=float, help="memory of a GPU in GiB, such as 80; default: of those visible")
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        help="tokens of a typical prompt with its image; default: the largest image and 256",
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=300,
        help="rows of each data file to look at, spread over it; 0 for none, nor the files of benchmarks (300)",
    )
    return parser


def _check(own: argparse.Namespace) -> None:
    if own.memory_gb is not None and not 0 < own.memory_gb < math.inf:
        raise UsageError([f"--memory-gb must be positive, got {own.memory_gb:g}"])
    if own.prompt_tokens is not None and own.prompt_tokens < 1:
        raise UsageError([f"--prompt-tokens must be at least 1, got {own.prompt_tokens}"])
    if own.rows < 0:
        raise UsageError([f"--rows must not be negative, got {own.rows}"])


def run_of(config: Mapping[str, Any], prompt_tokens: int | None = None) -> tuple[Run, PretrainedConfig]:
    """What of a parsed `fit` configuration decides its memory, and the model's configuration.

    Args:
        config: With `trainer`, `model` and `data`.
        prompt_tokens: Of a typical row; None assumes the largest image.

    Raises:
        ValueError: If a model cannot be found, or `fit` would refuse the settings.
    """
    trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
    backbone = backbone_of(model["backbone"])
    shape = model_config(backbone)
    strategy, offload = _strategy(trainer["strategy"])
    ranks = ranks_of(trainer)
    if strategy != "fsdp2":
        strategy = "ddp" if ranks > 1 else "single"
    group = model.get("group_size")
    rollouts = None
    options: Any = {}
    if group is not None:
        prompts = max(1, data["batch_size"] // ranks)
        options = (model["generator"] or {}).get("init_args", {})
        rollouts = Rollouts(
            rows=min(options.get("max_rows", CachedGenerator().max_rows), prompts * group),
            group_size=group,
            new_tokens=model["sampling"]["max_new_tokens"],
            prompts=prompts,
            **{name: options[name] for name in ("merge_adapters", "dequantize") if name in options},
        )
    reference = "none"
    if group is not None:
        Reference(model["reference"], backbone, None)  # refuses what it cannot do, even where it is not needed
        reference = model["reference"] if model["kl"]["coefficient"] > 0 else "none"
    described = Run(
        backbone=backbone,
        optimizer=model["optim"]["optimizer"],
        strategy=strategy,  # type: ignore[arg-type]  # one of the three by now
        cpu_offload=offload,
        ranks=ranks,
        mixed=str(trainer["precision"]) in {"bf16-mixed", "bf16"},
        tokens=model["max_tokens_per_micro_batch"],
        prompt_tokens=prompt_tokens or image_tokens(shape, backbone.max_pixels) + _TEXT_TOKENS,
        rollouts=rollouts,
        reference=reference,  # type: ignore[arg-type]  # as parsed
        reward=_reward_model(model.get("scorer")),
    )
    check(described)
    if rollouts is None or options.get("memory_gb") is None:
        return described, shape
    most = int(options["memory_gb"] * 2**30)
    return replace(described, rollouts=rollouts.within(most, described, decoder(shape))), shape


def _many(numbers: int, digits: int = 2) -> str:
    """A count in billions, or in millions where that would be next to nothing."""
    return f"{numbers / 1e9:.{digits}f} B" if numbers >= 1e8 else f"{numbers / 1e6:.{digits}f} M"


def report_memory(described: Run, shape: PretrainedConfig, memory: int | None) -> int:
    """Prints the parts of a run's memory, whether they fit, and what saves how much; gives the exit code."""
    tensors = tensors_of(shape, described.backbone)
    total, trained = (sum(t.numbers for t in tensors if t.trains or not only) for only in (False, True))
    parts = estimate(described, shape)
    _say(
        f"\n{described.backbone.path}: {_many(total)} parameters, {_many(trained, 3)} of them train; "
        f"{described.strategy} on {described.ranks} GPU(s), {'bf16-mixed' if described.mixed else '32-true'}"
    )
    _say(
        f"estimate for one GPU in GiB, with micro-batches of {described.tokens} tokens and prompts of "
        f"{described.prompt_tokens}"
    )
    width = max(len(part.name) for part in parts)
    for phase in ("always", *PHASES):
        for part in parts:
            if part.phase == phase:
                place = "" if part.on_gpu else "  in main memory"
                _say(f"  {phase:<9}  {part.name:<{width}}  {_gib(part.size)}{place}")
    for phase in PHASES:
        if any(part.phase == phase for part in parts):
            _say(f"  {phase + ' in all':<{width + 11}}  {_gib(phase_bytes(parts, phase) + OVERHEAD)}")
    host = peak(parts, on_gpu=False)
    if host:
        _say(f"  {'main memory for each GPU':<{width + 11}}  {_gib(host)}")
    most = peak(parts)
    if memory is None:
        _say(f"peak {_gib(most).strip()} GiB; no GPU is visible: give --memory-gb to hear whether it fits")
        return 0
    fits = most <= memory
    _say(f"peak {_gib(most).strip()} of {_gib(memory).strip()} GiB: " + ("it fits" if fits else "it does not fit"))
    if not fits:
        _report_remedies(Remedies(described, shape), most, memory)
    return int(not fits)


def _report_remedies(found: Remedies, before: int, memory: int) -> None:
    _say("what each of these alone would make of the peak:")
    for knob in found.knobs:
        size = found.peak_with((knob,))
        if size is not None and size < before:
            _say(f"  {_gib(size)}  {knob.flags}" + ("  <- fits" if size <= memory else ""))
    best = found.best(memory)
    if best is None:
        _say("  no combination of these fits: use more GPUs, or a smaller model")
    elif len(best) > 1:
        together = found.peak_with(best)
        _say(f"  {_gib(together or 0)}  together: {' '.join(knob.flags for knob in best)}  <- fits")


def _reward_model(scorer: Namespace | None) -> RewardModel | None:
    if scorer is None or not scorer["class_path"].endswith(".RewardModelScorer"):
        return None
    given = scorer["init_args"]
    path = given["path"]
    name = _BUILT_ON.get(path.rstrip("/").rpartition("/")[2], path) if not Path(path).is_dir() else path
    backbone = BackboneConfig(path=name, revision=given["revision"], dtype=given["dtype"])
    try:
        shape = model_config(backbone)
    except ValueError as error:
        raise ValueError(str(error).replace("--model.backbone.", "--model.scorer.init_args.")) from error
    sizes = [weight_bytes(tensor, 1) for tensor in tensors_of(shape, backbone) if "lm_head" not in tensor.name]
    sizes += [4 * decoder(shape).hidden, 4]  # the value head's
    activations = passing_bytes(decoder(shape), kind="float32" if given["dtype"] == "float32" else "bfloat16")
    return RewardModel(
        weights=sum(sizes),
        pinned=pinned_bytes(sizes),
        activations=given["max_tokens_per_batch"] * activations,
        offload=given["offload"],
    )


def _strategy(parsed: Any) -> tuple[str, bool]:
    if isinstance(parsed, str):
        name = map_strategy_name(parsed)
        return ("fsdp2" if name.startswith("fsdp2") else name), name == "fsdp2_offload"
    sharded = parsed["class_path"].endswith("FSDP2Strategy")
    return ("fsdp2" if sharded else "ddp"), bool(parsed.get("init_args", {}).get("cpu_offload", False))


def ranks_of(trainer: Mapping[str, Any]) -> int:
    """Devices of all nodes together."""
    return _devices(trainer["devices"]) * int(trainer["num_nodes"])


def _devices(parsed: Any) -> int:
    if isinstance(parsed, int) and parsed > 0:
        return parsed
    if isinstance(parsed, list):
        return len(parsed)
    if isinstance(parsed, str) and parsed not in {"auto", "-1"}:
        return int(parsed) if parsed.isdecimal() else len([part for part in parsed.split(",") if part.strip()])
    import torch  # noqa: PLC0415

    return max(1, torch.cuda.device_count())


def _report_environment() -> bool:
    """Prints what was found; says whether nothing can run."""
    findings = look()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        _say(f"{finding.name:<{width}}  {finding.value}" + (f"  <- {finding.problem}" if finding.problem else ""))
    fatal = any(finding.fatal for finding in findings)
    _say("no run works here before the lines with an arrow are mended" if fatal else "runs work here")
    return fatal


def _gib(size: int) -> str:
    return f"{size / 2**30:7.2f}"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
