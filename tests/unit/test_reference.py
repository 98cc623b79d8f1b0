"""Every way to keep the reference policy gives the same numbers, and takes what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.adapted import make_adapted
from helpers.modules import InMemoryData, fit, make_module, quiet_trainer
from helpers.samples import mixed_prompts, mixed_samples, tiny_backbone
from lit_vlaa.backbone import Backbone, BackboneConfig
from lit_vlaa.backbone.offload import weights_on
from lit_vlaa.grpo import GRPOModule
from lit_vlaa.reference import Reference, resident, visiting, without_adapters
from lit_vlaa.sequences import assemble
from unit.backbone.test_adapters import adapted

KINDS = ("copy", "cpu", "adapter")


def grpo(reference: str, lora: dict[str, Any] | None = {}, **options: Any) -> GRPOModule:  # noqa: B006
    module = make_adapted("grpo", lora, reference=reference, **options)
    assert isinstance(module, GRPOModule)
    return module


def logged(module: GRPOModule, **options: Any) -> list[dict[str, float]]:
    """What two rollouts with two optimiser steps each log."""
    outcome: list[dict[str, float]] = fit(module, InMemoryData("grpo"), limit_train_batches=2, **options)["logged"]
    return outcome


@torch.no_grad()
def scores(score: Callable[..., Any], backbone: Backbone) -> Tensor:
    responses = [backbone.processor.encode_response(item.record.response or "") for item in mixed_samples()]
    rows = list(zip(mixed_prompts(backbone), responses, strict=True))
    logprobs: Tensor = score(assemble(rows, pad_token_id=0), temperature=0.8, ban=True).logprobs
    return logprobs


@pytest.fixture(scope="module")
def expected() -> list[dict[str, float]]:
    return logged(grpo("copy"))


@pytest.mark.parametrize("kind", [*KINDS, "auto"])
def test_the_whole_run_is_the_same_bit_by_bit(kind: str, expected: list[dict[str, float]]) -> None:
    values = logged(grpo(kind))
    assert values == expected
    assert values[1]["policy/kl"] > 0  # the policy has moved


@pytest.mark.parametrize("kind", ["copy", "adapter"])
def test_beside_four_bits(kind: str) -> None:
    four_bits: dict[str, Any] = {"backbone": {"quantize": "nf4"}}
    values = logged(grpo(kind, **four_bits))
    assert values == logged(grpo("auto", **four_bits))
    assert values[1]["policy/kl"] > 0


@pytest.mark.parametrize("kind", ["copy", "cpu"])
def test_without_adapters(kind: str) -> None:
    assert logged(grpo(kind, lora=None)) == logged(grpo("auto", lora=None))


def test_in_mixed_precision_the_reference_computes_as_the_policy_does() -> None:
    runs = [logged(grpo(kind, train_batch_size=4), precision="bf16-mixed") for kind in KINDS]
    assert runs[0] == runs[1] == runs[2]
    # Before the first step policy and reference are one: any difference would come from another precision.
    assert runs[0][0]["policy/kl"] == 0


def test_scores_are_those_of_the_weights_that_the_run_started_from() -> None:
    policy, start = adapted(), tiny_backbone()
    exact = scores(start, start)
    assert not scores(policy, policy).equal(exact)
    for opened in (resident(start), visiting(start, torch.device("cpu")), without_adapters(policy)):
        with opened as score:
            assert scores(score, policy).equal(exact)


def test_a_copy_in_main_memory_lends_copies_of_its_weights() -> None:
    """The meta device stands for a GPU: it holds shapes without numbers."""
    backbone = tiny_backbone()
    places = {name: p.data_ptr() for name, p in backbone.named_parameters()}
    lent = weights_on(backbone, torch.device("meta"))
    assert {value.device.type for value in lent.values()} == {"meta"}
    assert set(lent) == {*places, *dict(backbone.named_buffers())}
    assert {name: p.data_ptr() for name, p in backbone.named_parameters()} == places


@pytest.mark.parametrize(
    ("kind", "lora", "second"), [("auto", None, True), ("copy", {}, True), ("auto", {}, False), ("adapter", {}, False)]
)
def test_adapters_need_no_second_model(
    kind: str, lora: dict[str, Any] | None, second: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = grpo(kind, lora)
    built = []
    original = module.build

    def build(*arguments: Any, **options: Any) -> Backbone:
        built.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(module, "build", build)
    quiet_trainer(max_steps=1).fit(module, InMemoryData("grpo"))
    assert len(built) == 1 + second
    assert module.reference.made


def test_none_where_nothing_is_weighed() -> None:
    module = grpo("copy", kl={"coefficient": 0.0})
    assert "policy/kl" not in logged(module)[0]
    assert not module.reference.made
    with pytest.raises(RuntimeError, match="not made yet"):
        module.reference.running()


@pytest.mark.parametrize(
    ("kind", "backbone", "lora", "message"),
    [
        ("adapter", {}, None, r"--model\.reference adapter .* --model\.backbone\.lora\.rank 16"),
        ("cpu", {"quantize": "nf4"}, {}, r"--model\.reference cpu does not work with --model\.backbone\.quantize nf4"),
        ("auto", {}, {"dropout": 0.1}, r"--model\.backbone\.lora\.dropout 0\.1: .* must be 0"),
    ],
)
def test_what_cannot_work_is_refused(kind: str, backbone: Any, lora: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grpo(kind, lora, backbone=backbone)


def test_other_weights_in_the_same_place_are_refused_and_the_same_elsewhere_are_not(tmp_path: Path) -> None:
    checkpoints = [str(tmp_path / f"{name}.ckpt") for name in ("start", "moved")]
    other = tiny_backbone()
    with torch.no_grad():
        next(other.parameters()).flatten()[0] += 1
    runs = [(0, tiny_backbone()), (1, tiny_backbone()), (0, other)]
    kept: list[dict[str, Any]] = []
    last = Reference("copy", BackboneConfig(), None)
    for place, weights in runs:
        torch.save({"state_dict": {f"backbone.{k}": v for k, v in weights.state_dict().items()}}, checkpoints[place])
        module = make_module("grpo", init_from=checkpoints[place])
        quiet_trainer(limit_train_batches=1).fit(module, InMemoryData("grpo"))
        assert isinstance(module, GRPOModule)
        last = module.reference
        kept.append({})
        last.note(kept[-1])
    with pytest.raises(ValueError, match=rf"--model\.init_from {checkpoints[0]}, whose weights were others then"):
        last.check(kept[0])
    with pytest.raises(ValueError, match=rf"--model\.init_from {checkpoints[1]}$"):
        last.check(kept[1])
    moved = Reference("copy", BackboneConfig(), checkpoints[1])
    moved._origin["weights"] = kept[0]["reference_policy"]["weights"]
    moved.check(kept[0])


def test_another_origin_is_refused() -> None:
    config = make_adapted("grpo").backbone_config
    checkpoint: dict[str, Any] = {}
    Reference("auto", config, "sft.ckpt").note(checkpoint)
    Reference("copy", config, "sft.ckpt").check(checkpoint)
    with pytest.raises(ValueError, match=r"--model\.backbone\.path tiny --model\.init_from sft\.ckpt"):
        Reference("auto", config, None).check(checkpoint)
