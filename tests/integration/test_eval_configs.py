"""The configs for evaluation parse together with those of training, and build their objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import BenchmarkEvaluation
from callbacks.benchmarks.judge import EndpointJudge
from callbacks.evaluation.checkpoints import check_monitors
from callbacks.evaluation.rows import SUBSET
from datamodules import NoRows
from helpers.commands import lit
from helpers.launch import ROOT
from lit_vlaa.lightning_cli import VLAACLI

CONFIGS = ROOT / "configs"
EVAL = sorted((CONFIGS / "eval").glob("*.yaml"))
SIX = ["mathvista", "mathvision", "mathverse", "dynamath", "wemath", "logicvista"]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[VLAACLI]:
    """What commands of the test build, none of which runs."""
    found: list[VLAACLI] = []
    monkeypatch.setattr(VLAACLI, "_run_subcommand", lambda cli, _: found.append(cli))
    monkeypatch.chdir(tmp_path)
    return found


def run(command: str, *files: str, flags: tuple[str, ...] = ()) -> int:
    return lit(command, *(f"--config={CONFIGS / file}.yaml" for file in files), "--trainer.accelerator=cpu", *flags)


def evaluation(cli: VLAACLI) -> BenchmarkEvaluation:
    (callback,) = [found for found in callbacks(cli) if isinstance(found, BenchmarkEvaluation)]
    return callback


def callbacks(cli: VLAACLI) -> list[Any]:
    trainer: Any = cli.trainer
    return list(trainer.callbacks)


def test_there_are_configs() -> None:
    assert [path.stem for path in EVAL] == ["benchmarks", "in_training", "vlaa_thinker"]


def test_the_quickstarts_benchmark(built: list[VLAACLI]) -> None:
    assert run("test", "quickstart/grpo", "quickstart/eval", flags=("--trainer.callbacks.data_dir=elsewhere",)) == 0
    callback = evaluation(built[0])
    assert [benchmark.name for benchmark in callback.benchmarks] == ["drawn_scenes"]
    assert (callback.data_dir, callback.params.max_new_tokens) == (Path("elsewhere"), 48)


@pytest.mark.parametrize("command", ["test", "validate"])
def test_a_checkpoint_alone(command: str, built: list[VLAACLI]) -> None:
    flags = ("--model.backbone.path=tiny", "--model.backbone.max_pixels=7056", "--data.system_prompt=Think.")
    assert run(command, "eval/benchmarks", flags=flags) == 0
    (cli,) = built
    callback = evaluation(cli)
    assert [benchmark.name for benchmark in callback.benchmarks] == SIX
    assert callback.params.max_new_tokens == 800
    assert callback.params.temperature == 0
    assert callback.judge is None
    assert isinstance(cli.datamodule, NoRows)
    assert cli.datamodule.prompt.system_prompt == "Think."
    assert (cli.model.backbone_config.path, cli.model.backbone_config.max_pixels) == ("tiny", 7056)


def test_the_released_weights_settings(built: list[VLAACLI]) -> None:
    assert run("test", "eval/benchmarks", "eval/vlaa_thinker") == 0
    (cli,) = built
    assert cli.model.backbone_config.path == "UCSC-VLAA/VLAA-Thinker-Qwen2.5VL-3B"
    assert cli.model.backbone_config.max_pixels == 256 * 32 * 32
    prompt = cli.datamodule.prompt.system_prompt
    assert all(prompt.count(tag) == 2 for tag in ("<think>", "</think>", "<answer>", "</answer>"))


def test_a_prompt_of_ones_own_comes_from_a_file(built: list[VLAACLI], tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"data": {"init_args": {"system_prompt": "As the card says.\n"}}}))
    assert run("test", "eval/benchmarks", "eval/vlaa_thinker", flags=(f"--config={own}",)) == 0
    assert built[0].datamodule.prompt.system_prompt == "As the card says.\n"


def test_a_judge_by_flags(built: list[VLAACLI]) -> None:
    judge = "--trainer.callbacks.judge"
    flags = (
        f"{judge}=callbacks.benchmarks.judge.EndpointJudge",
        f"{judge}.base_url=http://127.0.0.1:9/v1",
        f"{judge}.model=some",
        f"{judge}.concurrency=3",
    )
    assert run("test", "eval/benchmarks", flags=flags) == 0
    found = evaluation(built[0]).judge
    assert isinstance(found, EndpointJudge)
    assert (found.model, found.concurrency) == ("some", 3)


@pytest.mark.parametrize("base", ["sft", "grpo"])
def test_evaluation_during_training(base: str, built: list[VLAACLI]) -> None:
    assert run("fit", base, "eval/in_training") == 0
    (cli,) = built
    callback = evaluation(cli)
    assert callback.at_start
    assert callback.at_end
    assert callback.subset == dict(SUBSET)
    assert sum(SUBSET.values()) == 655
    names = [type(found).__name__ for found in callbacks(cli)]
    assert "Preemption" in names, "the run's own callbacks stay"
    best = [c for c in cli.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor is not None]
    assert [(c.monitor, c.mode) for c in best] == [("eval/average", "max")]
    cli.model.trainer = cli.trainer
    cli.trainer._data_connector.attach_data(cli.model, datamodule=cli.datamodule)
    assert cli.model.steps_per_batch() == {"sft": 1, "grpo": 2}[base]
    check_monitors(cli.trainer, cli.model, names={"average"}, every_n_steps=callback.every_n_steps)


@pytest.mark.parametrize("path", EVAL, ids=lambda path: path.stem)
def test_an_unknown_key_is_named(
    path: Path, built: list[VLAACLI], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = path.read_text()
    typo = tmp_path / "typo.yaml"
    typo.write_text(text.replace("max_pixels", "most_pixels").replace("every_n_steps: 10", "every_steps: 10"))
    assert typo.read_text() != text
    first = "grpo" if path.stem == "in_training" else "eval/benchmarks"
    assert run("fit" if first == "grpo" else "test", first, flags=(f"--config={typo}",)) == 2
    assert ("most_pixels" if first != "grpo" else "every_steps") in capsys.readouterr().err
