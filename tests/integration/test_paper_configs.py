"""The paper's recipes: what each file composed with its base says, against the paper's facts as literals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from callbacks import TrainingGuards
from helpers.commands import column, lit, logged
from helpers.launch import ROOT
from lit_vlaa.lightning_cli import VLAACLI

CONFIGS = ROOT / "configs"
PAPER = CONFIGS / "paper"

# Schedules: floor and share of warm-up; divergence: initial coefficient and target.
GRPO = {
    "lr1_kl1": (8e-7, 0.10, 1e-2, 5e-3),
    "lr1_kl2": (8e-7, 0.10, 1e-3, 5e-4),
    "lr2_kl1": (5e-7, 0.03, 1e-2, 5e-3),
    "lr2_kl2": (5e-7, 0.03, 1e-3, 5e-4),
}
# Steps of one epoch, where the paper gives them, and the file.
SFT = {
    "126k": (985, "VLAA-Thinking-SFT-126K.json"),
    "25k": (190, "VLAA-Thinking-SFT-25K.json"),
    "10k": (-1, "VLAA-Thinking-SFT-10K.json"),
    "5k": (-1, "VLAA-Thinking-SFT-5K.json"),
    "aha_55k": (-1, "VLAA-Thinking-SFT-aha-55K.json"),
}
MODELS = {
    "qwen2_vl_2b": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen2_vl_7b": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen2_vl_7b_base": "Qwen/Qwen2-VL-7B",
    "qwen2_5_vl_3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2_5_vl_7b": "Qwen/Qwen2.5-VL-7B-Instruct",
}
RL_ROWS, SFT_ROWS = 25195, 126413


def composed(capsys: pytest.CaptureFixture[str], *files: Path) -> tuple[dict[str, Any], ...]:
    """Trainer, model and data of some files together, as `--print_config` shows them."""
    capsys.readouterr()
    assert lit("fit", *(f"--config={path}" for path in files), "--print_config") == 0
    config = yaml.safe_load(capsys.readouterr().out)
    return config["trainer"], config["model"]["init_args"], config["data"]["init_args"]


def test_every_recipe_is_here() -> None:
    found = {str(path.relative_to(PAPER).with_suffix("")) for path in PAPER.rglob("*.yaml")}
    assert found == {f"grpo/{n}" for n in GRPO} | {f"sft/{n}" for n in SFT} | {f"model/{n}" for n in MODELS}


@pytest.mark.parametrize("recipe", GRPO)
def test_grpo(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    floor, warmup, coefficient, target = GRPO[recipe]
    trainer, model, data = composed(capsys, CONFIGS / "grpo.yaml", PAPER / "grpo" / f"{recipe}.yaml")
    assert (model["optim"]["schedule"], model["optim"]["min_lr"], model["optim"]["warmup_ratio"]) == (
        "cosine",
        floor,
        warmup,
    )
    assert (model["kl"]["coefficient"], model["kl"]["target"]) == (coefficient, target)
    assert (model["kl"]["place"], model["loss"]["aggregation"], model["advantage"]["scale"]) == (
        "loss",
        "sequence_mean",
        "std",
    )
    assert (model["group_size"], model["sampling"]["temperature"], model["num_iterations"]) == (4, 0.8, 1)
    assert (data["split"], data["batch_size"], model["train_batch_size"]) == ("grpo", 512, 256)
    # One epoch of 49 rollouts.
    assert (trainer["max_epochs"], trainer["max_steps"]) == (1, -1)
    assert (RL_ROWS - data["val_count"]) // data["batch_size"] == 49
    assert data["data_file"].endswith("VLAA-Thinking-GRPO-25K.json")
    assert data["max_samples"] is None
    assert data["sources"] is None


@pytest.mark.parametrize("recipe", SFT)
def test_sft(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    steps, file = SFT[recipe]
    trainer, model, data = composed(capsys, CONFIGS / "sft.yaml", PAPER / "sft" / f"{recipe}.yaml")
    assert (trainer["max_epochs"], trainer["max_steps"]) == (1, steps)
    assert (data["split"], data["batch_size"], data["val_count"]) == ("sft", 128, 0)
    assert Path(data["data_file"]).name == file
    assert data["max_samples"] is None
    assert model["backbone"]["freeze"] == ["vision"]
    if recipe == "126k":
        assert SFT_ROWS // data["batch_size"] >= steps  # one epoch is enough for them


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("base", ["grpo", "sft"])
def test_models(base: str, model_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = PAPER / base / ("lr2_kl2.yaml" if base == "grpo" else "126k.yaml")
    alone = composed(capsys, CONFIGS / f"{base}.yaml", recipe)
    trainer, model, data = composed(capsys, CONFIGS / f"{base}.yaml", recipe, PAPER / "model" / f"{model_name}.yaml")
    assert model["backbone"]["path"] == MODELS[model_name]
    model["backbone"]["path"] = alone[1]["backbone"]["path"]
    assert (trainer, model, data) == alone  # nothing else changes


@pytest.mark.parametrize("recipe", ["sft/126k", "grpo/lr2_kl2"])
def test_eight_gpus_take_a_recipe(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = (CONFIGS / f"{Path(recipe).parent}.yaml", PAPER / f"{recipe}.yaml", CONFIGS / "trainer/eight_gpus.yaml")
    trainer, _, _ = composed(capsys, *files)
    assert (trainer["devices"], trainer["strategy"]) == (8, "fsdp2")


def guards_of(cli: VLAACLI) -> TrainingGuards:
    callbacks: list[Any] = cli.trainer.callbacks  # type: ignore[attr-defined]
    (guards,) = [callback for callback in callbacks if isinstance(callback, TrainingGuards)]
    return guards


def test_guards_are_on_and_can_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built: list[VLAACLI] = []
    monkeypatch.setattr(VLAACLI, "_run_subcommand", lambda cli, _: built.append(cli))
    flags = ["--model.backbone.path=tiny", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    for base in ("sft", "grpo"):
        assert lit("fit", f"--config={CONFIGS / base}.yaml", *flags) == 0
        guards = guards_of(built[-1])
        assert len(guards.watches) == 7
    own = tmp_path / "own.yaml"
    settings = {"reward_collapse": {"action": "stop"}, "truncation": None}
    callbacks = [{"class_path": "callbacks.TrainingGuards", "init_args": settings}]
    own.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    assert lit("fit", f"--config={CONFIGS / 'grpo.yaml'}", f"--config={own}", *flags) == 0
    guards = guards_of(built[-1])
    watched = guards.watches["reward_collapse"].guard
    assert (watched.action, watched.patience) == ("stop", 5)
    assert "truncation" not in guards.watches


def test_a_recipe_runs(dataset: Path, tmp_path: Path) -> None:
    """On generated rows and the tiny model, two rollouts of two steps."""
    files = [CONFIGS / "grpo.yaml", PAPER / "grpo" / "lr1_kl1.yaml"]
    flags = {
        "model.backbone.path": "tiny",
        "model.backbone.max_pixels": 84 * 84,
        "model.sampling.max_new_tokens": 12,
        "model.reward.math_workers": 1,
        "model.train_batch_size": 8,
        "data.data_file": dataset / "VLAA-Thinking-GRPO.json",
        "data.image_root": dataset / "images",
        "data.batch_size": 16,
        "data.num_workers": 0,
        "trainer.max_steps": 4,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": tmp_path,
        "trainer.enable_progress_bar": False,
    }
    words = [*(f"--config={file}" for file in files), *(f"--{name}={value}" for name, value in flags.items())]
    assert lit("fit", *words) == 0
    rows = logged(tmp_path)
    # Second and fourth of four steps: one step of warm-up comes first, the last one has reached the floor.
    assert column(rows, "optim/lr") == pytest.approx([1e-6, 8e-7])
    # Far below the target after 64 completions: down by 20% of 64 / 10,000.
    assert column(rows, "policy/kl_coefficient") == pytest.approx([1e-2, 1e-2 * (1 - 0.2 * 0.0064)])
    assert column(rows, "guards/flat_groups") == [0.0, 0.0]
