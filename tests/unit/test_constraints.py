"""The pinned versions install on every Python that the project says it runs on."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.specifiers import SpecifierSet

from helpers.launch import ROOT

PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))


def test_pins_take_the_oldest_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    checked, refused = 0, []
    for name, version in PINS.items():
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        if found.version.partition("+")[0] == version:
            checked += 1
            if not SpecifierSet(found.metadata["Requires-Python"] or "").contains(oldest):
                refused.append(f"{name}=={version} needs Python {found.metadata['Requires-Python']}")
    if not checked:
        pytest.skip("other versions are installed than those of constraints.txt")
    assert not refused
