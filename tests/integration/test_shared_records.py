"""Real VLAA-Thinking records in all three forms, with their real images, train a backbone that was loaded from disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from datamodules import VLAAThinkingDataModule
from helpers.commands import MODULES, column, lit, lit_in_ranks, logged
from lit_vlaa.backbone import BackboneConfig, build_backbone, load_processor
from lit_vlaa.sequences import assemble
from lit_vlaa.types import SFTBatch

FORMS = {"sft_format": "sft", "grpo_format": "grpo", "readme_records": "grpo"}
STRATEGIES = ("ddp", "fsdp")
STEPS = 2
MAX_PIXELS = 262144  # The paper's: 256 tokens of 32 x 32 pixels.
END = "<|im_end|>"


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as if it had been downloaded."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    build_backbone(BackboneConfig()).save_pretrained(folder)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= names
    return folder


def test_a_loaded_backbone_is_in_training_mode(hub_folder: Path) -> None:
    backbone = build_backbone(BackboneConfig(path=str(hub_folder), gradient_checkpointing=True))
    assert all(part.training for part in backbone.modules())
    layers = backbone.language_model.layers
    assert all(layer.gradient_checkpointing for layer in layers)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def runs(hub_folder: Path, shared_examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every form trained for two steps on one process, under DDP and under FSDP, in `<form>-<strategy>`."""
    root = tmp_path_factory.mktemp("shared")

    def words(form: str, *flags: str) -> list[str]:
        stage = FORMS[form]
        common = {
            "trainer.accelerator": "cpu",
            "trainer.max_steps": STEPS,
            "trainer.log_every_n_steps": 1,
            "trainer.enable_progress_bar": False,
            "trainer.enable_model_summary": False,
            "trainer.enable_checkpointing": False,
            "model.backbone.path": hub_folder,
            "model.backbone.freeze": "[vision]",
            "model.optim.lr": 1e-3,
            "data.split": stage,
            "data.data_file": shared_examples / f"{form}.json",
            "data.image_root": shared_examples / "images",
            "data.cache_dir": root / "cache",
            "data.batch_size": 2,
            "data.num_workers": 0,
        }
        if stage == "grpo":
            common |= {
                "model.group_size": 2,
                "model.train_batch_size": 2,
                "model.sampling.max_new_tokens": 8,
                "model.reward.math_workers": 1,
            }
        classes = ["--model", MODULES[stage], "--data", "datamodules.VLAAThinkingDataModule"]
        return ["fit", *classes, *(f"--{key}={value}" for key, value in common.items()), *flags]

    for form in FORMS:
        assert lit(*words(form, "--trainer.devices=1", f"--trainer.default_root_dir={root / form}-auto")) == 0
    lit_in_ranks(
        *(
            words(
                form,
                "--trainer.devices=2",
                f"--trainer.strategy={strategy}",
                f"--trainer.default_root_dir={root / form}-{strategy}",
            )
            for form in FORMS
            for strategy in STRATEGIES
        )
    )
    return root


@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
@pytest.mark.parametrize("form", FORMS)
def test_two_steps_with_finite_numbers(form: str, strategy: str, runs: Path) -> None:
    rows = logged(runs / f"{form}-{strategy}")
    losses = column(rows, "train/loss" if FORMS[form] == "sft" else "policy/loss")
    assert column(rows, "step") == [1.0, 2.0]
    assert len(losses) == STEPS
    assert all(math.isfinite(value) for row in rows for value in row.values())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sft_losses_do_not_depend_on_the_strategy(strategy: str, runs: Path) -> None:
    expected = logged(runs / "sft_format-auto")
    for ours, theirs in zip(expected, logged(runs / f"sft_format-{strategy}"), strict=True):
        for name in ("train/loss", "train/token_accuracy", "train/grad_norm"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-4), name
    # The first loss is that of the untrained model: a guess over some 700 tokens costs ln(700) = 6.6 nats or more.
    assert expected[0]["train/loss"] > 6
    assert expected[1]["train/loss"] != expected[0]["train/loss"]


@pytest.mark.parametrize("form", [form for form, stage in FORMS.items() if stage == "grpo"])
def test_first_rollouts_do_not_depend_on_the_strategy(form: str, runs: Path) -> None:
    first = [logged(runs / f"{form}-{strategy}")[0] for strategy in ("auto", *STRATEGIES)]
    for name in ("reward/mean", "reward/failed", "rollout/length", "rollout/truncated"):
        assert [row[name] for row in first] == pytest.approx([first[0][name]] * 3), name


def module(form: str, shared_examples: Path, cache: Path, hub_folder: Path) -> tuple[VLAAThinkingDataModule, Any]:
    """The data module on one form, as `fit` sets it up, and the processor."""
    processor = load_processor(BackboneConfig(path=str(hub_folder)))
    data = VLAAThinkingDataModule(
        split=FORMS[form],  # type: ignore[arg-type]
        data_file=str(shared_examples / f"{form}.json"),
        image_root=str(shared_examples / "images"),
        cache_dir=str(cache),
        batch_size=5,
        num_workers=0,
        shuffle=False,
    )
    data.attach_processor(processor)
    data.prepare_data()
    data.setup("fit")
    return data, processor


def test_labels_are_exactly_the_responses(shared_examples: Path, hub_folder: Path, tmp_path: Path) -> None:
    data, processor = module("sft_format", shared_examples, tmp_path, hub_folder)
    (batch,) = data.train_dataloader()
    assert isinstance(batch, SFTBatch)
    lines = (shared_examples / "sft_format.json").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    rows = list(zip(batch.prompts, batch.responses, strict=True))
    inputs = assemble(rows, pad_token_id=processor.pad_token_id, device=torch.device("cpu"))
    assert len(answers) == len(rows) == 5
    for row, answer in enumerate(answers):
        labels = inputs.input_ids[row][inputs.target_mask[row]]
        assert processor.tokenizer.decode(labels) == answer.strip() + END
        before = processor.tokenizer.decode(inputs.input_ids[row][: int(inputs.target_mask[row].int().argmax())])
        assert before.endswith("assistant\n")
        assert batch.prompts[row].record.response == answer.strip()
        assert "<answer>" not in before.partition("user\n")[2]


@pytest.mark.parametrize("form", FORMS)
def test_images_keep_their_shape_within_the_papers_limit(
    form: str, shared_examples: Path, hub_folder: Path, tmp_path: Path
) -> None:
    data, processor = module(form, shared_examples, tmp_path, hub_folder)
    (batch,) = data.train_dataloader()
    sizes = []
    for prompt in batch.prompts:
        (path,) = prompt.record.images
        with Image.open(shared_examples / "images" / path) as image:
            wide, high = image.size
        ((width, height),) = prompt.image_sizes
        sizes.append((width, height))
        assert width % 28 == height % 28 == 0
        assert width * height <= MAX_PIXELS
        # Sides are rounded to multiples of 28.
        assert abs(width / height - wide / high) <= (wide / high) * 28 * (1 / width + 1 / height)
        assert int((prompt.input_ids == processor.image_token_id).sum()) == width * height // 28**2
    # The largest image has 2016 x 1390 pixels and fills the limit.
    assert max(width * height for width, height in sizes) > 0.9 * MAX_PIXELS
