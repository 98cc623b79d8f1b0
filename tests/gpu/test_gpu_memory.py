"""Memory on a GPU: what is measured there agrees with the estimate, and what is kept in main memory stays there."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from helpers.adapted import fit, make_adapted
from helpers.modules import InMemoryData, quiet_trainer
from helpers.samples import tiny_backbone
from lit_vlaa.backbone.released import model_config
from lit_vlaa.memory import Run, estimate
from lit_vlaa.optim import OptimConfig, build_optimizer
from lit_vlaa.reference import visiting
from lit_vlaa.types import ModelInputs
from unit.backbone.test_adapters import adapted, inputs_of
from unit.test_memory import run, sizes

pytestmark = pytest.mark.gpu

SLACK = 512 * 200
"""Bytes: CUDA gives every tensor a multiple of 512, and the tiny model has fewer than two hundred."""


def on_gpu(backbone: Any) -> tuple[Any, int]:
    """The model there, and the bytes that it took."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    backbone = backbone.to("cuda")
    return backbone, torch.cuda.memory_allocated() - before


def there(inputs: ModelInputs) -> ModelInputs:
    """The same inputs on the GPU."""
    tensors: dict[str, Any] = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    tensors = {name: value.to("cuda") if torch.is_tensor(value) else value for name, value in tensors.items()}
    return ModelInputs(**tensors)


@pytest.mark.parametrize("options", [{}, {"quantize": "nf4", "dtype": "bfloat16"}])
def test_weights_take_what_is_estimated(options: dict[str, Any]) -> None:
    backbone = adapted(**options)
    described: Run = run(backbone.config)
    _, taken = on_gpu(backbone)
    expected = sizes(estimate(described, model_config(backbone.config)))["weights"]
    assert expected <= taken <= expected + SLACK


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_states_take_what_is_estimated(optimizer: Any) -> None:
    backbone, _ = on_gpu(tiny_backbone())
    built = build_optimizer(backbone.named_parameters(), OptimConfig(optimizer=optimizer))
    for parameter in backbone.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = torch.cuda.memory_allocated()
    built.step()
    torch.cuda.synchronize()
    taken = torch.cuda.memory_allocated() - before
    parts = sizes(estimate(run(backbone.config, optimizer=optimizer), model_config(backbone.config)))
    assert parts["optimiser states"] * 0.99 <= taken <= parts["optimiser states"] + 3 * SLACK


@pytest.mark.parametrize("options", [{}, {"quantize": "nf4"}])
def test_adapters_score_as_on_the_cpu(options: dict[str, Any]) -> None:
    exact = adapted(**options).eval()
    backbone, _ = on_gpu(adapted(**options).eval())
    inputs = inputs_of(exact)
    moved = there(inputs)
    with torch.no_grad():
        # The patch embedding may run in TF32, which keeps ten bits.
        torch.testing.assert_close(backbone(moved).logprobs.cpu(), exact(inputs).logprobs, atol=5e-2, rtol=0)


def test_a_visiting_reference_leaves_the_gpu_as_it_was() -> None:
    backbone = tiny_backbone().eval()
    inputs = inputs_of(backbone)
    moved = there(inputs)
    size = sum(p.numel() * p.element_size() for p in backbone.parameters())
    for _ in range(2):  # libraries take workspaces on first use
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad(), visiting(backbone, torch.device("cuda")) as score:
            scored = score(moved).logprobs.cpu()
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() >= before + size
    assert {p.device.type for p in backbone.parameters()} == {"cpu"}
    with torch.no_grad():
        torch.testing.assert_close(scored, backbone(inputs).logprobs, atol=5e-2, rtol=0)


@pytest.mark.parametrize("kind", ["copy", "cpu", "adapter"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_reference_starts_at_no_divergence(kind: str, precision: str) -> None:
    module = make_adapted("grpo", reference=kind, train_batch_size=4)
    logged: list[dict[str, float]] = []
    module.log_train = logged.append  # type: ignore[method-assign, assignment]
    trainer = quiet_trainer(accelerator="gpu", precision=precision, limit_train_batches=2)
    trainer.fit(module, InMemoryData("grpo"))
    assert logged[0]["policy/kl"] == pytest.approx(0.0, abs=1e-6)
    assert logged[1]["policy/kl"] > 0


@pytest.mark.parametrize("backbone", [{}, {"quantize": "nf4"}])
def test_adapters_train(backbone: dict[str, Any]) -> None:
    expected = fit("sft", backbone=backbone)
    module = make_adapted("sft", backbone=backbone, optim={"schedule": "constant", "warmup_ratio": 0.0})
    trainer = quiet_trainer(accelerator="gpu")
    trainer.fit(module, InMemoryData("sft"))
    for name, parameter in module.backbone.named_parameters():
        if name in expected["weights"]:
            values = torch.tensor(expected["weights"][name])
            assert float((parameter.detach().cpu().flatten() - values).norm()) < 0.2 * float(values.norm()) + 1e-3


def test_offloaded_weights_train_from_main_memory() -> None:
    expected = make_adapted("sft", lora=None)
    quiet_trainer().fit(expected, InMemoryData("sft"))
    module = make_adapted("sft", lora=None)
    trainer = quiet_trainer(accelerator="gpu", devices=1, strategy="fsdp2_offload")
    try:
        trainer.fit(module, InMemoryData("sft"))
        states = [v for state in trainer.optimizers[0].state.values() for v in state.values() if torch.is_tensor(v)]
        weights = {name: full(parameter) for name, parameter in module.backbone.named_parameters()}
    finally:
        torch.distributed.destroy_process_group()
    assert trainer.global_step == 3
    assert {v.device.type for v in states} == {p.device.type for p in module.backbone.parameters()} == {"cpu"}
    assert {buffer.device.type for buffer in module.backbone.buffers()} == {"cuda"}
    for name, parameter in expected.backbone.named_parameters():
        assert float(weights[name].norm()) == pytest.approx(float(parameter.detach().norm()), rel=1e-2), name


def full(parameter: Any) -> torch.Tensor:
    """A sharded parameter as a whole; on one rank its shard is all of it."""
    whole: torch.Tensor = parameter.detach().to_local()
    return whole
