"""What every job of a study asks of its circumstances is found once for all tests."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest

from lit_vlaa.study import circumstances
from lit_vlaa.versions import installed

_ROOT, _find = circumstances._ROOT, circumstances.code
_installed, _found = cache(installed), cache(_find)


def _code() -> dict[str, Any]:
    """Of this repository as it was first found; of other folders as they are."""
    return copy.deepcopy(_found()) if circumstances._ROOT == _ROOT else _find()


@pytest.fixture(autouse=True)
def _found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions and sources do not change while tests run; to look for them takes most of a fake study's time."""
    monkeypatch.setattr(circumstances, "installed", _installed)
    monkeypatch.setattr(circumstances, "code", _code)
