"""Flags of the tools, whose errors are one line that says what was probably meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lit_vlaa.checks import UsageError, one_line
from lit_vlaa.hints import NEAREST, hint, unknown_option
from lit_vlaa.output_paths import output_fault, refused


def told(message: str, *, prog: str, known: Iterable[str], words: Sequence[str]) -> str:
    """What a tool's parser says, in one line with what was probably meant.

    Args:
        message: The parser's.
        prog: Its command.
        known: Its flags.
        words: The words that it was given; a misspelt one is told ahead of the flag that is then missing.
    """
    names = [_dashed(flag).lstrip("-") for flag in known]
    if required := re.fullmatch(r"the following arguments are required: (.+)", message):
        misspelt = [word for word in words if _resembles(word, names)]
        if not misspelt:
            return f"needed: {required[1]}"
        message = f"unrecognized arguments: {misspelt[0]}"
    if (option := unknown_option(message)) is not None:
        message = re.sub(r"--[\w.-]+", lambda flag: _dashed(flag[0]), message, count=1)
        message += hint(option.replace("_", "-"), names) or f"; {prog} --help shows its flags"
    elif message.startswith("unrecognized arguments: "):
        message += f"; flags begin with --, and {prog} --help shows them"
    return one_line(message.removeprefix("argument "))


class Flags(argparse.ArgumentParser):
    """Reports errors in one line; both spellings of a flag work, `--some-flag` and `--some_flag`."""

    def __init__(self, **options: Any) -> None:
        """Takes no abbreviations; `options` are those of `ArgumentParser`."""
        super().__init__(allow_abbrev=False, **options)
        self.writes = True
        """Whether the command writes to what `--output-dir` or `--output` names."""
        self._words: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Says what is wrong.

        Raises:
            UsageError: Always.
        """
        raise UsageError([told(message, prog=self.prog, known=self._option_string_actions, words=self._words)])

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parses the words after the command."""
        return self._checked(self.parse_args(self._spelt(words)))

    def read_some(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parses the words after the command; those with a dot in their flag, and their values, are handed back."""
        given, rest = self._read_own(words)
        unknown = [word for word in rest if word.startswith("--") and "." not in word.partition("=")[0]]
        if unknown or (rest and not rest[0].startswith("--")):
            self.error(f"unrecognized arguments: {' '.join(unknown or rest[:1])}")
        return given, rest

    def read_beside(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parses the words after the command; all that are not its own, as another command's flags, are handed back.

        Raises:
            UsageError: If one looks like a misspelt flag of this command.
        """
        given, rest = self._read_own(words)
        names = [flag.lstrip("-") for flag in self._option_string_actions]
        for word in rest:
            if _resembles(word, names):
                self.error(f"unrecognized arguments: {word}")
        return given, rest

    def _read_own(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        given, rest = self.parse_known_args(self._spelt(words))
        return self._checked(given), rest

    def _checked(self, given: argparse.Namespace) -> argparse.Namespace:
        writes = self.writes and not getattr(given, "dry_run", False)
        for name, is_file in (("output_dir", False), ("output", True)):
            if (path := getattr(given, name, None)) is not None:
                check_output(f"--{name.replace('_', '-')}", path, file=is_file, writes=writes)
        return given

    def _spelt(self, words: Sequence[str]) -> Sequence[str]:
        """The words with this command's flags as it knows them."""
        own = self._option_string_actions
        flags = list(words).index("--") if "--" in words else len(words)  # behind it no word is a flag
        dashed = [new if (new := _dashed(word)).partition("=")[0] in own else word for word in words[:flags]]
        self._words = [*dashed, *words[flags:]]
        return self._words


def check_output(flag: str, path: Path, *, file: bool = False, writes: bool = True) -> None:
    """Looks at where a command is to write, without making it.

    Args:
        flag: What names it.
        path: A folder.
        file: It is a file.
        writes: The command writes to it, not only reads what is there.

    Raises:
        UsageError: If it cannot be written.
    """
    if fault := output_fault(path, file=file, writes=writes):
        raise UsageError([refused(flag, path, fault)])


def make_folder(folder: Path) -> None:
    """Makes the folder of `--output-dir`, ahead of the work.

    Raises:
        UsageError: If it cannot be made.
    """
    check_output("--output-dir", folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError([f"--output-dir {folder} cannot be made: {error.strerror}"]) from error


def _dashed(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return f"{flag.replace('_', '-')}{equals}{value}"


def _resembles(word: str, names: Sequence[str]) -> bool:
    """Whether a word is a flag that is none of these, yet spelt much like one."""
    flag = _dashed(word).partition("=")[0]
    own = flag.removeprefix("--")
    return flag != own and "." not in own and own not in names and NEAREST in hint(own, names)
