"""What keeps a long run from being lost: broken gradients, another reference on resume, checkpointing really on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from helpers.modules import InMemoryData, make_module
from helpers.samples import tiny_backbone
from lit_vlaa.backbone import BackboneConfig
from lit_vlaa.checks import RunStoppedError
from lit_vlaa.policy import PolicyModule


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
        **options,
    )


def spoil(module: PolicyModule, steps: range) -> list[int]:
    """Makes the loss of some optimiser steps NaN; returns the list of steps that the module tries."""
    original = module.take_step
    tried: list[int] = []

    def take_step(sizes: Any, loss_of: Any) -> float:
        tried.append(len(tried))
        broken = tried[-1] in steps
        return original(sizes, (lambda part: loss_of(part) * torch.nan) if broken else loss_of)

    module.take_step = take_step  # type: ignore[method-assign]
    return tried


def test_a_gradient_that_is_not_finite_leaves_weights_alone_and_counts_as_a_step(tmp_path: Path) -> None:
    module = make_module("sft")
    tried = spoil(module, range(1, 2))
    run = trainer(tmp_path)
    with pytest.warns(UserWarning, match="gradient's norm is nan"):
        run.fit(module, InMemoryData("sft"))
    assert len(tried) == 3
    assert run.global_step == 3
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_a_run_that_has_broken_down_stops(tmp_path: Path) -> None:
    module = make_module("sft", max_skipped_steps=2)
    spoil(module, range(10))
    with pytest.warns(UserWarning, match="norm"), pytest.raises(RunStoppedError, match=r"2 gradients in a row"):
        trainer(tmp_path).fit(module, InMemoryData("sft"))


def test_resuming_with_another_reference_is_refused(tmp_path: Path) -> None:
    first = trainer(tmp_path)
    first.fit(make_module("grpo"), InMemoryData("grpo"))
    first.save_checkpoint(tmp_path / "run.ckpt")
    weights = {f"backbone.{name}": value + 1e-3 for name, value in tiny_backbone().state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "start.ckpt")
    other = make_module("grpo", init_from=str(tmp_path / "start.ckpt"))
    with pytest.raises(ValueError, match=r"--model\.backbone\.path tiny --model\.init_from null"):
        trainer(tmp_path).fit(other, InMemoryData("grpo"), ckpt_path=tmp_path / "run.ckpt")


def test_a_loaded_backbone_trains_with_gradient_checkpointing(tmp_path: Path) -> None:
    tiny_backbone().save_pretrained(tmp_path / "model")
    path = {"path": str(tmp_path / "model"), "gradient_checkpointing": True}
    module = make_module("sft", backbone=path)
    modes: list[bool] = []
    original = module.take_step

    def take_step(sizes: Any, loss_of: Any) -> float:
        modes.extend(layer.training and layer.gradient_checkpointing for layer in module.backbone.language_model.layers)  # type: ignore[union-attr]
        return original(sizes, loss_of)

    module.take_step = take_step  # type: ignore[method-assign]
    trainer(tmp_path).fit(module, InMemoryData("sft"))
    assert modes
    assert all(modes)


def test_a_backbone_is_made_on_the_cpu_whatever_the_default_device() -> None:
    from lit_vlaa.backbone import build_backbone  # noqa: PLC0415

    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig(max_pixels=84 * 84))
    expected = tiny_backbone()
    for ours, theirs in zip(backbone.parameters(), expected.parameters(), strict=True):
        assert ours.equal(theirs)
