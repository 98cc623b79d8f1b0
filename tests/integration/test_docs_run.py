"""Commands of the README and the docs are run, the tutorial's first, in one folder, with stand-ins for what is large.

What is on no list here is run. `helpers.stand_ins` says what is put in the place of the released model and data, of
GPUs, and of a reader's own files; sizes are changed only where a page gives none.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers import documented
from helpers.commands import lit
from helpers.documented import PAGES
from helpers.hub_server import environment, serving
from helpers.launch import ROOT
from helpers.stand_in_servers import addresses
from helpers.stand_ins import furnish, instead, repositories

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TUTORIAL = "docs/tutorial"
PARSED_ONLY = {
    "docs/data/build": {"--merge": "of what an array of jobs has built: test_data_build.py"},
    "docs/data/index": {
        "...": "leaves flags out",
        "25k.yaml": "trains on what the line before it would make; test_paper_configs.py composes it",
    },
    "docs/data/select": {"...": "leaves flags out"},
    "docs/howto/eight_gpus": {"--trainer.strategy ddp": "starts processes of its own, as tests/distributed does"},
    "docs/howto/several_nodes": {"fit": "of scripts for several hosts: test_cluster.py and test_hosts.py run these"},
    "docs/scorers": {"rewards serve": "goes on until it is stopped; test_scorer_server.py starts it"},
    "docs/study": {
        "study run": "22 minutes; test_study.py runs one of seconds",
        "study report": "reads a study that was run; test_study.py",
    },
}
"""By page: part of each command that is parsed only (test_docs_commands.py), and why."""

DOCTOR = "doctor"
"""Looks at the shape of the released model: run apart, and its numbers compared with the page."""

CUT_OFF = "--question"
"""A single answer of an untrained model may be cut off, which `predict` tells by exit code 1."""


@dataclass(frozen=True)
class Shown:
    """A command on a page."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: lit-vlaa {' '.join(self.words)}"

    @property
    def why_not(self) -> str:
        """Why it is not run, empty if it is."""
        line = " ".join(self.words)
        return next((why for part, why in PARSED_ONLY.get(self.page, {}).items() if part in line), "")


def shown() -> Iterator[Shown]:
    """The commands of all pages, the tutorial's first."""
    for page in sorted(PAGES, key=lambda path: path.stem != "tutorial"):
        name = page.relative_to(ROOT).with_suffix("").as_posix()
        for block in documented.blocks(page.read_text(encoding="utf-8")):
            for line in block.lines:
                yield from (Shown(name, tuple(words)) for words in documented.commands(line))


@dataclass(frozen=True)
class Done:
    """What became of a command."""

    words: tuple[str, ...]
    """As it was run."""
    code: int
    seconds: float
    log: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader")


@pytest.fixture(scope="module")
def done(folder: Path) -> dict[tuple[str, ...], Done]:
    """All commands that are run, each once."""
    wanted = [one for one in shown() if not one.why_not and one.words[0] != DOCTOR]
    repos = repositories(folder)
    files = [documented.files(page.read_text(encoding="utf-8")) for page in PAGES]
    (folder / "logs").mkdir()
    with serving(*repos, storage=True) as hub, addresses(folder / "drawn/VLAA-Thinking-GRPO.json") as servers:
        furnish(folder, {name: content for of_page in files for name, content in of_page.items()}, servers)
        commands = list(dict.fromkeys(tuple(instead(one.words, one.page, servers)) for one in wanted))
        (folder / "commands.json").write_text(json.dumps(commands))
        environ = environment(hub.url, folder / "home", PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}", CUDA_VISIBLE_DEVICES="")
        ended = subprocess.run(
            [sys.executable, "-m", "helpers.documented_runs", "commands.json", "logs"],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=1700,
        )
    assert ended.returncode == 0, ended.stderr[-3000:]
    results = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    logs = [(folder / "logs" / f"{number}.txt").read_text(encoding="utf-8") for number in range(len(commands))]
    return {
        words: Done(words, result["code"], result["seconds"], log)
        for words, result, log in zip(commands, results, logs, strict=True)
    }


def test_commands_end_well(done: dict[tuple[str, ...], Done]) -> None:
    failed = [one for one in done.values() if one.code not in ({0, 1} if CUT_OFF in one.words else {0})]
    assert not failed, "\n\n".join(f"lit-vlaa {' '.join(one.words)}: {one.code}\n{one.log[-1500:]}" for one in failed)


def test_rows_on_the_tutorials_page_are_those_of_its_data(done: dict[tuple[str, ...], Done], folder: Path) -> None:
    assert done
    text = (ROOT / f"{TUTORIAL}.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^head .*", text, re.MULTILINE)
    rows = subprocess.run(line.split(), cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(rows) == 2
    assert all(f"\n{row}\n" in text for row in rows)


DOCTORS = [one for one in shown() if one.words[0] == DOCTOR]


@pytest.mark.parametrize("one", DOCTORS, ids=lambda one: one.page)
def test_what_doctor_says_is_on_the_page(
    one: Shown, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    assert lit(*one.words) == int("it does not fit" in (said := capsys.readouterr().out))
    text = (ROOT / f"{one.page}.md").read_text(encoding="utf-8")
    command = re.escape(" ".join(one.words))
    (block,) = re.findall(rf"^\$ lit-vlaa {command}\n(.*?)^```", text, re.MULTILINE | re.DOTALL) or [""]
    assert [line for line in block.splitlines() if line != "..." and line not in said.splitlines()] == []


def test_no_part_of_the_tutorial_is_left_out() -> None:
    assert TUTORIAL not in PARSED_ONLY
    assert sum(one.page == TUTORIAL for one in shown()) > 20


def test_each_exception_is_of_a_command_that_is_there() -> None:
    lines = {(one.page, " ".join(one.words)) for one in shown()}
    for page, parts in PARSED_ONLY.items():
        for part in parts:
            assert any(page == of and part in line for of, line in lines), (page, part)
