"""The commands and files that the README and the pages of `docs/` show, and whether the program would take them."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn
from unittest import mock

from helpers.launch import ROOT
from lit_vlaa import cli
from lit_vlaa.checks import UsageError
from lit_vlaa.lightning_cli import Parsed

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}\S.*\n)+", re.MULTILINE)
_NAME = re.compile(r"# ([\w.-]+\.(?:py|yaml))\n")
_FILE = re.compile(r"<!-- file: ([\w./-]+) -->\n```\w*\n(.*?)```", re.DOTALL)
_VARIABLE = re.compile(r"\$[A-Z_]+")
_SCRIPTS = (".sh", ".sbatch")
_SHELLS = {"bash", "sh", "console"}


@dataclass(frozen=True)
class Block:
    """Lines for a shell."""

    lines: tuple[str, ...]
    """Without prompts; those that a backslash continues are joined."""


def blocks(text: str) -> list[Block]:
    """The blocks of a page that hold commands, in their order."""
    fenced = [match for match in _FENCE.finditer(text) if match[1] in _SHELLS]
    found = [Block(tuple(_lines(match[2], prompt=match[1] == "console"))) for match in fenced]
    found += [Block(tuple(_lines(match[0]))) for match in _INDENTED.finditer(_FENCE.sub("", text))]
    return found


def _lines(code: str, *, prompt: bool = False) -> Iterator[str]:
    for line in code.replace("\\\n", " ").splitlines():
        if not prompt:
            yield line.strip()
        elif line.startswith("$ "):
            yield line[2:].strip()


def commands(line: str) -> list[list[str]]:
    """The words after `lit-vlaa` of the commands in a line, also of one that a script of the repository starts."""
    try:
        words = [_VARIABLE.sub("1", word) for word in shlex.split(line, comments=True)]
    except ValueError:  # no line of a shell
        return []
    inner = [command for word in words if word.startswith("lit-vlaa ") for command in commands(word)]
    for place, word in enumerate(words):
        if word == "lit-vlaa":
            return [words[place + 1 :], *inner]
        if word.endswith(_SCRIPTS) and words[place + 1 : place + 2] in [["fit"], ["data"]]:
            assert (ROOT / word).is_file(), word
            return [words[place + 1 :], *inner]
    return inner


def files(text: str) -> dict[str, str]:
    """Files that a page shows: those that begin with a comment of their name, and those that a mark names."""
    shown = {match[1]: match[2] for match in _FILE.finditer(text)}
    for match in _FENCE.finditer(text):
        if name := _NAME.match(match[2]):
            shown[name[1]] = match[2]
    return shown


class _AcceptedError(BaseException):
    """A tool's parser took its flags; passes through everything that a tool catches."""

    def __init__(self, given: Any, rest: Sequence[str]) -> None:
        super().__init__()
        self.given, self.rest = given, list(rest)


def problem(words: Sequence[str]) -> str:
    """What is wrong with a command, empty if nothing; runs nothing. `...` stands for flags that are left out."""
    return _problem(tuple(words))


@cache
def _problem(given: tuple[str, ...]) -> str:
    left_out = "..." in given
    words = [word for word in given if word != "..."]
    try:
        with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(sys, "argv", ["lit-vlaa"]):
            _parse(words)
    except UsageError as error:
        text = "; ".join(error.problems)
        return "" if left_out and re.match("needed|.*required", text) else text
    except SystemExit as stop:
        return "" if not stop.code else f"exit code {stop.code}"
    return ""


def _parse(words: list[str]) -> None:
    if words and words[0] in cli.RUNS and not (words[0] == "predict" and words[1:] and words[1][0] != "-"):
        Parsed(words[0], words)
        return
    known, given = argparse.ArgumentParser.parse_known_args, cli._ToolParser.parse_args

    def some(parser: Any, args: Any = None, namespace: Any = None) -> NoReturn:
        raise _AcceptedError(*known(parser, args, namespace))

    def every(parser: Any, args: Any = None, namespace: Any = None) -> NoReturn:
        values, rest = known(parser, args, namespace)
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        raise _AcceptedError(values, ())

    def of_a_function(parser: Any, args: Any = None, **options: Any) -> NoReturn:
        raise _AcceptedError(given(parser, args, **options), ())

    try:
        with (
            mock.patch.object(argparse.ArgumentParser, "parse_args", every),
            mock.patch.object(argparse.ArgumentParser, "parse_known_args", some),
            mock.patch.object(cli._ToolParser, "parse_args", of_a_function),
        ):
            cli._dispatch(words)
    except _AcceptedError as accepted:
        if accepted.rest:
            _parse_rest(words, accepted)


def _parse_rest(words: Sequence[str], accepted: _AcceptedError) -> None:
    """Flags that a tool hands on to a run, with the files that it names, or as in training where it names none."""
    own = [str(path) for path in getattr(accepted.given, "config", None) or []]
    named = own or ([] if "--config" in accepted.rest else ["configs/grpo.yaml"])
    run = "test" if words[:2] == ["study", "perplexity"] else "fit"
    Parsed(run, [run, *(f"--config={path}" for path in named), *accepted.rest])
