"""`lit-vlaa doctor`: what it reads from a run's configuration, and what it says."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_vlaa import environment
from lit_vlaa.cli import main
from lit_vlaa.doctor import knobs
from lit_vlaa.environment import Finding
from lit_vlaa.memory import Rollouts, Run, estimate, peak
from unit.test_memory import SHAPE, THREE, run

ROOT = Path(__file__).resolve().parents[2]
GRPO = f"--config={ROOT}/configs/grpo.yaml"
SFT = f"--config={ROOT}/configs/sft.yaml"
EIGHT = f"--config={ROOT}/configs/trainer/eight_gpus.yaml"
TINY = f"--config={ROOT}/configs/quickstart/grpo.yaml"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that the doctor reads from its words."""
    runs: list[Run] = []

    def note(described: Run, shape: Any) -> Any:
        runs.append(described)
        return estimate(described, shape)

    monkeypatch.setattr("lit_vlaa.doctor.estimate", note)
    monkeypatch.setattr(sys, "argv", ["lit-vlaa"])
    return runs


def doctor(*words: str) -> int:
    return main(["doctor", *words])


def test_the_papers_run_is_read_from_its_configuration(seen: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(GRPO, EIGHT, "--memory-gb=80") == 0
    (described,) = seen
    assert (described.strategy, described.ranks, described.mixed, described.cpu_offload) == ("fsdp2", 8, True, False)
    assert described.backbone.path == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert described.backbone.freeze == ("vision",)
    assert described.backbone.gradient_checkpointing
    assert (described.tokens, described.optimizer, described.reference) == (8192, "adamw", "copy")
    # 512 prompts on eight ranks make 64 of four completions, of which 128 rows are decoded at one time.
    assert described.rollouts == Rollouts(rows=128, group_size=4, new_tokens=800)
    # 256 * 32 * 32 pixels are 334 tokens of 28 * 28.
    assert described.prompt_tokens == 334 + 256
    printed = capsys.readouterr().out
    assert "3.75 B parameters, 3.123 B of them train; fsdp2 on 8 GPU(s), bf16-mixed" in printed
    assert re.search(r"always +weights +1\.75\n", printed)  # 3.75 B of 4 bytes by eight, in GiB
    assert re.search(r"always +optimiser states +2\.91\n", printed)  # 3.12 B of 8 bytes by eight
    assert re.search(r"peak [\d.]+ of 80\.00 GiB: it fits\n", printed)


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--trainer.strategy=ddp"], "strategy", "ddp"),
        (["--trainer.strategy=fsdp2_offload"], "cpu_offload", True),
        (["--trainer.devices=2", "--trainer.num_nodes=3"], "ranks", 6),
        (["--trainer.devices=0,1,2"], "ranks", 3),
        (["--trainer.devices=[0,1]"], "ranks", 2),
        (["--trainer.strategy=auto", "--trainer.devices=1"], "strategy", "single"),
        (["--trainer.strategy=FSDP2Strategy", "--trainer.strategy.cpu_offload=true"], "cpu_offload", True),
        (["--trainer.precision=32-true"], "mixed", False),
        (["--model.max_tokens_per_micro_batch=100"], "tokens", 100),
        (["--prompt_tokens=77"], "prompt_tokens", 77),
        (["--model.optim.optimizer=adamw_8bit"], "optimizer", "adamw_8bit"),
        (["--model.reference=cpu"], "reference", "cpu"),
        (["--model.kl={coefficient: 0}"], "reference", "none"),
        (["--model.backbone.lora.rank=8"], "reference", "adapter"),
        (["--model.generator.max_rows=8"], "rollouts", Rollouts(rows=8, group_size=4, new_tokens=800)),
        (["--model.generator=null"], "rollouts", Rollouts(rows=256, group_size=4, new_tokens=800)),
        (["--data.batch_size=8"], "rollouts", Rollouts(rows=4, group_size=4, new_tokens=800)),
    ],
)
def test_flags_are_those_of_fit(words: list[str], field: str, value: Any, seen: list[Run]) -> None:
    doctor(GRPO, EIGHT, "--memory_gb=1000", *words)
    assert getattr(seen[0], field) == value


def test_sft_rolls_nothing_out(seen: list[Run]) -> None:
    assert (
        doctor(SFT, "--memory_gb=1000", "--model.backbone.lora.rank=4", "--model.backbone.lora.parts=[language,merger]")
        == 0
    )
    assert (seen[0].rollouts, seen[0].reference, seen[0].ranks) == (None, "none", 1)
    assert seen[0].backbone.adapters is not None
    assert seen[0].backbone.lora.parts == ("language", "merger")


def test_what_does_not_fit_gets_remedies_that_do(seen: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(GRPO, "--trainer.devices=1", "--trainer.precision=bf16-mixed", "--memory_gb=80") == 0
    assert doctor(GRPO, "--trainer.devices=1", "--trainer.precision=bf16-mixed", "--memory_gb=48") == 1
    printed = capsys.readouterr().out
    assert "of 48.00 GiB: it does not fit" in printed
    assert re.search(r"[\d.]+  --model\.backbone\.lora\.rank 16  <- fits", printed)
    assert doctor(GRPO, "--trainer.devices=1", "--memory_gb=1") == 1
    assert "no combination of these fits: use more GPUs, or a smaller model" in capsys.readouterr().out


def test_remedies_add_up(seen: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    words = [GRPO, "--trainer.devices=1", "--model.max_tokens_per_micro_batch=32768"]
    assert doctor(*words, "--memory_gb=14") == 1
    together = re.search(r"([\d.]+)  together: (.*)  <- fits", capsys.readouterr().out)
    assert together
    assert float(together[1]) <= 14
    flags = dict(zip(together[2].split()[::2], together[2].split()[1::2], strict=True))
    seen.clear()
    assert doctor(*words, "--memory_gb=14", *(f"{flag}={value}" for flag, value in flags.items())) == 0
    assert peak(estimate(seen[0], SHAPE)) == pytest.approx(float(together[1]) * 2**30, rel=0.01)


def test_every_remedy_saves_memory_somewhere() -> None:
    rollouts = Rollouts(rows=256, group_size=4, new_tokens=800)
    runs = [
        run(THREE, tokens=16384, ranks=8, strategy="ddp", rollouts=rollouts, reference="copy"),
        run(THREE, tokens=100, rollouts=rollouts),
        run(THREE, tokens=3000, mixed=True),
    ]
    useless = {knob.flag for knob in knobs(runs[0])}
    for described in runs:
        before = peak(estimate(described, SHAPE))
        useless -= {k.flag for k in knobs(described) if peak(estimate(k.turn(described), SHAPE)) < before}
    assert not useless


def test_the_environment_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor() == 0
    printed = capsys.readouterr().out
    for name in ("python", "torch", "lightning", "transformers", "peft", "bitsandbytes", "flash-attn", "torchvision"):
        assert re.search(rf"^{name} ", printed, re.MULTILINE)
    assert re.search(r"^disk, working folder .*GiB free", printed, re.MULTILINE)
    assert printed.endswith("runs work here\n")
    assert "peak" not in printed


def test_a_missing_or_old_library_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    original = importlib.metadata.version
    versions = {"torch": "2.0.0", "datasets": None}

    def version(name: str) -> str:
        found = versions.get(name, original(name))
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(environment, "version", version)
    assert doctor() == 1
    printed = capsys.readouterr().out
    assert re.search(r"torch +2\.0\.0  <- run `pip install 'torch>=[\d.]+'`", printed)
    assert re.search(r"datasets +missing  <- run `pip install 'datasets>=[\d.]+'`", printed)
    assert "no run works here" in printed


def test_gpus_are_described_and_their_memory_taken(
    monkeypatch: pytest.MonkeyPatch, seen: list[Run], capsys: pytest.CaptureFixture[str]
) -> None:
    class Properties:
        name, total_memory, major = "Some GPU", 24 * 2**30, 7

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: Properties)
    assert Finding("GPU 1", "Some GPU, 24.0 GiB", "no bfloat16: use --trainer.precision 32-true") in environment.look()
    assert doctor(TINY, "--data.data_file=x") == 0
    assert "of 24.00 GiB: it fits" in capsys.readouterr().out


def test_without_a_gpu_it_asks_for_its_size(seen: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(TINY) == 0
    assert "no GPU is visible: give --memory_gb" in capsys.readouterr().out


def test_what_fit_would_refuse_is_said(seen: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(TINY, "--trainer.gradient_clip_val=1") == 0
    assert "fit would refuse: --trainer.gradient_clip_val" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.backbone.lora.rnak=8"], "lora.rnak"),
        (["--model.backbone.path=/nowhere"], "--model.backbone.path /nowhere"),
        (["--model.backbone.quantize=nf4"], "--model.backbone.lora.rank 16"),
    ],
)
def test_errors_are_those_of_fit(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(TINY, *words) == 2
    assert message in capsys.readouterr().err


def test_help_names_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("--help") == 0
    assert "--memory_gb" in capsys.readouterr().out
