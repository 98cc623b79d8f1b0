from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_study import load, resolve
from lit_vlaa.study import overlap
from lit_vlaa.study.inputs import hash_data
from lit_vlaa.study.overlap import lines, overlaps
from lit_vlaa.study.runner import look

TRAINED: list[dict[str, Any]] = [
    {"image": "/a/1.png", "question": "How many?"},
    {"image": "a/2.png", "question": "How many?"},
    {"question": "Without a picture?"},
]
TESTED: list[dict[str, Any]] = [
    {"image": "a/1.png", "question": " How many?"},
    {"image": "a/1.png", "question": "Which?"},
    {"image": "a/3.png", "question": "How many?"},
    {"question": "Without a picture?"},
]


def test_rows_that_are_trained_and_tested_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = look(load(tmp_path), resolve)
    (tmp_path / "sft.json").write_text(json.dumps(TRAINED))  # an array
    (tmp_path / "rl.json").write_text("".join(json.dumps(row) + "\n" for row in TRAINED[1:]))  # lines
    (tmp_path / "test.json").write_text(json.dumps(TESTED))
    data = hash_data(prepared.variants, prepared.study)
    found = overlaps(prepared.variants, prepared.study, data, None)
    # Of three tested rows with a picture one is trained on, and two have one of its pictures.
    sft, rl, test = (str(tmp_path / f"{name}.json") for name in ("sft", "rl", "test"))
    assert found == {
        test: {sft: {"rows": 3, "seen": 1, "pictures": 2}, rl: {"rows": 3, "seen": 0, "pictures": 0}},
    }
    (line,) = lines(found)
    assert line.startswith(f"Of 3 rows of {test}, on which arms are tested, 1 have a picture and question that {sft}")
    assert line.endswith(" trains on, and 2 a picture of it.")
    # What a manifest says of the same files holds; of changed ones it does not.
    counted: list[Path] = []

    def count(_: Path, path: Path) -> dict[str, int]:
        counted.append(path)
        return {}

    monkeypatch.setattr(overlap, "_count", count)
    earlier = {"data": data, "overlap": found}
    assert overlaps(prepared.variants, prepared.study, data, earlier) == found
    assert counted == []
    overlaps(prepared.variants, prepared.study, {**data, rl: {"sha256": "0"}}, earlier)
    assert counted == [tmp_path / "rl.json"]


def test_a_manifest_without_counts_says_nothing() -> None:
    assert list(lines(None)) == []
