"""Warnings and messages on lines of their own, whichever bar is shown, as a terminal would show them."""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lit_vlaa.beside_bars import beside_bars


class Terminal(io.StringIO):
    """Keeps what is written to it, and shows it as a terminal does."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        shown, row, column = [""], 0, 0
        for erase, char in re.findall(r"(\x1b\[2K)|\x1b\[[\d;?]*[A-Za-z]|([\s\S])", self.getvalue()):
            if erase:
                shown[row] = ""
            elif char == "\n":
                row, column = row + 1, 0
                shown += [""] * (row == len(shown))
            elif char == "\r":
                column = 0
            elif char:
                shown[row] = f"{shown[row][:column]:{column}}{char}{shown[row][column + 1 :]}"
                column += 1
        return [line.rstrip() for line in shown]


@contextmanager
def program() -> Iterator[tuple[Terminal, logging.Logger, logging.Logger]]:
    """A program's standard error, a logger without handlers, and one as Lightning's is once it has been imported.

    Within the test, as pytest has a standard error and handlers for each of its phases.
    """
    terminal = Terminal()
    found = logging.getLogger("lit_vlaa.judge"), logging.getLogger("lightning.pytorch")
    before = [(logger.handlers, logger.propagate, logger.level) for logger in found]
    handlers: tuple[list[logging.Handler], ...] = ([], [logging.StreamHandler(terminal)])
    for logger, own in zip(found, handlers, strict=True):
        logger.handlers, logger.propagate = own, False
        logger.setLevel(logging.INFO)
    try:
        with mock.patch.object(sys, "stderr", terminal):
            yield terminal, *found
    finally:
        for logger, (earlier, propagate, level) in zip(found, before, strict=True):
            logger.handlers, logger.propagate = earlier, propagate
            logger.setLevel(level)


def speak(own: logging.Logger, lightning: logging.Logger) -> None:
    """All ways in which a run speaks."""
    own.warning("the judge is gone")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("rows are left out", stacklevel=1)
    lightning.info("saved")


SAID = ("the judge is gone", "UserWarning: rows are left out", "saved")


def own_lines(shown: list[str]) -> list[str]:
    """What was said, of the lines that hold nothing else; Python adds where a warning comes from."""
    return [said for said in SAID for line in shown if line == said or (":" in said and line.endswith(f" {said}"))]


@contextmanager
def no_bar() -> Iterator[None]:
    yield


@contextmanager
def tqdm_bar() -> Iterator[None]:
    with tqdm(total=9, desc="rows", file=sys.stderr, mininterval=0) as bar:
        bar.update(3)
        yield


@contextmanager
def rich_bar() -> Iterator[None]:
    console = pytest.importorskip("rich.console").Console(file=sys.stderr, force_terminal=True, width=100)
    with pytest.importorskip("rich.progress").Progress(console=console, auto_refresh=False) as bar:
        bar.update(bar.add_task("rows", total=9), advance=3, refresh=True)
        yield
        bar.refresh()


BARS = [no_bar, tqdm_bar, rich_bar]


@pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.__name__)
@pytest.mark.parametrize("around", [False, True], ids=["bar-inside", "bar-around"])
def test_each_message_has_a_line(bar: Callable[[], Any], around: bool) -> None:
    outer, inner = (bar, beside_bars) if around else (beside_bars, bar)
    with program() as (terminal, *both), outer(), inner():
        speak(*both)
    shown = terminal.lines()
    assert own_lines(shown) == list(SAID), shown
    assert sum("rows" in line and "left out" not in line for line in shown) == (bar is not no_bar), shown


@pytest.mark.parametrize("bar", BARS[1:], ids=lambda bar: bar.__name__)
def test_without_it_they_stand_behind_the_bar(bar: Callable[[], Any]) -> None:
    with program() as (terminal, _, lightning), bar():
        lightning.info("saved")
    assert own_lines(terminal.lines()) == []


def test_what_goes_to_a_file_stays_there() -> None:
    file = io.StringIO()
    with program() as (terminal, own, _), mock.patch.object(sys, "stderr", file):
        console = pytest.importorskip("rich.console").Console(file=terminal, force_terminal=True)
        with beside_bars(), pytest.importorskip("rich.progress").Progress(console=console, auto_refresh=False):
            own.warning("the judge is gone")
    assert file.getvalue() == "the judge is gone\n"
    assert "judge" not in terminal.getvalue()


def test_a_fork_asks_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it may be locked")

    with program() as (terminal, own, _), beside_bars():
        monkeypatch.setattr("lit_vlaa.beside_bars.os.getpid", lambda: -1)
        monkeypatch.setattr("tqdm.std.tqdm.write", never)
        own.warning("the judge is gone")
    assert terminal.getvalue() == "the judge is gone\n"


def test_all_is_as_before_afterwards() -> None:
    before = logging.lastResort, warnings.showwarning
    with program() as (terminal, _, lightning):
        (handler,) = lightning.handlers
        assert isinstance(handler, logging.StreamHandler)
        with beside_bars(), beside_bars():
            assert logging.lastResort is not before[0]
            assert handler.stream is not terminal
        assert handler.stream is terminal
    assert (logging.lastResort, warnings.showwarning) == before
