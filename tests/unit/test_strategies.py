from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import StrategyRegistry
from torch import nn

from lit_vlaa.parallel import accumulate, clip_gradients, unsharded
from lit_vlaa.sharding import mixed_precision_policy
from lit_vlaa.strategies import FSDP2Strategy, map_strategy_name


def test_names_are_registered() -> None:
    assert isinstance(StrategyRegistry.get("fsdp2"), FSDP2Strategy)
    assert StrategyRegistry.get("fsdp2_sharded")._save_distributed_checkpoint is True
    assert StrategyRegistry.get("fsdp2")._save_distributed_checkpoint is False


@pytest.mark.parametrize(("given", "meant"), [("fsdp", "fsdp2"), ("fsdp2", "fsdp2"), ("ddp", "ddp"), ("auto", "auto")])
def test_fsdp_means_fsdp2(given: str, meant: str) -> None:
    assert map_strategy_name(given) == meant


def test_mixed_precision_computes_in_bfloat16_and_sums_in_float32() -> None:
    policy = mixed_precision_policy("bf16-mixed")
    assert policy is not None
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("precision", ["32-true"])
def test_true_precisions_need_no_policy(precision: str) -> None:
    assert mixed_precision_policy(precision) is None


@pytest.mark.parametrize("precision", ["16-mixed", "64-true", "bf16-true", "bf16"])
def test_other_precisions_are_refused(precision: str) -> None:
    with pytest.raises(ValueError, match=rf"--trainer\.precision {precision} .*bf16-mixed"):
        mixed_precision_policy(precision)


def gradients() -> list[nn.Parameter]:
    """Gradients (3, 4) and 12, so that the global norm is 13, and a parameter without any."""
    pair, single, none = (nn.Parameter(torch.zeros(n)) for n in (2, 1, 1))
    pair.grad, single.grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    return [pair, single, none]


def test_clipping_scales_to_the_bound() -> None:
    parameters = gradients()
    assert clip_gradients(iter(parameters), 6.5) == pytest.approx(13.0)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([1.5, 2.0]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([6.0]))


@pytest.mark.parametrize("bound", [None, 0.0, 13.5])
def test_clipping_leaves_alone_what_is_within_the_bound(bound: float | None) -> None:
    parameters = gradients()
    assert clip_gradients(parameters, bound) == pytest.approx(13.0)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([3.0, 4.0]))


def test_norm_without_gradients_is_zero() -> None:
    assert clip_gradients([nn.Parameter(torch.zeros(1))], 1.0) == 0.0


@pytest.mark.parametrize("sync", [True, False])
def test_accumulate_and_unsharded_do_nothing_to_a_plain_model(sync: bool) -> None:
    model = nn.Linear(1, 1)
    module: Any = SimpleNamespace(trainer=SimpleNamespace(strategy=SimpleNamespace(model=model)))
    with unsharded(model), accumulate(module, model, sync):
        model(torch.ones(1)).backward()
    assert model.weight.grad is not None
    assert float(model.weight.grad) == 1.0


def test_checkpoints_outside_a_trainer_are_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "some.ckpt")
    with pytest.raises(RuntimeError, match="while a Trainer runs"):
        FSDP2Strategy().load_checkpoint(tmp_path / "some.ckpt")
