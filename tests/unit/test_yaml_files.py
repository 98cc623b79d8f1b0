"""YAML files that stand for more than they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_vlaa.cli import main
from lit_vlaa.yaml_files import MAX_VALUES, too_large

LEVELS = ["a: &l0 [x, x, x, x, x, x, x, x, x, x]"]
LEVELS += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 12)]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "large"),
    [
        ("\n".join(LEVELS), True),
        ("\n".join(LEVELS[:3]), False),  # 1 + 3 keys + 11 + 111 + 1111 values
        ("a: &a [*a]", True),
        ("[" * 20_000, True),
        ("- x\n" * (MAX_VALUES - 1), False),
        ("- x\n" * MAX_VALUES, True),
        ("", False),
        ("a: [", False),
        ("a: 1\n---\nb: 2", False),
        ("\x00", False),
    ],
    ids=["bomb", "small", "circle", "deep", "most", "more", "empty", "cut", "two", "nul"],
)
def test_values_are_counted_as_what_aliases_stand_for(text: str, large: bool, tmp_path: Path) -> None:
    assert too_large(written(tmp_path, text)) is large


def test_what_cannot_be_read_is_left_to_its_reader(tmp_path: Path) -> None:
    assert not too_large(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\xff")
    assert not too_large(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "words",
    [["fit", "--config={}"], ["data", "build", "--output-dir=x", "--config={}"], ["study", "plan", "--config={}"]],
)
def test_commands_refuse_a_bomb_at_once(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "\n".join(LEVELS))
    assert main([word.format(path) for word in words]) == 2
    said = capsys.readouterr().err
    assert f"{path}: with its aliases it stands for more than 20000 values" in said
    assert len(said.splitlines()) == 1
