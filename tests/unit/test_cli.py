from __future__ import annotations

import gc
import logging
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from helpers.launch import environment_alone, free_port
from lit_vlaa import cli
from lit_vlaa.checks import UsageError, one_line
from lit_vlaa.cli import Tool, main

ROOT = Path(__file__).resolve().parents[2]
TOY = ["--model", "helpers.toy.ToyModule", "--data", "helpers.toy.ToyData", "--trainer.accelerator", "cpu"]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fit` replaces sys.argv."""
    monkeypatch.setattr(sys, "argv", ["lit-vlaa"])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of three steps on one device."""
    root = tmp_path_factory.mktemp("runs")
    flags = ["--trainer.default_root_dir", str(root), "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit-vlaa"])
        assert main(["fit", *TOY, *QUIET, *flags]) == 0
    return root


def refused(capsys: pytest.CaptureFixture[str], args: list[str]) -> str:
    """Runs a command that must end with code 2 and one line; returns the line."""
    assert main(args) == 2
    captured = capsys.readouterr().err.removeprefix("Seed set to 42\n")
    assert captured.count("\n") == 1, captured
    return captured.removeprefix("lit-vlaa: error: ").strip()


def test_help_lists_every_command_without_torch() -> None:
    code = (
        "import sys; from lit_vlaa.cli import main; assert main(['--help']) == 0; "
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for command in ("fit", "validate", "test", "predict", "data synthetic", "eval compare", "quickstart"):
        assert f"\n  {command} " in done.stdout


def test_what_is_imported_is_not_collected_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    monkeypatch.setattr(gc, "get_freeze_count", lambda: len(frozen))
    for _ in range(2):
        assert cli._imported("lit_vlaa.cli") is cli
        assert gc.isenabled()
    assert frozen == [False]
    gc.disable()
    try:
        cli._imported("lit_vlaa.cli")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "installed", lambda name: f"9.9 of {name}")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "lit-vlaa 9.9 of lit-vlaa\n"


def test_both_logs_lie_in_one_folder(run_folder: Path) -> None:
    version = run_folder / "version_0"
    names = {path.name.split(".tfevents")[0] for path in version.iterdir()}
    assert {"events.out", "metrics.csv", "config.yaml", "checkpoints"} <= names
    assert [path.name for path in run_folder.iterdir()] == ["version_0"]
    header, *rows = (version / "metrics.csv").read_text().splitlines()
    assert "loss" in header.split(",")
    assert len(rows) == 4  # Three steps and one validation.


def test_saved_configuration_has_the_projects_defaults(run_folder: Path) -> None:
    config = yaml.safe_load((run_folder / "version_0" / "config.yaml").read_text())
    assert config["seed_everything"] == 42
    assert config["trainer"]["use_distributed_sampler"] is False
    assert config["trainer"]["inference_mode"] is False


def test_command_line_holds_over_the_checkpoint(run_folder: Path, tmp_path: Path) -> None:
    checkpoint = next((run_folder / "version_0" / "checkpoints").iterdir())
    flags = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "2", "--ckpt_path", str(checkpoint)]
    assert main(["fit", *TOY, *QUIET, *flags, "--model.max_grad_norm", "0.125"]) == 0
    config = yaml.safe_load((tmp_path / "version_0" / "config.yaml").read_text())
    assert config["model"]["init_args"]["max_grad_norm"] == 0.125
    resumed = torch.load(next((tmp_path / "version_0" / "checkpoints").iterdir()), weights_only=True)
    assert resumed["global_step"] == 6


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_commands_read_the_checkpoint(
    command: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = next((run_folder / "version_0" / "checkpoints").iterdir())
    flags = ["--trainer.default_root_dir", str(tmp_path), "--ckpt_path", str(checkpoint)]
    assert main([command, *TOY, *QUIET, *flags]) == 0
    if command != "predict":
        assert "val_loss" in capsys.readouterr().out


def test_the_end_of_a_run_says_where_its_results_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--trainer.default_root_dir", "own", "--trainer.max_steps", "1"]
    with caplog.at_level(logging.INFO):
        assert main(["fit", *TOY, *QUIET, *flags]) == 0
    (saved,) = Path("own/version_0/checkpoints").iterdir()
    assert "curves: tensorboard --logdir own (this run is version_0)" in caplog.messages
    assert f"checkpoint: {saved}" in caplog.messages


def test_logger_flag_replaces_the_default(tmp_path: Path) -> None:
    flags = ["--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false", "--trainer.max_steps", "1"]
    assert main(["fit", *TOY, *QUIET, *flags, "--trainer.enable_checkpointing", "false"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    "strategy", [["fsdp"], ["FSDP2Strategy", "--trainer.strategy.save_distributed_checkpoint", "true"]]
)
def test_two_ranks_that_the_command_starts_itself(strategy: list[str], tmp_path: Path) -> None:
    flags = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "1", "--trainer.devices", "2"]
    subprocess.run(
        [sys.executable, "-m", "lit_vlaa", "fit", *TOY, *QUIET, *flags, "--trainer.strategy", *strategy],
        env=environment_alone() | {"MASTER_PORT": str(free_port())},
        cwd=tmp_path,
        capture_output=True,
        check=True,
        timeout=240,
    )
    checkpoint = next((tmp_path / "version_0" / "checkpoints").iterdir())
    assert checkpoint.is_dir() == (len(strategy) > 1)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--trainer.strategy", "nope"], "--trainer.strategy nope is not supported; use auto, ddp, fsdp2"),
        (["--trainer.strategy", "fsdp_cpu_offload"], "--trainer.strategy fsdp_cpu_offload is not supported"),
        (["--trainer.strategy", "FSDPStrategy", "--trainer.strategy.cpu_offload", "true"], "FSDPStrategy is not supp"),
        (["--trainer.precision", "16-mixed"], "--trainer.precision 16-mixed does not work; use one of 32-true, bf16-m"),
        (["--trainer.precision", "64"], "--trainer.precision 64 does not work; use one of 32-true, bf16-mixed"),
        (["--trainer.precision", "bf16-true"], "give --model.backbone.dtype bfloat16 instead"),
        (["--trainer.gradient_clip_val", "1"], "--model.max_grad_norm"),
        (["--trainer.accumulate_grad_batches", "2"], "--model.max_tokens_per_micro_batch"),
        (["--trainer.use_distributed_sampler", "true"], "use --trainer.use_distributed_sampler false"),
        (["--trainer.inference_mode", "true"], "use --trainer.inference_mode false"),
        (["--trainer.accelerator", "abacus"], "--trainer.accelerator abacus is unknown; use one of auto, "),
        (["--trainer.devices", "0"], "--trainer.devices 0 asks for no device"),
        (["--trainer.devices=-3"], "--trainer.devices -3 asks for no device"),
        (["--ckpt_path", "no/such.ckpt"], "--ckpt_path no/such.ckpt does not exist"),
        (["--model.lrr", "3"], "--model.lrr: there is no such option"),
        (["--model.optim.lr", "abc"], "--model.optim.lr: expected float, got abc"),
        (["--model.optim.schedule", "wavy"], "--model.optim.schedule: expected one of cosine, linear, constant"),
        (["--model.optim.lr", "-1"], "--model.optim.lr must be positive, got -1.0"),
        (["--trainer.max_epochs", "many"], "--trainer.max_epochs: expected int, got many"),
        (["--config", "none.yaml"], "--config none.yaml does not exist; seen from "),
        (["--bogus", "1"], "unrecognized arguments: --bogus 1"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(capsys, ["fit", *TOY, *flags])


def test_missing_model_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert "lit_vlaa.sft.SFTModule" in refused(capsys, ["fit", *TOY[2:]])
    assert "datamodules.VLAAThinkingDataModule" in refused(capsys, ["fit", *TOY[:2]])
    assert "package.module.Class, got NoSuch" in refused(capsys, ["fit", "--model", "NoSuch"])


def test_checkpoints_of_the_wrong_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / "meta.pt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.ckpt").write_text("weights")
    saved = tmp_path / "run" / "version_0" / "checkpoints" / "last.ckpt"
    saved.parent.mkdir(parents=True)
    saved.touch()
    for name, expected in {
        "hub": "--model.init_from",
        "sharded": "is not a checkpoint written by this program",
        "empty": "is a folder but no checkpoint; give a .ckpt file",
        "run": f"is a folder but no checkpoint; did you mean {saved}?",
        "text.ckpt": "is not a checkpoint written by this program",
    }.items():
        assert expected in refused(capsys, ["fit", *TOY, "--ckpt_path", str(tmp_path / name)])


@pytest.mark.parametrize(
    ("visible", "devices", "expected"),
    [
        (0, "1", "no GPU is visible here; use --trainer.accelerator cpu"),
        (2, "4", "--trainer.devices 4 asks for more than the 2 visible GPU(s); use --trainer.devices 2"),
        (2, "[0,2]", "asks for more than the 2 visible GPU(s)"),
        (2, "0,3", "asks for more than the 2 visible GPU(s)"),
    ],
)
def test_gpus_that_are_not_there(
    visible: int, devices: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    flags = ["--trainer.accelerator", "gpu", "--trainer.devices", devices]
    assert expected in refused(capsys, ["fit", *TOY, *flags])


def test_several_problems_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--trainer.gradient_clip_val", "1", "--trainer.inference_mode", "true"]
    assert main(["fit", *TOY, *flags]) == 2
    assert capsys.readouterr().err.count("lit-vlaa: error: ") == 2


def test_only_one_rank_tells(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["nope"]) == 2
    assert capsys.readouterr().err == ""


def test_debug_shows_where_an_error_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_VLAA_DEBUG", "1")
    with pytest.raises(UsageError, match="no command"):
        main(["nope"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config", "a.yaml", "fit"], "the command comes before --config, as in `lit-vlaa fit --config FILE`"),
        (["fitt"], "there is no command `lit-vlaa fitt`; did you mean `lit-vlaa fit`?"),
        (["xyz"], "use one of: fit, validate, test, predict, data synthetic, "),
        (["data"], "there is no command `lit-vlaa data`; use one of: data synthetic"),
        (["study"], "there is no command `lit-vlaa study`; use one of: study run, study report, study plan"),
        (["data", "synthetik"], "did you mean `lit-vlaa data synthetic`?"),
        (["train", "--config", "x.yaml"], "did you mean `lit-vlaa fit`?"),
        (["evaluate"], "did you mean `lit-vlaa test`?"),
        (["predict"], "lit-vlaa predict MODEL --question TEXT"),
        # Named for what it is, not as the required flag that it was to be.
        (["export", "a.ckpt", "--ouput-dir=x"], "unrecognized arguments: --ouput-dir=x; did you mean --output-dir?"),
        (["study", "run", "--confg", "x.yaml"], "unrecognized arguments: --confg; did you mean --config?"),
        (["eval", "compare", "a", "b", "--output_dri", "c"], "--output-dri c; did you mean --output-dir?"),
    ],
)
def test_unknown_commands(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in refused(capsys, words)


def test_help_of_a_group_of_tools(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "--help"]) == 0
    printed = capsys.readouterr().out
    assert [line.split("  ")[1] for line in printed.splitlines()[:2]] == ["rewards check", "rewards serve"]
    assert "synthetic" not in printed


def test_help_of_predict_names_its_other_form(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli._dispatch(["predict", "--help"])
    assert capsys.readouterr().out.startswith("lit-vlaa predict MODEL --question TEXT [--image FILE]")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A tool `box pack` that notes how it is called."""
    noted: list[dict[str, Any]] = []

    def pack(root: Path, *, item_count: int = 3, ratio: float = 0.5) -> None:
        """Packs a box.

        Args:
            root: Where to.
            item_count: How many items.
            ratio: How full.
        """
        if item_count < 0:
            raise ValueError(f"--item-count must not be negative, got {item_count}")
        if ratio < 0:
            raise KeyboardInterrupt
        if ratio == 0:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if ratio > 1:
            raise ValueError("a row says \x1b[31mred\x07")
        noted.append({"root": root, "item_count": item_count, "ratio": ratio})

    module = ModuleType("boxes")
    module.pack = pack  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "boxes", module)
    monkeypatch.setitem(cli.TOOLS, "box pack", Tool("boxes:pack", "pack a box", "root"))
    monkeypatch.setitem(cli.TOOLS, "lost", Tool("no_such_module:run", "get lost"))
    return noted


def test_tool_flags_follow_the_signature(calls: list[dict[str, Any]]) -> None:
    assert main(["box", "pack", "--output-dir", "a-b", "--item-count=4", "--ratio", "0.25"]) == 0
    assert calls == [{"root": Path("a-b"), "item_count": 4, "ratio": 0.25}]


def test_tool_errors_are_one_line(calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    start = ["box", "pack", "--output-dir", "x"]
    assert refused(capsys, ["box", "pack"]) == "needed: --output-dir"
    assert refused(capsys, [*start, "--item-count", "few"]) == "--item_count: expected int, got few"
    assert refused(capsys, [*start, "--item-count", "-1"]) == "--item-count must not be negative, got -1"
    assert "unrecognized arguments: --nope" in refused(capsys, [*start, "--nope", "1"])
    assert refused(capsys, [*start, "--item-cuont", "1"]).endswith("; did you mean --item-count?")
    assert "No module named 'no_such_module'" in refused(capsys, ["lost"])


def test_ctrl_c_and_words_that_a_terminal_would_obey(
    calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["box", "pack", "--output-dir", "x", "--ratio"]
    assert refused(capsys, [*start, "2"]) == r"a row says \x1b[31mred\x07"
    assert main([*start, "-1"]) == 130
    assert capsys.readouterr().err == "lit-vlaa: interrupted\n"


def test_a_full_gpu_says_who_knows_more_below_the_traceback(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(torch.OutOfMemoryError) as error:
        main(["box", "pack", "--output-dir", "x", "--ratio", "0"])
    assert "`lit-vlaa doctor`" in error.value.__notes__[0]


def test_tool_help_comes_from_the_docstring(calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["box", "pack", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Packs a box." in shown
    assert "How full." in shown


def test_one_line_keeps_text_in_another_form() -> None:
    assert one_line("something\n  went wrong") == "something; went wrong"
