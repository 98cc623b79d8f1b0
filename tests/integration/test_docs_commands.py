"""Every command that the README and the docs show is one that the program takes; `test_docs_run.py` runs most."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers import documented
from helpers.documented import PAGES
from helpers.launch import ROOT
from lit_vlaa.cli import RUNS, TOOLS

_INLINE = re.compile(r"`lit-vlaa ([^`]+)`")


def name(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the repository's configurations and all files that pages show."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for page in PAGES:
        for file, content in documented.files(text(page)).items():
            (tmp_path / file).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_of_a_page_are_taken(page: Path, workplace: Path) -> None:
    assert workplace.is_dir()
    shown = [
        words for block in documented.blocks(text(page)) for line in block.lines for words in documented.commands(line)
    ]
    wrong = {" ".join(words): problem for words in shown if (problem := documented.problem(words))}
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_within_sentences_are_there(page: Path) -> None:
    known = {*RUNS, *TOOLS, *(tool.split()[0] for tool in TOOLS), "COMMAND", "..."}
    shown = [match[1].split() for match in _INLINE.finditer(text(page))]
    unknown = [words for words in shown if words[0][0] != "-" and not {words[0], " ".join(words[:2])} & known]
    wrong = [words for words in shown if words[0] in {"data", "eval", "rewards", "study"} and words[1:]]
    unknown += [words for words in wrong if " ".join(words[:2]) not in TOOLS and words[1] not in {"|", "..."}]
    assert not unknown


def test_a_wrong_flag_a_missing_file_and_an_unknown_command_are_found(workplace: Path) -> None:
    assert workplace.is_dir()
    for line, part in (
        ("lit-vlaa fit --config configs/grpo.yaml --model.groop_size 8", "groop_size"),
        ("lit-vlaa fit --config configs/none.yaml", "none.yaml"),
        ("lit-vlaa data check --data-fiel ROWS.json", "data-fiel"),
        ("lit-vlaa data synthetic --rows 3", "rows"),
        ("lit-vlaa doctor --config configs/sft.yaml --model.loss 3", "loss"),
        ("lit-vlaa predict MODEL --question Why --model.none 1", "none"),
        ("lit-vlaa data czech", "data czech"),
        ("NODES=2 configs/cluster/torchrun.sh fit --config configs/none.yaml", "none.yaml"),
    ):
        ((*words,),) = documented.commands(line)
        assert part in documented.problem(words), line
