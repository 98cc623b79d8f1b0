"""Flags of the tools that take several words after one flag."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lit_vlaa.checks import UsageError, one_line
from lit_vlaa.hints import hint, unknown_option


class Flags(argparse.ArgumentParser):
    """Reports errors in one line; both spellings of a flag work, `--some-flag` and `--some_flag`."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong.

        Raises:
            UsageError: Always.
        """
        option = unknown_option(message)
        if option is not None:
            message += hint(option, (flag.lstrip("-") for flag in self._option_string_actions))
        raise UsageError([one_line(message.removeprefix("argument "))])

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parses the words after the command."""
        return self.parse_args([_dashed(word) for word in words])

    def read_some(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parses the words after the command; those with a dot in their flag, and their values, are handed back."""
        dashed = [word if "." in word.partition("=")[0] else _dashed(word) for word in words]
        given, rest = self.parse_known_args(dashed)
        unknown = [word for word in rest if word.startswith("--") and "." not in word.partition("=")[0]]
        if unknown or (rest and not rest[0].startswith("--")):
            self.error(f"unrecognized arguments: {' '.join(unknown or rest[:1])}")
        return given, rest


def make_folder(folder: Path) -> None:
    """Makes the folder of `--output-dir`, ahead of the work.

    Raises:
        UsageError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError([f"--output-dir {folder} cannot be made: {error.strerror}"]) from error


def _dashed(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return f"{flag.replace('_', '-')}{equals}{value}"
