"""The worked example of docs/rewards.md: one file and one line of YAML make a new kind of reward."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from helpers.commands import command, lit, logged
from lit_vlaa.rewards.mixed import MixedReward
from lit_vlaa.types import RewardRequest

ROOT = Path(__file__).resolve().parents[2]


def block(language: str, name: str) -> str:
    """The code block of the docs that begins with its file's name."""
    text = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    found = re.search(rf"```{language}\n# {re.escape(name)}\n(.*?)```", text, re.DOTALL)
    assert found, f"docs/rewards.md no longer shows {name}"
    return found[1]


@pytest.fixture
def workplace(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example's two files, and rows of which the counting ones ask for the new kind."""
    for language, name in (("python", "near_reward.py"), ("yaml", "near.yaml")):
        (tmp_path / name).write_text(block(language, name), encoding="utf-8")
    rows = json.loads((dataset / "VLAA-Thinking-GRPO.json").read_text(encoding="utf-8"))
    for row in rows:
        if row.get("verifier_type") == "digit":
            row["verifier_type"] = "near"
    kept = [row for row in rows if row.get("verifier_type") in {"near", "mcq"}][:16]
    (tmp_path / "rows.json").write_text(json.dumps(kept), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def words(dataset: Path, workplace: Path, start: Path) -> list[str]:
    options = {
        "data__data_file": workplace / "rows.json",
        "data__batch_size": 8,
        "data__cache_dir": workplace / "cache",
        "model__init_from": start,
        "trainer__max_steps": 1,
    }
    return [word for word in command("fit", "grpo", dataset, workplace / "logs", **options) if "val_file" not in word]


def test_the_documented_example_trains(dataset: Path, sft_checkpoint: Path, workplace: Path) -> None:
    assert lit(*words(dataset, workplace, sft_checkpoint), f"--config={workplace / 'near.yaml'}") == 0
    (row,) = logged(workplace / "logs")
    assert 0 <= row["reward/near"] <= 1
    assert row["failed/near"] == 0
    assert 0 <= row["reward/mcq"] <= 1


@pytest.mark.parametrize(
    ("answer", "truth", "value", "status"),
    [("3", "3", 1.0, "ok"), ("five", "3", 1 / 3, "ok"), ("2 or 3", "3", 0.0, "ok"), ("3", "many", 0, "unparsable_gt")],
)
def test_the_documented_example_scores(workplace: Path, answer: str, truth: str, value: float, status: str) -> None:
    assert (workplace / "near_reward.py").exists()
    score = importlib.import_module("near_reward").score
    request = RewardRequest(f"<answer>{answer}</answer>", "near", truth)
    (result,) = MixedReward(verifiers={"near": score})([request])
    assert result.value == pytest.approx(value)
    assert result.status == status


def test_without_the_line_the_row_is_named(
    dataset: Path, sft_checkpoint: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lit(*words(dataset, workplace, sft_checkpoint)) == 2
    message = capsys.readouterr().err
    assert re.search(r"rows.json:\d+: nothing scores verifier_type 'near'", message)
    assert "--model.verifiers" in message


def test_the_rows_can_be_checked(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["rewards", "check", f"--data={workplace / 'rows.json'}"]
    assert lit(*words, "--verifiers={near: near_reward.score}") == 0
    assert re.search(r"clevr_math +near +\d+ +0 +0 +0", capsys.readouterr().out)
    assert lit(*words) == 1
    assert "nothing scores this kind: near" in capsys.readouterr().out
