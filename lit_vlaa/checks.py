"""What can be said about a command's arguments before anything is built, in one line a problem.

PyTorch and Lightning are imported only where a check needs them, so that the small tools answer at once.
"""

from __future__ import annotations

import importlib
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lit_vlaa.hints import BESIDE, NEAREST, missing, unknown_option
from lit_vlaa.output_paths import given_to

PRECISIONS = ("32-true", "bf16-mixed")
"""Values of `--trainer.precision` that manual optimisation with clipping of our own trains in."""

_ALIASES = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}

_KEYWORD_CHECKPOINTS = ("best", "last", "hpc")
"""Values of `--ckpt_path` that stand for a path: `last_checkpoint` finds the last, Lightning the others."""

_LAST = "LIT_VLAA_LAST_CHECKPOINT"
"""Environment variable by which ranks that Lightning starts take the checkpoint that the first one found."""

ORIGIN = "LIT_VLAA_ORIGIN_FILE"
"""Environment variable: a launcher's file, to which `--ckpt_path last` writes what it found.

A command that ends in order removes it; one that crashes or is killed leaves it. See `lit_vlaa.hosts` and
`configs/cluster/train.sbatch`.
"""

AGENT = "LIT_VLAA_AGENT"
"""Environment variable: the number of the process without which this one must not live (`lit_vlaa.hosts`)."""

_NO_MODEL = (
    "no model is given: add --model lit_vlaa.sft.SFTModule or --model lit_vlaa.grpo.GRPOModule, "
    "or a --config that names one"
)
_NO_DATA = "no data is given: add --data datamodules.VLAAThinkingDataModule, or a --config that names it"


class UsageError(Exception):
    """Arguments that cannot work.

    Args:
        problems: One line each, naming the flag and the remedy.
        local: Whether this rank alone may have met them; otherwise one rank tells for all.
    """

    def __init__(self, problems: Sequence[str], *, local: bool = False) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
        self.local = local


class RunStoppedError(Exception):
    """A run that ended itself, with a checkpoint where one could be saved; the message says why, and how to go on."""


class PreemptedExit(SystemExit):
    """A run that saved a checkpoint and ended because it was told to by a signal; every rank raises it at one point."""


def find_problems(config: Mapping[str, Any]) -> list[str]:
    """Looks for what would fail later, and less clearly.

    Args:
        config: The parsed configuration of one command: `trainer`, `model`, `data`, `ckpt_path`.

    Returns:
        One line for each problem, none if all is well.
    """
    trainer = config["trainer"]
    return [
        *_missing_classes(config),
        *_strategy(trainer["strategy"]),
        *_precision(trainer["precision"]),
        *_devices(trainer["accelerator"], trainer["devices"]),
        *_trainer_flags(trainer),
        *_checkpoint(config.get("ckpt_path")),
    ]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch found no room on a GPU; by its name, as the command line does without PyTorch where it can."""
    return type(error).__name__ == "OutOfMemoryError"


def one_line(message: str) -> str:
    """Rewrites a parser's report of many lines as one.

    Args:
        message: What jsonargparse says of a value, with all the types it tried.

    Returns:
        The flag, what was expected and what came; text in another form only loses its line breaks.
    """
    if re.search(r"required.*\bmodel\b", message):
        return _NO_MODEL
    keys: list[str] = []
    expected: list[str] = []
    other: list[str] = []
    got = ""
    advice = ""
    for raw in message.splitlines():
        line, advice = _advice(raw.strip().removeprefix("- "), keys, advice)
        if key := re.match(r'Parser key "([^"]+)":', line):
            keys.append(key[1])
            line = line[key.end() :].strip()
        line, _, value = line.partition(". Got value: ")
        got = value or got
        option = unknown_option(line)
        if option and (keys or not line.startswith("unrecognized")):
            keys.append(option)
            other.append(f"there is no such option{advice}")
        elif line.startswith("Given value: ") and "(" not in line:
            got = got or line.removeprefix("Given value: ")
        elif line.startswith("Expected a dot import path string"):
            expected.append("a class such as package.module.Class")
        elif typed := re.match(r"Expected an? (<class '[\w.]+'>|typing\.Literal\[.*\])$", line):
            if name := _type_name(typed[1]):
                expected.append(name)
        elif line and not line.startswith(("Expected a path but", *_NOISE)):
            text = _PROTOCOL.sub(_AS_PROTOCOL, line.removesuffix(":"))
            other.append(text + _OWN_ENGINE if "`Generator`" in text else text)
    if not keys and other and advice:
        other[-1] += advice
    if not advice and any("--" in line for line in other):
        return next(line for line in other if "--" in line)
    if expected and not other:
        other.append(f"expected {' or '.join(expected)}" + (f", got {got}" if got else ""))
    text = "; ".join(other) or " ".join(message.split())
    return f"--{'.'.join(keys)}: {text}" if keys else text


def _advice(line: str, keys: Sequence[str], known: str) -> tuple[str, str]:
    """A line without what `lit_vlaa.hints` added to it, and that as the end of a sentence; else what is known."""
    line, near, names = line.partition(NEAREST)
    if near:
        return line, f"; did you mean --{'.'.join([*keys, names])}?"
    line, beside, names = line.partition(BESIDE)
    return line, f"; beside it there are {names}" if beside else known


_PROTOCOL = re.compile(r"Import path does not implement protocol (\w+)")
_AS_PROTOCOL = r"a method of `\1` is missing, or lacks an argument or an annotation"
_OWN_ENGINE = " (docs/howto/own_engine.md)"
_NOISE = ("Does not validate against", "Subtypes:", "Errors:", "Given value")


def _type_name(text: str) -> str:
    """`int` for `<class 'int'>`, the choices for a Literal, an example of a list, nothing for None."""
    if text.startswith("typing.Literal["):
        return "one of " + text[len("typing.Literal[") : -1].replace("'", "")
    name = text[len("<class '") : -2]
    return {"NoneType": "", "list": "a list such as [a, b]"}.get(name, name)


def _missing_classes(config: Mapping[str, Any]) -> Iterator[str]:
    if not config.get("model"):
        yield _NO_MODEL
    if not config.get("data"):
        yield _NO_DATA


def _strategy(strategy: Any) -> Iterator[str]:
    """Manual optimisation with accumulation and clipping of our own runs under these families only."""
    from lightning.pytorch.strategies import (  # noqa: PLC0415 (see the module's docstring)
        DDPStrategy,
        SingleDeviceStrategy,
        StrategyRegistry,
    )

    from lit_vlaa.strategies import FSDP2Strategy  # noqa: PLC0415

    remedy = "use auto, ddp, fsdp2 (fsdp means the same), fsdp2_sharded or fsdp2_offload"
    if isinstance(strategy, str):
        ddp = [name for name in StrategyRegistry.available_strategies() if name.startswith("ddp")]
        if strategy not in {"auto", "fsdp", "fsdp2", "fsdp2_sharded", "fsdp2_offload", *ddp}:
            yield f"--trainer.strategy {strategy} is not supported; {remedy}"
        return
    path: str = strategy["class_path"]
    module, _, name = path.rpartition(".")
    if not issubclass(
        getattr(importlib.import_module(module), name), (DDPStrategy, FSDP2Strategy, SingleDeviceStrategy)
    ):
        yield f"--trainer.strategy {path} is not supported; {remedy}, or lit_vlaa.strategies.FSDP2Strategy"


def _precision(precision: Any) -> Iterator[str]:
    name = "32-true" if precision is None else _ALIASES.get(str(precision), str(precision))
    if name == "bf16-true":
        yield f"--trainer.precision {precision}: for bfloat16 weights give --model.backbone.dtype bfloat16 instead"
    elif name not in PRECISIONS:
        yield f"--trainer.precision {precision} does not work; use one of {', '.join(PRECISIONS)}"


def _devices(accelerator: Any, devices: Any) -> Iterator[str]:
    """Looks for GPUs that are asked for but not there."""
    import torch  # noqa: PLC0415 (see the module's docstring)
    from lightning.pytorch.accelerators import AcceleratorRegistry  # noqa: PLC0415

    if not isinstance(accelerator, str):
        return
    known = sorted({"auto", "gpu", *AcceleratorRegistry.available_accelerators()})
    if accelerator not in known:
        yield f"--trainer.accelerator {accelerator} is unknown; use one of {', '.join(known)}"
        return
    wanted = _device_numbers(devices)
    if wanted is None:
        return
    if not wanted:
        yield f"--trainer.devices {devices} asks for no device; use auto or a number from 1"
    elif accelerator in {"gpu", "cuda"}:
        visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not visible:
            yield f"--trainer.accelerator {accelerator}: no GPU is visible here; use --trainer.accelerator cpu"
        elif max(wanted) >= visible:
            yield (
                f"--trainer.devices {devices} asks for more than the {visible} visible GPU(s); "
                f"use --trainer.devices {visible} or fewer"
            )


def _device_numbers(devices: Any) -> list[int] | None:
    """The numbers of the devices asked for: `3` and `0,1,2` mean the first three; None if the form is Lightning's."""
    if devices in {"auto", "-1", -1} if isinstance(devices, (str, int)) else False:
        return [0]
    if isinstance(devices, str):
        if re.fullmatch(r"-?\d+", devices):
            return list(range(int(devices)))
        numbers = [part.strip() for part in devices.split(",") if part.strip()]
        return [int(number) for number in numbers] if all(n.isdecimal() for n in numbers) else None
    return list(range(devices)) if isinstance(devices, int) else list(devices)


def _trainer_flags(trainer: Mapping[str, Any]) -> Iterator[str]:
    """Flags of the Trainer that manual optimisation, or FSDP2, makes wrong."""
    if trainer["gradient_clip_val"] is not None or trainer["gradient_clip_algorithm"] is not None:
        yield "--trainer.gradient_clip_val and gradient_clip_algorithm do not apply; use --model.max_grad_norm"
    if trainer["accumulate_grad_batches"] != 1:
        yield (
            "--trainer.accumulate_grad_batches does not apply; set the batch with the data's batch size and what "
            "runs at one time with --model.max_tokens_per_micro_batch"
        )
    if trainer["use_distributed_sampler"]:
        yield (
            "--trainer.use_distributed_sampler true would shuffle the data module's own order; "
            "use --trainer.use_distributed_sampler false"
        )
    if trainer["inference_mode"]:
        yield (
            "--trainer.inference_mode true breaks training after validation under fsdp2; "
            "use --trainer.inference_mode false"
        )


def last_checkpoint(config: Mapping[str, Any], command: str) -> str | None:
    """Finds what `--ckpt_path last` means, and says so.

    It is the newest checkpoint below `--trainer.default_root_dir`, or below a folder that a callback or a logger saves
    to, that can be read and was written by a run of the same module; a signal's and those of SLURM's requeuing count.

    Args:
        config: The parsed configuration of one command.
        command: `fit`, `validate`, `test` or `predict`.

    Returns:
        Its path. None where there is none yet, so that a job's script can always ask for the last.

    Raises:
        UsageError: If there are checkpoints but none that can be read, or none to evaluate.
    """
    from lightning_utilities.core.rank_zero import rank_zero_info  # noqa: PLC0415 (see the module's docstring)

    from lit_vlaa.checkpoints import newest  # noqa: PLC0415
    from lit_vlaa.run_folder import going_on  # noqa: PLC0415
    from lit_vlaa.whole_files import remove_leftovers  # noqa: PLC0415

    if _LAST in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":  # found by the process that started this one
        return os.environ[_LAST] or None
    folders = [
        config["trainer"]["default_root_dir"] or ".",
        *given_to(config["trainer"]["callbacks"], "dirpath"),
        *given_to(config["trainer"]["logger"], "save_dir"),
    ]
    for folder in map(Path, folders) if command == "fit" else ():
        remove_leftovers(folder, below=True)
    path, passed_over = newest(map(Path, folders), config["model"]["class_path"].rpartition(".")[2])
    if path is None and (passed_over or command != "fit"):
        raise UsageError(
            [f"--ckpt_path last: {fault}" for fault in passed_over] or [f"--ckpt_path last: none is below {folders[0]}"]
        )
    live = None if path is None or command != "fit" else going_on(path)
    if live is not None:
        reason = f"--ckpt_path last: {path} belongs to a run that is still going on, in {live}"
        remedy = "wait for its end, give this run another --trainer.default_root_dir, or name the checkpoint's path"
        raise UsageError([f"{reason}; {remedy}"])
    for fault in passed_over:
        rank_zero_info(f"--ckpt_path last: passed over, since {fault}")
    rank_zero_info(f"--ckpt_path last: {path or f'none below {folders[0]} yet, the run starts at its beginning'}")
    os.environ[_LAST] = "" if path is None else str(path)
    if path is not None and ORIGIN in os.environ:
        # With its time, as a name may be written anew. Many processes write the same: it must never be empty in
        # between, nor come back when one of them has removed it.
        with suppress(FileNotFoundError), Path(os.environ[ORIGIN]).open("r+", encoding="utf-8") as file:
            file.write(f"{path}\n{path.stat().st_mtime_ns}")
            file.truncate()
    return None if path is None else str(path)


def _checkpoint(path: Any) -> Iterator[str]:
    from lit_vlaa.checkpoints import (  # noqa: PLC0415 (see the module's docstring)
        SHARDED_METADATA,
        is_sharded_checkpoint,
        newest_within,
    )

    if path is None or path in _KEYWORD_CHECKPOINTS:
        return
    checkpoint = Path(path)
    if not checkpoint.exists():
        yield f"--ckpt_path {path} {missing(checkpoint)}"
    elif checkpoint.is_dir() and not is_sharded_checkpoint(checkpoint):
        remedy = (
            "it holds a model in the Hub's layout: use --model.backbone.path or --model.init_from"
            if (checkpoint / "config.json").is_file()
            else f"did you mean {inside}?"
            if (inside := newest_within(checkpoint))
            else "give a .ckpt file or a folder saved by fsdp2_sharded"
        )
        yield f"--ckpt_path {path} is a folder but no checkpoint; {remedy}"
    elif not zipfile.is_zipfile(checkpoint / SHARDED_METADATA if checkpoint.is_dir() else checkpoint):
        yield (
            f"--ckpt_path {path} is not a checkpoint written by this program, or it is cut off; give another .ckpt "
            "file, or last for the newest that can be read"
        )
