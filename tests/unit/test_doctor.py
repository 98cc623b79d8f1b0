"""`lit-vlaa doctor`: what it reads from a run's configuration, and what it says."""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.reward_models import save_reward_model
from lit_vlaa import environment
from lit_vlaa.backbone import BackboneConfig
from lit_vlaa.backbone.config import LoRAConfig
from lit_vlaa.backbone.offload import pack
from lit_vlaa.backbone.value_head import load_value_head_model
from lit_vlaa.cli import main
from lit_vlaa.environment import Finding
from lit_vlaa.lightning_cli import Parsed
from lit_vlaa.memory import RewardModel, Run, estimate, peak
from lit_vlaa.optim import OptimConfig
from lit_vlaa.reference import Reference
from lit_vlaa.remedies import Knob, Remedies, combinations, knobs, turn
from lit_vlaa.rollout_memory import Rollouts
from lit_vlaa.versions import installed
from unit.test_memory import SHAPE, THREE, run

ROOT = Path(__file__).resolve().parents[2]
GRPO = f"--config={ROOT}/configs/grpo.yaml"
SFT = f"--config={ROOT}/configs/sft.yaml"
EIGHT = f"--config={ROOT}/configs/trainer/eight_gpus.yaml"
REWARD_MODEL = f"--config={ROOT}/configs/scorer/reward_model.yaml"
ANYWHERE = "--trainer.accelerator=auto"
SEVEN = "--model.backbone.path=Qwen/Qwen2.5-VL-7B-Instruct"
TINY = f"--config={ROOT}/configs/quickstart/grpo.yaml"
GIVEN = Rollouts(rows=128, group_size=4, new_tokens=800, prompts=64)


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
    assert doctor(GRPO, EIGHT, ANYWHERE, "--memory-gb=80") == 0
    (described,) = seen
    assert (described.strategy, described.ranks, described.mixed, described.cpu_offload) == ("fsdp2", 8, True, False)
    assert described.backbone.path == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert described.backbone.freeze == ("vision",)
    assert described.backbone.gradient_checkpointing
    assert (described.tokens, described.optimizer, described.kept) == (8192, "adamw", "copy")
    assert described.reward is None
    # 512 prompts on eight ranks make 64 of four completions, of which 128 rows are decoded at one time.
    assert described.rollouts == GIVEN
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
        (["--model.optim.optimizer=adamw_8bit", "--trainer.strategy=ddp"], "optimizer", "adamw_8bit"),
        (["--model.reference=cpu"], "reference", "cpu"),
        (["--model.kl={coefficient: 0}"], "kept", "none"),
        (["--model.backbone.lora.rank=8"], "kept", "adapter"),
        (["--model.generator.max_rows=8"], "rollouts", Rollouts(rows=8, group_size=4, new_tokens=800, prompts=64)),
        (["--model.generator=null"], "rollouts", Rollouts(rows=256, group_size=4, new_tokens=800, prompts=64)),
        (
            # 36864 bytes a token in bfloat16, 18204 tokens; 20 rows of 800 and 15 prompts of 100 are 17500,
            # 21 and 18 would be 18600.
            ["--model.generator.memory_gb=0.625", "--prompt_tokens=100"],
            "rollouts",
            Rollouts(rows=20, group_size=4, new_tokens=800, prompts=64),
        ),
        (["--model.generator.merge_adapters=true"], "rollouts", replace(GIVEN, merge_adapters=True)),
        (["--model.generator.dequantize=true"], "rollouts", replace(GIVEN, dequantize=True)),
        (["--data.batch_size=8"], "rollouts", Rollouts(rows=4, group_size=4, new_tokens=800, prompts=1)),
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
    assert (seen[0].rollouts, seen[0].kept, seen[0].ranks, seen[0].reward) == (None, "none", 1, None)
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


def together(printed: str) -> tuple[float, list[str]]:
    """The peak in GiB and the words of the combination that the doctor offers."""
    found = re.search(r"([\d.]+)  together: (.*)  <- fits", printed)
    assert found, printed
    return float(found[1]), found[2].split()


def given(words: list[str]) -> dict[str, str]:
    """Values by flag, each of which occurs once."""
    pairs = list(zip(words[::2], words[1::2], strict=True))
    assert len({flag for flag, _ in pairs}) == len(pairs), words
    return dict(pairs)


@pytest.mark.parametrize(
    ("words", "memory"),
    [
        (["--model.max_tokens_per_micro_batch=32768"], 14),
        # The reference policy's flag stands in the way of weights in 4 bits.
        (["--model.reference=cpu", "--model.kl={coefficient: 0, target: null}"], 10),
        (["--model.reference=cpu", "--model.backbone.freeze=[vision,language]"], 9),
    ],
)
def test_remedies_add_up(words: list[str], memory: int, seen: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    words = [GRPO, "--trainer.devices=1", *words]
    assert doctor(*words, f"--memory_gb={memory}") == 1
    size, flags = together(capsys.readouterr().out)
    assert size <= memory
    seen.clear()
    added = [f"{flag}={value}" for flag, value in given(flags).items()]
    assert doctor(*words, *added, f"--memory_gb={memory}") == 0
    assert peak(estimate(seen[0], SHAPE)) == pytest.approx(size * 2**30, rel=0.01)
    sys.argv = ["lit-vlaa", "fit", *words, *added]
    parsed: Any = Parsed()
    built = parsed.parser.instantiate_classes(parsed.config)["fit"]["model"]
    assert built.backbone_config == seen[0].backbone
    assert built.reference.kind == ("adapter" if seen[0].kept == "none" else seen[0].kept)


def test_whatever_fits_is_found(seen: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    words = [GRPO, SEVEN, "--trainer.devices=1"]
    qlora = ["--model.backbone.lora.rank=16", "--model.backbone.quantize=nf4", "--model.backbone.dtype=bfloat16"]
    by_hand = [
        *qlora,
        "--model.max_tokens_per_micro_batch=4096",
        "--model.generator.max_rows=32",
        "--model.backbone.logprob_chunk=512",
    ]
    assert doctor(*words, *by_hand, "--memory_gb=17.5") == 0
    least = float(re.findall(r"peak ([\d.]+) of", capsys.readouterr().out)[0])
    assert doctor(*words, "--memory_gb=17.5") == 1
    size, flags = together(capsys.readouterr().out)
    # Fewer rows of 28 layers with 2 * 512 numbers a token are enough; nothing else is touched.
    assert given(flags) == {
        **dict(flag.split("=") for flag in qlora),
        "--model.generator": "lit_vlaa.generation.CachedGenerator",
        "--model.generator.max_rows": "32",
    }
    assert least < size <= 17.5
    assert doctor(*words, f"--memory_gb={least + 0.01}") == 1
    assert "together: " in capsys.readouterr().out


def test_what_changes_no_number_comes_first(seen: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(GRPO, "--trainer.devices=1", "--memory_gb=57") == 1
    printed = capsys.readouterr().out
    # Single flags that fit change rounding or more.
    assert re.search(r"--trainer\.strategy fsdp2_offload  <- fits", printed)
    assert re.search(r"--model\.backbone\.lora\.rank 16  <- fits", printed)
    _, flags = together(printed)
    assert given(flags) == {"--model.backbone.logprob_chunk": "512", "--model.reference": "cpu"}
    # One flag that changes no number is enough here.
    assert doctor(GRPO, "--trainer.devices=1", "--memory_gb=61") == 1
    assert "together" not in capsys.readouterr().out


def test_the_cheapest_combination_is_the_one_of_all() -> None:
    described = runs_of_every_kind()[0]
    found = Remedies(described, SHAPE)
    price = {"nothing": 0, "rounding": 100, "numbers": 10_000}
    sized = [(chosen, found.peak_with(chosen)) for chosen in combinations(found.knobs)]
    sizes = [size for _, size in sized if size is not None]
    assert found.best(min(sizes) - 1) is None
    for memory in (min(sizes), sorted(sizes)[len(sizes) // 10], sorted(sizes)[len(sizes) // 2], max(sizes)):
        best = found.best(memory)
        assert best is not None
        fitting = [chosen for chosen, size in sized if size is not None and size <= memory]
        costs = [sum(price[knob.changes] + 1 for knob in chosen) for chosen in fitting]
        assert costs[fitting.index(best)] == min(costs)


def runs_of_every_kind() -> list[Run]:
    """Runs that differ in what they let the doctor offer."""
    rollouts = Rollouts(rows=256, group_size=4, new_tokens=1600, prompts=64)
    frozen = BackboneConfig(path=THREE.path, freeze=("vision", "language"))
    adapters = BackboneConfig(path=THREE.path, lora=LoRAConfig(rank=8), freeze=("vision",))
    four_bits = BackboneConfig(path=THREE.path, lora=LoRAConfig(rank=8), quantize="nf4", dtype="bfloat16")
    model = RewardModel(weights=2**34, pinned=2**34, activations=2**30, offload=False)
    grpo: dict[str, Any] = {"tokens": 16384, "rollouts": rollouts, "reference": "auto"}
    return [
        run(THREE, ranks=8, strategy="ddp", reward=model, **grpo),
        run(frozen, **{**grpo, "reference": "copy"}),
        run(frozen, **{**grpo, "reference": "none"}, optimizer="adamw_8bit"),
        run(adapters, ranks=8, strategy="ddp", optimizer="adamw_8bit", **{**grpo, "reference": "cpu"}),
        run(four_bits, **{**grpo, "reference": "copy"}),
        run(THREE, ranks=8, strategy="fsdp2", **{**grpo, "reference": "cpu"}),
        run(THREE, tokens=3000, mixed=True),
        run(THREE, tokens=100, rollouts=rollouts),
    ]


def as_flags_say(described: Run, chosen: tuple[Knob, ...]) -> Run:
    """The run with the flags of some knobs, by the classes that `fit` builds of them."""
    values = given([word for knob in chosen for word in knob.flags.split()])
    read = {flag.removeprefix("--"): yaml.safe_load(value) for flag, value in values.items()}
    backbone = dataclasses.asdict(described.backbone)
    fields: dict[str, Any] = {}
    for flag, value in read.items():
        match flag.split(".")[1:]:
            case ["backbone", "lora", "rank"]:
                backbone["lora"]["rank"] = value
            case ["backbone", name]:
                backbone[name] = tuple(value) if isinstance(value, list) else value
            case ["optim", "optimizer"]:
                fields["optimizer"] = OptimConfig(optimizer=value).optimizer
            case ["strategy"]:
                fields |= {"strategy": "fsdp2", "cpu_offload": value == "fsdp2_offload"}
            case ["reference"]:
                # Without a divergence there is none, but its settings are looked at.
                fields["reference"] = "none" if described.reference == "none" else value
            case ["max_tokens_per_micro_batch"]:
                fields["tokens"] = value
            case ["generator", "max_rows"]:
                fields["rollouts"] = dataclasses.replace(described.rollouts, rows=value)  # type: ignore[type-var]
            case ["scorer", "offload"]:
                fields["reward"] = dataclasses.replace(described.reward, offload=value)  # type: ignore[type-var]
            case _:
                assert (flag, value) == ("model.generator", "lit_vlaa.generation.CachedGenerator")
    lora = LoRAConfig(**backbone.pop("lora"))
    result = dataclasses.replace(described, backbone=BackboneConfig(**backbone, lora=lora), **fields)
    # With `reference` none the run's own setting may be any, such as the one that refuses most.
    reference = read.get("model.reference", "cpu" if described.reference == "none" else described.reference)
    if described.rollouts is not None:
        Reference(reference, result.backbone, None)
    assert (result.strategy, result.optimizer) != ("fsdp2", "adamw_8bit")
    return result


@pytest.mark.parametrize("described", runs_of_every_kind())
def test_only_what_fit_accepts_is_offered(described: Run) -> None:
    offered = [chosen for chosen in combinations(list(knobs(described))) if turn(described, chosen) is not None]
    assert len(offered) > 5
    for chosen in offered:
        assert as_flags_say(described, chosen) == turn(described, chosen)


def test_what_cannot_be_combined_is_not_turned() -> None:
    described = runs_of_every_kind()[0]
    by_flags = {knob.flags: knob for knob in knobs(described)}
    eight = by_flags["--model.optim.optimizer adamw_8bit"]
    for flags in ("--trainer.strategy fsdp2", "--trainer.strategy fsdp2_offload"):
        assert turn(described, [by_flags[flags], eight]) is None
        assert turn(described, [by_flags[flags]]) is not None
    words = [{knob.flags for knob in chosen} for chosen in combinations(list(by_flags.values()))]
    four_bits = next(flags for flags in by_flags if "nf4" in flags)
    assert not any({"--model.reference cpu", four_bits} <= each for each in words)


def test_every_remedy_saves_memory_somewhere() -> None:
    runs = runs_of_every_kind()
    useless = {knob.flags for described in runs for knob in knobs(described)}
    for described in runs:
        found = Remedies(described, SHAPE)
        before = found.peak_with(())
        assert before is not None
        useless -= {k.flags for k in found.knobs if (size := found.peak_with((k,))) is not None and size < before}
    # Beside a frozen language model adapters only add, where there is no reference that they would replace.
    assert useless == {"--model.backbone.lora.rank 16 --model.backbone.freeze [vision] --model.reference auto"}


def test_the_environment_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor() == 0
    printed = capsys.readouterr().out
    for name in ("python", "torch", "lightning", "transformers", "peft", "bitsandbytes", "flash-attn"):
        assert re.search(rf"^{name} ", printed, re.MULTILINE)
    assert re.search(r"^disk, working folder .*GiB free", printed, re.MULTILINE)
    assert printed.endswith("runs work here\n")
    assert "peak" not in printed


def test_a_missing_or_old_library_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    versions = {"torch": "2.0.0", "datasets": None}
    monkeypatch.setattr(environment, "installed", lambda name: versions.get(name, installed(name)))
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
    assert "no GPU is visible: give --memory-gb" in capsys.readouterr().out


def test_what_fit_would_refuse_is_said(seen: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    for memory in ([], ["--memory_gb=80"]):
        assert doctor(TINY, *memory, "--trainer.gradient_clip_val=1") == 1
        assert "fit would refuse: --trainer.gradient_clip_val" in capsys.readouterr().out
        assert doctor(TINY, *memory) == 0


def test_settings_that_do_not_go_together_are_said(seen: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(GRPO, "--memory_gb=800", "--model.kl.coefficient=0") == 1
    assert "refuse: --model.kl.coefficient must be positive where a target is given" in capsys.readouterr().out
    assert doctor(GRPO, "--memory_gb=800", "--model.kl.coefficient=0", "--model.kl.target=null") == 0


def test_the_reward_model_is_counted(seen: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(GRPO, REWARD_MODEL, "--trainer.devices=1", "--memory_gb=80") == 0
    printed = capsys.readouterr().out
    model = seen[0].reward
    assert model is not None
    assert model.offload
    # A 7B model's weights without its head of 152064 times 3584, in bfloat16, and a value head in float32.
    assert model.weights == 2 * (8292166656 - 152064 * 3584) + 4 * (3584 + 1)
    assert model.pinned == 8 * 2**31  # as docs/reward_model.md has it
    assert model.activations == 8192 * 2 * (3 * 18944 + 6 * 3584)
    assert re.search(r"reward +reward model +14\.43\n", printed)
    assert re.search(r"always +reward model between calls +16\.00  in main memory\n", printed)
    # Weights, optimiser states and reference are 13.99 + 23.27 + 13.99, the overhead 0.93.
    assert re.search(r"reward in all +67\.80\n", printed)


def test_a_reward_model_may_stay_on_the_gpu(seen: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    words = [GRPO, REWARD_MODEL, "--trainer.devices=1", "--memory_gb=80"]
    assert doctor(*words, "--model.scorer.offload=false") == 1
    printed = capsys.readouterr().out
    assert re.search(r"always +reward model +14\.43\n", printed)
    assert "between calls" not in printed
    assert re.search(r"71\.64  --model\.scorer\.offload true  <- fits", printed)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_reward_model_takes_what_is_loaded(dtype: Any, tmp_path: Path, seen: list[Run]) -> None:
    folder = str(save_reward_model(tmp_path))
    doctor(GRPO, REWARD_MODEL, f"--model.scorer.path={folder}", f"--model.scorer.dtype={dtype}", "--memory_gb=80")
    loaded = load_value_head_model(BackboneConfig(path=folder, dtype=dtype))
    blocks: list[int] = []
    pack(loaded, lambda size: blocks.append(size) or torch.empty(size, dtype=torch.uint8))  # type: ignore[func-returns-value]
    assert seen[0].reward is not None
    assert seen[0].reward.weights == sum(p.numel() * p.element_size() for p in loaded.parameters())
    assert seen[0].reward.pinned == sum(blocks)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.backbone.lora.rnak=8"], "lora.rnak"),
        (["--model.backbone.path=/nowhere"], "--model.backbone.path /nowhere"),
        (["--model.backbone.quantize=nf4"], "--model.backbone.lora.rank 16"),
        (
            ["--model.backbone.quantize=nf4", "--model.backbone.lora.rank=8", "--model.reference=cpu"],
            "--model.reference cpu does not work with --model.backbone.quantize nf4",
        ),
        (["--model.optim.optimizer=adamw_8bit", "--trainer.strategy=fsdp2"], "--model.optim.optimizer adamw_8bit"),
        (
            ["--model.scorer=lit_vlaa.rewards.scorers.RewardModelScorer", "--model.scorer.path=/nowhere"],
            "--model.scorer.init_args.path /nowhere",
        ),
    ],
)
def test_errors_are_those_of_fit(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(TINY, *words) == 2
    assert message in capsys.readouterr().err


def test_help_names_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("--help") == 0
    assert "--memory-gb" in capsys.readouterr().out
