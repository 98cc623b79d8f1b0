"""The time limits of tests that wait for processes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from helpers.patience import Patience


@pytest.mark.parametrize(("starved", "lost"), [("0 1500000000 7", False), ("0 400000000 7", True), ("", True)])
def test_seconds_without_a_processor_do_not_count(
    starved: str, lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes have each waited 1.5 s, or 0.4 s, for a processor, when 2 of 1 seconds are over."""
    monkeypatch.setattr("helpers.patience.Path", lambda _: tmp_path / "schedstat")
    (tmp_path / "schedstat").write_text(starved)
    clock = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    patience = Patience(1)
    assert not patience.lost([7, 8])
    clock = 102.0
    assert patience.lost([7, 8]) == lost
    clock = 105.0
    assert patience.lost([])


def test_there_is_an_end_for_those_that_only_wait_for_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helpers.patience.Path", lambda _: tmp_path / "schedstat")
    (tmp_path / "schedstat").write_text("0 100000000000 7")
    clock = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    patience = Patience(1)
    clock = 104.5
    assert not patience.lost([7])
    clock = 105.5
    assert patience.lost([7])


def test_processes_that_have_ended_are_passed_over() -> None:
    assert not Patience(60).lost([2**22 + 1])
