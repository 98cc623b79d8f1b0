"""Every config file parses, alone and with each trainer file, says what the paper says, and builds its objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules import VLAAThinkingDataModule
from helpers.commands import lit
from helpers.launch import ROOT
from lit_vlaa.generation import CachedGenerator
from lit_vlaa.grpo import GRPOModule
from lit_vlaa.lightning_cli import VLAACLI
from lit_vlaa.protocols import Preparable
from lit_vlaa.sft import SFTModule

CONFIGS = ROOT / "configs"
TRAINERS = sorted((CONFIGS / "trainer").glob("*.yaml"))
SCORERS = sorted((CONFIGS / "scorer").glob("*.yaml"))
# That of the quickstart's evaluation goes on top of another: see test_eval_configs.
BASES = sorted([*CONFIGS.glob("*.yaml"), *(CONFIGS / "quickstart").glob("[!e]*.yaml")])
PAPER = [CONFIGS / "sft.yaml", CONFIGS / "grpo.yaml"]
Config = dict[str, Any]


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


def parsed(capsys: pytest.CaptureFixture[str], *files: Path, command: str = "fit") -> Config:
    """What `--print_config` makes of some files."""
    capsys.readouterr()
    assert lit(command, *(f"--config={path}" for path in files), "--print_config") == 0
    config: Config = yaml.safe_load(capsys.readouterr().out)
    return config


def arguments(config: Config, part: str) -> Config:
    values: Config = config[part]["init_args"]
    return values


def test_there_are_configs() -> None:
    assert {"sft", "grpo", "quickstart/sft", "quickstart/grpo"} <= {name(path) for path in BASES}
    assert {"one_gpu", "eight_gpus", "cpu"} <= {path.stem for path in TRAINERS}
    assert {"reward_model", "judge", "remote"} == {path.stem for path in SCORERS}


@pytest.mark.parametrize("trainer", [None, *TRAINERS], ids=lambda path: path.stem if path else "alone")
@pytest.mark.parametrize("base", BASES, ids=name)
def test_files_compose(base: Path, trainer: Path | None, capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed(capsys, *filter(None, (base, trainer)))
    assert config["data"]["class_path"] == "datamodules.VLAAThinkingDataModule"
    assert config["trainer"]["use_distributed_sampler"] is False
    assert config["trainer"]["inference_mode"] is False
    if trainer is not None:
        wanted = yaml.safe_load(trainer.read_text())["trainer"]
        assert {key: config["trainer"][key] for key in wanted} == wanted


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.parametrize("base", BASES, ids=name)
def test_files_serve_the_other_commands(base: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed(capsys, base, command=command)["model"]["class_path"].startswith("lit_vlaa.")


def test_sft_follows_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed(capsys, CONFIGS / "sft.yaml")
    model, data = arguments(config, "model"), arguments(config, "data")
    assert config["model"]["class_path"] == "lit_vlaa.sft.SFTModule"
    assert config["trainer"]["max_epochs"] == 1
    assert data["split"] == "sft"
    assert data["batch_size"] == 128
    assert model["backbone"]["path"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert model["backbone"]["freeze"] == ["vision"]
    assert model["backbone"]["max_pixels"] == 262144  # 256 tokens of 32 x 32 pixels.


def test_grpo_follows_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed(capsys, CONFIGS / "grpo.yaml")
    model, data = arguments(config, "model"), arguments(config, "data")
    assert config["model"]["class_path"] == "lit_vlaa.grpo.GRPOModule"
    assert (data["split"], data["batch_size"]) == ("grpo", 512)
    assert model["train_batch_size"] == 256
    assert model["group_size"] == 4
    assert model["sampling"]["temperature"] == 0.8
    assert (model["kl"]["coefficient"], model["kl"]["target"]) == (1e-3, 5e-4)  # KL2
    assert model["optim"]["schedule"] == "cosine"
    assert model["optim"]["min_lr"] == 5e-7
    assert model["optim"]["warmup_ratio"] == 0.03
    assert model["backbone"]["path"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert model["backbone"]["freeze"] == ["vision"]


@pytest.mark.parametrize("base", PAPER, ids=name)
def test_eight_gpus_shard_in_bfloat16(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed(capsys, base, CONFIGS / "trainer" / "eight_gpus.yaml")
    trainer, batch = config["trainer"], arguments(config, "data")["batch_size"]
    assert (trainer["strategy"], trainer["devices"], trainer["precision"]) == ("fsdp2", 8, "bf16-mixed")
    assert batch % trainer["devices"] == 0
    assert arguments(config, "model").get("train_batch_size", batch) % trainer["devices"] == 0


@pytest.mark.parametrize("scorer", SCORERS, ids=name)
def test_scorers_are_built(scorer: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built: list[VLAACLI] = []
    monkeypatch.setattr(VLAACLI, "_run_subcommand", lambda cli, _: built.append(cli))
    flags = ["--model.backbone.path=tiny", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    assert lit("fit", f"--config={CONFIGS / 'grpo.yaml'}", f"--config={scorer}", *flags) == 0
    (cli,) = built
    written = yaml.safe_load(scorer.read_text())["model"]["init_args"]["scorer"]
    chosen = cli.model.reward.open_ended.scorer
    assert f"lit_vlaa.rewards.scorers.{type(chosen).__name__}" == written["class_path"]
    assert isinstance(chosen, Preparable)
    for key, value in written["init_args"].items():
        if value is not None:
            assert getattr(chosen, key) == value


def test_a_scorer_needs_neither_annotations_nor_a_base_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built: list[VLAACLI] = []
    monkeypatch.setattr(VLAACLI, "_run_subcommand", lambda cli, _: built.append(cli))
    flags = ["--model.backbone.path=tiny", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    scorer = ["--model.scorer=helpers.scorers.Plain", "--model.scorer.top=2.5"]
    assert lit("fit", f"--config={CONFIGS / 'grpo.yaml'}", *scorer, *flags) == 0
    assert built[0].model.reward.open_ended.scorer.top == 2.5


@pytest.mark.parametrize("base", BASES, ids=name)
def test_the_classes_take_their_settings(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built: list[VLAACLI] = []
    monkeypatch.setattr(VLAACLI, "_run_subcommand", lambda cli, _: built.append(cli))
    flags = ["--model.backbone.path=tiny", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    assert lit("fit", f"--config={base}", *flags) == 0
    (cli,) = built
    written = yaml.safe_load(base.read_text())
    assert isinstance(cli.model, SFTModule | GRPOModule)
    assert isinstance(cli.datamodule, VLAAThinkingDataModule)
    assert cli.model.optim.lr == written["model"]["init_args"]["optim"]["lr"]
    assert cli.datamodule.batch_size == written["data"]["init_args"]["batch_size"]
    assert [type(callback).__name__ for callback in cli.trainer.checkpoint_callbacks][-1] == "ModelCheckpoint"
    if isinstance(cli.model, GRPOModule):
        assert isinstance(cli.model.engine, CachedGenerator)
        assert cli.datamodule.batch_size % cli.model.train_batch_size == 0


@pytest.mark.parametrize("base", BASES, ids=name)
def test_an_unknown_key_is_named(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(base.read_text())
    config["model"]["init_args"]["optim"]["learning_rate"] = 1.0
    path = tmp_path / "typo.yaml"
    path.write_text(yaml.safe_dump(config))
    assert lit("fit", f"--config={path}") == 2
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1, captured
    assert "learning_rate" in captured


@pytest.mark.parametrize(
    "flag", ["kl.target", "loss.dual_clip", "loss.importance_cap", "backbone.revision", "optim.merger_lr"]
)
def test_null_takes_back_what_a_file_says(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group, name = flag.split(".")
    given = {"revision": "v1"}.get(name, 1.5)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"model": {"init_args": {group: {name: given}}}}))
    files = [f"--config={path}" for path in (CONFIGS / "grpo.yaml", tmp_path / "own.yaml")]
    found = []
    for extra in ([], [f"--model.{flag}", "null"], [f"--model.{flag}=null"]):
        assert lit("fit", *files, *extra, "--print_config") == 0
        found.append(arguments(yaml.safe_load(capsys.readouterr().out), "model")[group][name])
    assert found[0]
    assert found[1:] == [None, None]


def test_flags_win_over_files_and_later_files_over_earlier_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, beta in enumerate((0.1, 0.2)):
        settings = {"kl": {"coefficient": beta}, "loss": {"clip_low": beta}}
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump({"model": {"init_args": settings}}))
    files = [f"--config={path}" for path in (CONFIGS / "grpo.yaml", tmp_path / "0.yaml", tmp_path / "1.yaml")]
    assert lit("fit", *files, "--model.kl.coefficient=0.3", "--print_config") == 0
    model = arguments(yaml.safe_load(capsys.readouterr().out), "model")
    assert (model["kl"]["coefficient"], model["loss"]["clip_low"], model["group_size"]) == (0.3, 0.2, 4)
