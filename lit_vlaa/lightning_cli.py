"""`lit-vlaa fit|validate|test|predict`: LightningCLI with this project's defaults, its checks and its loggers."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only

from lit_vlaa.checks import PreemptedExit, RunStoppedError, UsageError, find_problems, last_checkpoint, one_line
from lit_vlaa.hints import configuration_fault, hint, unknown_option
from lit_vlaa.output_paths import run_problems
from lit_vlaa.run_folder import claim, release
from lit_vlaa.run_progress import Progress
from lit_vlaa.strategies import map_strategy_name
from lit_vlaa.yaml_files import TOO_LARGE, too_large

set_parsing_settings(docstring_parse_attribute_docstrings=True)


_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_PACKAGES = tuple(str(Path(__file__).resolve().parents[1] / name) for name in ("lit_vlaa", "callbacks", "datamodules"))
_usual_format = warnings.formatwarning


def _format_warning(message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    if filename.startswith(_PACKAGES):
        return f"lit-vlaa: warning: {message}\n"
    return _usual_format(message, category, filename, lineno, line)


def _no_advertisement(record: logging.LogRecord) -> bool:
    return not {"litlogger", "litmodels"} & set(re.findall(r"\w+", record.getMessage()))


def _without_noise() -> None:
    """Drops advertisements, source lines, and warnings of Lightning's that are nothing to this program's users."""
    warnings.formatwarning = _format_warning
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    # A run without validation rows is no mistake, and checkpoints hold the state after the step on purpose.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    # Every run has a folder of its own, also one that goes on.
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")


class Parser(LightningArgumentParser):
    """Reports what is wrong with the arguments without the usage of a hundred flags."""

    def parse_args(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """Parses; `--flag=None` means null, as which jsonargparse hands null on to the fields of nested classes.

        Raises:
            UsageError: If something cannot be read, or a YAML file stands for more values than any configuration has.
        """
        words = list(sys.argv[1:] if args is None else args)
        for before, word in zip(["", *words], words, strict=False):
            flag, _, value = word.rpartition("=")
            named = (flag or before) in {"--config", "-c"} and value not in {"--config", "-c"}
            if named and not re.search(r"[\n{]|: ", value) and (fault := configuration_fault(Path(value))):
                raise UsageError([f"--config {value}{fault}"])
            if Path(value).suffix in {".yaml", ".yml"} and too_large(Path(value)):
                raise UsageError([f"{value}: {TOO_LARGE}"])
        if args is not None:
            args = [f"{word[: -len('None')]}null" if re.fullmatch(r"--[^=]+=None", word) else word for word in args]
        return super().parse_args(args, *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises UsageError, with what may have been meant by an unknown option.

        Otherwise the message stays as it is, since parsers of nested classes report to this one.
        """
        option = unknown_option(message)
        if option is not None:
            commands = [action.choices for action in self._actions if isinstance(action.choices, dict)]
            parsers = [self, *(parser for choices in commands for parser in choices.values())]
            near = hint(option, (flag.lstrip("-") for parser in parsers for flag in parser._option_string_actions))
            nowhere = not near and message.startswith("unrecognized")
            message += "; --help, behind the command, shows its flags" if nowhere else near
        elif message.startswith("unrecognized arguments: ") and message.split()[-1].endswith((".yaml", ".yml")):
            message += "; a configuration is named by --config FILE"
        elif message.startswith("unrecognized arguments: "):
            message += "; flags begin with --"
        raise UsageError([message]) from ex


class VLAACLI(LightningCLI):
    """A command that runs a Trainer.

    Model, data and everything in them come from `--config` files and flags. A checkpoint gives weights, optimiser and
    position, never hyperparameters: those of the command line hold.

    Args:
        command: `fit`, `validate`, `test` or `predict`; the others are not prepared, which takes its time.
        args: Arguments after `lit-vlaa`, the command first; None takes those of the process.
    """

    def __init__(self, command: str, args: ArgsType = None) -> None:
        self._command = command
        self._progress = Progress()
        super().__init__(
            args=args,
            parser_class=Parser,
            parser_kwargs={"prog": "lit-vlaa"},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=42,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "use_distributed_sampler": False,
                "inference_mode": False,
                "default_root_dir": "runs",
            },
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # of an instance, not of the class
        """The command alone."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would let hyperparameters stored in the checkpoint win over the command line."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, refuses what cannot work before anything is built, and maps `fsdp` to `fsdp2`.

        Raises:
            UsageError: If the arguments, or a combination of them, cannot work.
        """
        try:
            super().parse_arguments(parser, args)
        except UsageError as error:
            raise UsageError([one_line(problem) for problem in error.problems]) from error
        config = self.config[self.config["subcommand"]]
        if problems := [*find_problems(config), *run_problems(config.trainer)]:
            raise UsageError(problems)
        if config.get("ckpt_path") == "last":
            config.ckpt_path = self._progress.last = last_checkpoint(config, self.config["subcommand"])
        if isinstance(config.trainer.strategy, str):
            config.trainer.strategy = map_strategy_name(config.trainer.strategy)

    def instantiate_classes(self) -> None:
        """Builds data, model and Trainer.

        Raises:
            UsageError: If one of them refuses its arguments.
        """
        try:
            super().instantiate_classes()
        except (ValueError, OSError, ModuleNotFoundError, MisconfigurationException) as error:
            raise UsageError([one_line(str(error))]) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the Trainer, with TensorBoard and CSV logs in one folder unless `--trainer.logger` says otherwise.

        The answers of `predict` are written to a file.
        """
        from lit_vlaa.policy import PolicyModule  # noqa: PLC0415  # imports transformers, which --help does not need

        trainer = self._get(self.config_init, "trainer")
        if trainer.logger is None or trainer.logger is True:
            kwargs["logger"] = default_loggers(trainer.default_root_dir)
        callbacks = [] if trainer.callbacks is None else trainer.callbacks
        kwargs["callbacks"] = [*(callbacks if isinstance(callbacks, list) else [callbacks]), self._progress]
        if self.subcommand == "predict" and isinstance(self.model, PolicyModule):
            # By name, since the library does not depend on the callbacks.
            writer = importlib.import_module("callbacks").PredictionWriter
            if not any(isinstance(callback, writer) for callback in kwargs["callbacks"]):
                kwargs["callbacks"].append(writer())
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Says where the run's results are."""
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                folder = Path(logger.log_dir)
                rank_zero_info(f"curves: tensorboard --logdir {folder.parent} (this run is {folder.name})")
        callbacks = [
            callback for callback in self.trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)
        ]
        for path in dict.fromkeys(callback.last_model_path or callback.best_model_path for callback in callbacks):
            if path:
                rank_zero_info(
                    f"checkpoint: {os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path}"
                )

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the Trainer.

        Raises:
            UsageError: If files or settings turn out not to work while everything is set up, or a row while it is read.
        """
        try:
            super()._run_subcommand(subcommand)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise RunStoppedError(
                f"{one_line(str(error)).rstrip('. ')}. Machines short of memory do that: try a smaller "
                "--data.num_workers, and go on from the last checkpoint with --ckpt_path last"
            ) from error
        except (ValueError, OSError, ModuleNotFoundError, MisconfigurationException) as error:
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise RunStoppedError(
                    f"a file could not be written ({error}). Checkpoints that were written before are whole: make "
                    "room, and go on from them with --ckpt_path last"
                ) from error
            reading = _raised_while_reading(error)
            if self._progress.started and not reading:
                raise
            launcher = self.trainer.strategy.launcher
            if isinstance(launcher, _SubprocessScriptLauncher):
                # The other ranks would complain of this one's silence.
                launcher.kill(signal.SIGKILL)
            raise UsageError([_reason(error)], local=reading) from error


class Parsed(VLAACLI):
    """Parses what a command would, checks no more, and builds nothing; `config` has the result.

    Args:
        command: The command.
        args: As for `VLAACLI`.
    """

    def __init__(self, command: str = "fit", args: ArgsType = None) -> None:
        super().__init__(command, args)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses.

        Raises:
            UsageError: If an argument cannot be read.
        """
        try:
            LightningCLI.parse_arguments(self, parser, args)
        except UsageError as error:
            raise UsageError([one_line(problem) for problem in error.problems]) from error

    def _set_seed(self) -> None:
        """Nothing is drawn."""

    def instantiate_classes(self) -> None:
        """Nothing is built."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


def _raised_while_reading(error: BaseException) -> bool:
    """Whether a data loader raised it, in this process or in a worker; the message then names the row."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__") == "torch.utils.data.dataloader" for frame in frames)


def _reason(error: BaseException) -> str:
    """An error's message in one line; of one that comes from a data loader's worker, only the original message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Caught "):
        return re.sub(r"^[\w.]+: ", "", lines[-1])
    return " ".join(" ".join(lines).split())


def default_loggers(root: str | Path) -> list[Logger]:
    """TensorBoard events and `metrics.csv` side by side in `<root>/version_<n>`, with the first n that is free.

    Raises:
        UsageError: If the folder cannot be made.
    """
    from lit_vlaa.run_logs import EventLogger, RowLogger, Trouble  # noqa: PLC0415  # imports TensorBoard's writer

    trouble = Trouble()
    events = EventLogger(root, None, trouble)
    if getattr(rank_zero_only, "rank", 0) == 0:
        try:
            events = EventLogger(root, claim(Path(root), int(events.version)), trouble)
        except OSError as error:
            raise UsageError([f"--trainer.default_root_dir {root} cannot be written to: {error.strerror}"]) from error
    warnings.filterwarnings("ignore", message="Experiment logs directory")  # The folder is shared on purpose.
    return [events, RowLogger(root, events.version, trouble)]


def run(args: Sequence[str]) -> None:
    """Runs one command to its end.

    Args:
        args: Arguments after `lit-vlaa`, the command first.

    Raises:
        PreemptedExit: If a signal ended the run; its code is the process's exit code.
        UsageError: If the arguments cannot work.
    """
    _without_noise()
    # Ranks that Lightning starts run this process's command line again.
    sys.argv = [sys.argv[0], *args]
    preempted: PreemptedExit | None = None
    begun = True
    try:
        VLAACLI(args[0])
    except PreemptedExit as stop:
        preempted = stop
    except UsageError:
        begun = False
        raise
    finally:
        release(begun=begun)
    if torch.distributed.is_initialized():
        # A rank that leaves early makes gloo abort the ranks that still hold connections to it.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if preempted is not None:
        raise preempted
