"""The `lit-vlaa` command: four commands that run a Trainer, and tools.

Nothing heavy is imported here, so that `--help`, `--version` and the tools answer quickly.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from jsonargparse import ArgumentParser

from lit_vlaa.checks import ORIGIN, RunStoppedError, UsageError, is_out_of_memory
from lit_vlaa.flags import check_output, told
from lit_vlaa.hints import NEAR_OF_FEW, nearest
from lit_vlaa.versions import installed

RUNS = {
    "fit": "train a model",
    "validate": "evaluate on the validation split",
    "test": "evaluate on the test split",
    "predict": "write answers",
}
"""The commands of Lightning's Trainer, with what they do."""

ELSEWHERE = {"train": "fit", "evaluate": "test", "benchmark": "test", "generate": "predict", "ask": "predict"}
"""What other programs call these commands."""

_ASK = (
    "lit-vlaa predict MODEL --question TEXT [--image FILE] asks one question (more: lit-vlaa predict MODEL --help); "
    "lit-vlaa predict --config FILE ... writes answers to rows"
)
_INTERRUPTED, _UNHEARD = 130, 141
_GO_ON = "; with --ckpt_path last the same command goes on from the newest checkpoint, if any (SIGTERM saves one first)"

_NO_ROOM = (
    "lit-vlaa: the GPU has no room for it. `lit-vlaa doctor` with the run's configuration and flags tells the peak of "
    "each pass and which flags lower it; docs/troubleshooting.md tells by the functions above which pass it was"
)


class Tool(NamedTuple):
    """A command beside the Trainer's: a function whose keyword parameters become flags."""

    target: str
    """`module:function`, imported when the tool runs."""
    summary: str
    """One line for `--help`."""
    output: str | None = None
    """The parameter that users know as `--output-dir`."""
    words: bool = False
    """Whether the function takes the words after the command and parses them itself."""
    reads: tuple[str, ...] = ()
    """Folders, by parameter, that are only read where an earlier command has written all of them."""


TOOLS = {
    "data synthetic": Tool(
        "datamodules.synthetic:write_dataset",
        "write a generated data set in the VLAA-Thinking schema",
        "root",
        reads=("output_dir",),
    ),
    "data download": Tool(
        "datamodules.hub.download:run", "get VLAA-Thinking from the Hub: checked, unpacked and counted", words=True
    ),
    "data convert": Tool(
        "datamodules.convert:run", "write a data file as Parquet shards, with its images inside or not"
    ),
    "data check": Tool(
        "datamodules.check.tool:run", "look at every row and image of a data file before a run does", words=True
    ),
    "data build": Tool(
        "lit_vlaa.pipeline.build:run",
        "build SFT and RL splits with reasoning traces in the paper's six steps",
        words=True,
    ),
    "data select": Tool(
        "lit_vlaa.selection.tool:run", "keep the rows of highest perplexity, with aha cues, or at random", words=True
    ),
    "rewards check": Tool("lit_vlaa.rewards_check:run", "score every ground truth of a file against itself"),
    "rewards serve": Tool(
        "lit_vlaa.rewards.scorers.server:serve", "host a scorer of open-ended answers for other environments"
    ),
    "eval compare": Tool(
        "callbacks.evaluation.compare:run",
        "compare an evaluation with a baseline row by row, with intervals and tests",
        words=True,
    ),
    "study run": Tool(
        "lit_vlaa.study.commands:run", "train, evaluate and compare matched arms by SFT and RL", words=True
    ),
    "study report": Tool("lit_vlaa.study.report:run", "write a study's report again from its folder", words=True),
    "study plan": Tool("lit_vlaa.study.commands:plan", "show a study's jobs and what differs between arms", words=True),
    "study slurm": Tool("lit_vlaa.study.commands:slurm", "write scripts that run a study on a cluster", words=True),
    "study traces": Tool(
        "lit_vlaa.study.traces_tool:run", "measure saved responses: length, doubt, contradiction, form", words=True
    ),
    "study perplexity": Tool(
        "lit_vlaa.study.perplexity_tool:run", "perplexity of saved responses under a base model", words=True
    ),
    "export": Tool(
        "lit_vlaa.export.tool:run", "write a checkpoint as a model folder in the Hub's layout, with a card", words=True
    ),
    "doctor": Tool("lit_vlaa.doctor:run", "tell whether runs work here, and how much memory one takes", words=True),
    "quickstart": Tool(
        "lit_vlaa.quickstart:run", "generate data, then train and evaluate a tiny model on the CPU", reads=("data_dir",)
    ),
}
"""Tools by command; a command may have two words."""

PREDICT = Tool("lit_vlaa.predict.tool:run", "answer a question on images, or a file of them", words=True)
"""What `predict` is when a model follows it, not a flag."""


class _ToolParser(ArgumentParser):
    """Reports errors without the usage."""

    _words: Sequence[str] = ()

    def parse_args(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """Parses, and keeps the words for what is to be said of them."""
        self._words = args or ()
        return super().parse_args(args, *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if required := re.fullmatch(r"(the following arguments are required: )([\w, ]+)", message):
            message = required[1] + ", ".join(f"--{name.replace('_', '-')}" for name in required[2].split(", "))
        problem = told(message, prog=self.prog, known=self._option_string_actions, words=self._words)
        raise UsageError([problem]) from ex


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: Arguments after `lit-vlaa`; None takes those of the process.

    Returns:
        The exit code: 0 when all went well, 1 when a run stopped itself, 2 when the arguments cannot work, 130 after
        Ctrl-C, 141 when nobody reads the output any more, as after `| head`.
    """
    code = _run(list(sys.argv[1:] if args is None else args))
    if ORIGIN in os.environ:
        Path(os.environ[ORIGIN]).unlink(missing_ok=True)
    return code


def _run(words: list[str]) -> int:
    try:
        return _dispatch(words)
    except UsageError as error:
        if os.environ.get("LIT_VLAA_DEBUG"):
            raise
        if error.local or _first_rank():
            sys.stderr.writelines(f"lit-vlaa: error: {_plain(problem)}\n" for problem in error.problems)
        return 2
    except RunStoppedError as stopped:
        if _first_rank():
            sys.stderr.write(f"lit-vlaa: stopped: {stopped}\n")
        return 1
    except KeyboardInterrupt:
        if os.environ.get("LIT_VLAA_DEBUG"):
            raise
        return _interrupted()
    except RuntimeError as error:
        if is_out_of_memory(error):
            error.add_note(_NO_ROOM)
        raise
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # not a file, as in tests
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain at its end
        return _UNHEARD
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        pressed = isinstance(stop.__context__, KeyboardInterrupt)  # Lightning makes this of Ctrl-C
        return _interrupted(_GO_ON if words[0] == "fit" else "") if pressed else code


def _interrupted(advice: str = "") -> int:
    if _first_rank():
        sys.stderr.write(f"lit-vlaa: interrupted{advice}\n")
    return _INTERRUPTED


def _plain(text: str) -> str:
    """Escapes what a terminal would obey rather than show: messages quote data files and servers."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def _first_rank() -> bool:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0"))) == "0"


def _dispatch(words: list[str]) -> int:
    """Finds the command and runs it."""
    if not words or words[0] in {"-h", "--help", "help"}:
        sys.stdout.write(_help())
        return 0
    if words[0] in {"-V", "--version"}:
        sys.stdout.write(f"lit-vlaa {installed('lit-vlaa') or '(not installed)'}\n")
        return 0
    if words[0] == "predict" and words[1:] and not words[1].startswith("-"):
        return _run_tool("predict", PREDICT, words[1:])
    if words[0] == "predict" and len(words) == 1:
        raise UsageError([_ASK])
    if words[0] in RUNS:
        if words[0] == "predict" and {"-h", "--help"} & set(words):
            sys.stdout.write(f"{_ASK}\n\n")
        _imported("lit_vlaa.lightning_cli").run(words)
        return 0
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in TOOLS:
            return _run_tool(name, TOOLS[name], words[length:])
    group = {name: tool.summary for name, tool in TOOLS.items() if name.startswith(f"{words[0]} ")}
    if group and words[1:2] in (["-h"], ["--help"]):
        sys.stdout.write("\n".join([*_table(group), "", f"lit-vlaa {next(iter(group))} --help shows its flags", ""]))
        return 0
    raise UsageError([_unknown(words)])


def _imported(name: str) -> ModuleType:
    """Imports a module and all that it needs without garbage collection.

    What is imported stays to the end. To go through it again and again, and once more at the end, takes a third of the
    time of a short command.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
        if collecting:
            gc.enable()


def _run_tool(name: str, tool: Tool, words: Sequence[str]) -> int:
    """Parses flags by the function's signature and calls it."""
    module, _, attribute = tool.target.partition(":")
    try:
        function: Callable[..., Any] = getattr(_imported(module), attribute)
    except ModuleNotFoundError as error:
        raise UsageError([f"lit-vlaa {name} cannot start: {error}; run `make setup` in the repository"]) from error
    if tool.words:
        return int(function(words))
    parser = _ToolParser(prog=f"lit-vlaa {name}", description=_prose(function) or tool.summary)
    if tool.output:
        parser.add_argument("--output_dir", type=Path, required=True, help="The folder to write to.")
    parser.add_function_arguments(
        function, as_group=False, as_positional=False, skip={tool.output} if tool.output else None
    )
    values = parser.instantiate(parser.parse_args([_underscored(word) for word in words])).as_dict()
    for key, flag in (("output_dir", "--output-dir"), ("data_dir", "--data-dir"), ("output", "--output")):
        if isinstance(path := values.get(key), Path):
            check_output(flag, path, file=key == "output", writes=key not in tool.reads)
    if tool.output:
        values[tool.output] = values.pop("output_dir")
    try:
        result = function(**values)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        raise UsageError([str(error)]) from error
    return result if isinstance(result, int) else 0


def _prose(function: Callable[..., Any]) -> str:
    """A docstring without its sections: the flags have a help of their own."""
    return (inspect.getdoc(function) or "").partition("\n\nArgs:")[0]


def _underscored(word: str) -> str:
    """`--some-flag=a-b` as `--some_flag=a-b`: both spellings of a flag work."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}"


def _unknown(words: Sequence[str]) -> str:
    """What to type instead of an unknown command."""
    if words[0].startswith("-"):
        return f"the command comes before {words[0]}, as in `lit-vlaa fit --config FILE`"
    within = [name for name in TOOLS if name.startswith(f"{words[0]} ")]
    commands = within or [*RUNS, *TOOLS]
    typed = " ".join(words[:2]) if within else words[0]
    group = within and (len(words) == 1 or words[1].startswith("-"))  # `study` would be near `study run` alone
    close = ELSEWHERE.get(words[0]) or ("" if group else nearest(typed, commands, NEAR_OF_FEW))
    advice = f"did you mean `lit-vlaa {close}`?" if close else f"use one of: {', '.join(commands)}"
    given = " ".join(word for word in words[: 2 if within else 1] if not word.startswith("-"))
    return f"there is no command `lit-vlaa {given}`; {advice}"


def _table(commands: Mapping[str, str]) -> list[str]:
    """Commands with what they do, a line each."""
    width = max(map(len, commands))
    return [f"  {name:<{width}}  {summary}" for name, summary in commands.items()]


def _help() -> str:
    """The page of `lit-vlaa --help`."""
    commands = {**RUNS, **{name: tool.summary for name, tool in TOOLS.items()}}
    return "\n".join(
        [
            "usage: lit-vlaa COMMAND [--config FILE ...] [--flag VALUE ...]",
            "",
            "Train reasoning vision-language models with SFT and GRPO.",
            "",
            "commands:",
            *_table(commands),
            "",
            "  lit-vlaa predict MODEL ...       answer one question, or a file of them (predict MODEL --help)",
            "  lit-vlaa COMMAND --help          its flags; models and data have their own:",
            "  lit-vlaa fit --model.help CLASS  the flags of a model",
            "  lit-vlaa fit ... --print_config  the whole configuration, as a file for --config",
            "  lit-vlaa --version               the version",
            "",
            "Set LIT_VLAA_DEBUG=1 to see where an error comes from.",
            "",
        ]
    )
