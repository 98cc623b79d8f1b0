"""`--help` explains every option, also those of nested settings."""

from __future__ import annotations

import re

import pytest

import callbacks
from helpers.commands import lit
from lit_vlaa.cli import TOOLS

CLASSES = {
    "--model": ["lit_vlaa.sft.SFTModule", "lit_vlaa.grpo.GRPOModule"],
    "--data": ["datamodules.VLAAThinkingDataModule"],
    "--trainer.callbacks": [f"callbacks.{name}" for name in callbacks.__all__],
}
SCORERS = ["lexical.LexicalScorer", "reward_model.RewardModelScorer", "judge.ChatJudge", "remote.RemoteScorer"]
NESTED = {
    "--model.generator.help": ["lit_vlaa.generation.CachedGenerator", "lit_vlaa.generation.VLLMGenerator"],
    "--model.scorer.help": [f"lit_vlaa.rewards.scorers.{name}" for name in SCORERS],
}


def unexplained(text: str) -> list[str]:
    """Options in a help page that have nothing but a type."""
    entries = re.split(r"\n(?=  -)", text.partition("\n\n")[2])
    found = [re.match(r"\s+(--[\w.]+)(?: [^\s(]\S*)?(?:\s+\[[^\]]*\])?\s+(.*)", entry, re.DOTALL) for entry in entries]
    return [match[1] for match in found if match and re.match(r"\((?:required, )?type:|$", match[2].strip())]


@pytest.mark.parametrize(("flag", "name"), [(flag, name) for flag, names in CLASSES.items() for name in names])
def test_every_option_of_a_class(flag: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert lit("fit", f"{flag}.help", name) == 0
    text = capsys.readouterr().out
    assert name in text
    assert unexplained(text) == []


@pytest.mark.parametrize(("flag", "name"), [(flag, name) for flag, names in NESTED.items() for name in names])
def test_every_option_of_a_part(flag: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert lit("fit", "--model", "lit_vlaa.grpo.GRPOModule", flag, name) == 0
    assert unexplained(capsys.readouterr().out) == []


def test_units_and_defaults_of_nested_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert lit("fit", "--model.help", "lit_vlaa.grpo.GRPOModule") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Mean divergence a token in nats" in text
    assert re.search(r"--model.backbone.lora.rank RANK Width of an adapter", text)
    assert re.search(r"--model.reward.math_timeout_s \S+ Seconds for one comparison .* default: 4\.0", text)


@pytest.mark.parametrize("command", TOOLS)
def test_every_option_of_a_tool(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert lit(*command.split(), "--help") == 0
    assert unexplained(capsys.readouterr().out) == []
