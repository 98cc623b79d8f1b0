from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import distribute_tensor
from torch.optim import Optimizer

from lit_vlaa.optim import OptimConfig, build_optimizer, build_scheduler, lr_factor, parameter_groups


def named(**shapes: tuple[int, ...]) -> list[tuple[str, nn.Parameter]]:
    """Parameters by name, with `__` for a dot."""
    return [(name.replace("__", "."), nn.Parameter(torch.ones(shape))) for name, shape in shapes.items()]


ALL = {
    "model__visual__blocks__0__attn__qkv__weight": (2, 2),
    "model__visual__blocks__0__attn__qkv__bias": (2,),
    "model__visual__merger__mlp__0__weight": (2, 2),
    "model__visual__merger__ln_q__weight": (2,),
    "model__language_model__layers__0__mlp__weight": (2, 2),
    "model__language_model__layers__0__input_layernorm__weight": (2,),
    "lm_head__weight": (2, 2),
}


def test_groups_are_ordered_and_carry_their_own_rates() -> None:
    parameters = named(**ALL)
    config = OptimConfig(lr=1e-5, merger_lr=2e-5, vision_lr=1e-6, weight_decay=0.1)
    groups = parameter_groups(parameters, config)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("language", 1e-5, 0.1),
        ("language_no_decay", 1e-5, 0.0),
        ("merger", 2e-5, 0.1),
        ("merger_no_decay", 2e-5, 0.0),
        ("vision", 1e-6, 0.1),
        ("vision_no_decay", 1e-6, 0.0),
    ]
    by_name = dict(parameters)
    language = [by_name["model.language_model.layers.0.mlp.weight"], by_name["lm_head.weight"]]
    assert [id(p) for p in groups[0]["params"]] == [id(p) for p in language]
    assert groups[5]["params"][0] is by_name["model.visual.blocks.0.attn.qkv.bias"]


def test_parts_without_a_rate_take_lr() -> None:
    assert {group["lr"] for group in parameter_groups(named(**ALL), OptimConfig(lr=3e-6))} == {3e-6}


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    parameters = named(**ALL)
    for name, parameter in parameters:
        parameter.requires_grad_("visual" not in name)
    assert [g["name"] for g in parameter_groups(parameters, OptimConfig())] == ["language", "language_no_decay"]


def test_a_norm_of_two_dimensions_does_not_decay() -> None:
    groups = parameter_groups(named(a__q_norm__weight=(2, 2), a__proj__weight=(2, 2)), OptimConfig())
    assert [g["name"] for g in groups] == ["language", "language_no_decay"]


def test_nothing_to_train_is_an_error() -> None:
    parameters = named(a__weight=(2, 2))
    parameters[0][1].requires_grad_(False)
    with pytest.raises(ValueError, match=r"--model\.backbone\.freeze"):
        parameter_groups(parameters, OptimConfig())


# 11 steps with 20% warm-up: ceil(2.2) = 3 rising steps, peak at step 3, the last step (10) at the floor of
# 0.2; halfway down is step 6.5, so steps 3 and 10 are the ends and the fall takes 7 steps.
RISE_AND_FALL = {"lr": 1e-5, "min_lr": 2e-6, "warmup_ratio": 0.2}


@pytest.mark.parametrize(("step", "factor"), [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (10, 0.2), (99, 0.2)])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedule_rises_to_one_and_ends_at_the_floor(schedule: str, step: int, factor: float) -> None:
    config = OptimConfig(schedule=schedule, **RISE_AND_FALL)  # type: ignore[arg-type]
    assert lr_factor(step, 11, config) == pytest.approx(factor)


def test_cosine_and_linear_on_their_way_down() -> None:
    # No warm-up, 7 steps, floor 0.5: step 2 is a third of the way. cos(pi/3) = 1/2, so the cosine has 3/4 left
    # (0.5 + 0.5 * 3/4 = 0.875) and the line 2/3 (0.5 + 0.5 * 2/3 = 0.8333).
    cosine = OptimConfig(lr=1e-6, min_lr=5e-7, warmup_ratio=0)
    linear = OptimConfig(lr=1e-6, min_lr=5e-7, warmup_ratio=0, schedule="linear")
    assert lr_factor(2, 7, cosine) == pytest.approx(0.875)
    assert lr_factor(2, 7, linear) == pytest.approx(0.8333333)


def test_constant_warms_up_and_stays() -> None:
    config = OptimConfig(schedule="constant", warmup_ratio=0.5)
    assert [lr_factor(step, 4, config) for step in range(5)] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


def test_one_step_and_no_step() -> None:
    assert lr_factor(0, 1, OptimConfig(warmup_ratio=0)) == 1.0
    with pytest.raises(ValueError, match=r"--trainer\.max_steps"):
        lr_factor(0, 0, OptimConfig())


def test_scheduler_scales_the_floor_with_each_group() -> None:
    config = OptimConfig(lr=1e-6, merger_lr=4e-6, min_lr=5e-7, warmup_ratio=0)
    optimizer = build_optimizer(named(**ALL), config)
    scheduler = build_scheduler(optimizer, config, 3)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["language"] == pytest.approx(5e-7)
    assert rates["merger"] == pytest.approx(2e-6)


def test_adamw_step_by_hand() -> None:
    # First step of AdamW at gradient 1: the parameter 1 decays by lr * wd to 1 - 0.1 * 0.5 = 0.95 and moves by
    # lr * 1 / (1 + eps) = 0.1 / 2 = 0.05 with eps = 1; the bias does not decay: 1 - 0.05 = 0.95.
    parameters = named(fc__weight=(1, 1), fc__bias=(1,))
    optimizer = build_optimizer(parameters, OptimConfig(lr=0.1, weight_decay=0.5, eps=1.0, min_lr=0))
    for _, parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert float(parameters[0][1].detach()) == pytest.approx(0.90)
    assert float(parameters[1][1].detach()) == pytest.approx(0.95)


def trained(optimizer: str, steps: int, start: dict[str, Any] | None = None) -> tuple[nn.Parameter, Optimizer]:
    """A matrix of 64 x 128 that learns a target by least squares; `start` resumes a run."""
    target = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    parameter = nn.Parameter(torch.zeros(64, 128))
    config = OptimConfig(optimizer=optimizer, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)  # type: ignore[arg-type]
    result = build_optimizer([("a.weight", parameter)], config)
    if start is not None:
        parameter.data = start["weight"].clone()
        result.load_state_dict(start["optimizer"])
    for _ in range(steps):
        parameter.grad = parameter.detach() - target
        result.step()
    return parameter, result


def test_eight_bit_states_take_a_byte() -> None:
    parameter, optimizer = trained("adamw_8bit", 1)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    state = optimizer.state[parameter]
    for moment in ("state1", "state2"):
        assert (state[moment].dtype, state[moment].shape) == (torch.uint8, parameter.shape)
    # One scale of four bytes for each block of 256 numbers.
    assert state["absmax1"].shape == state["absmax2"].shape == (64 * 128 // 256,)


def test_eight_bit_states_of_small_tensors_keep_their_precision() -> None:
    parameter = nn.Parameter(torch.zeros(63, 65))  # 4095 numbers
    optimizer = build_optimizer([("a.weight", parameter)], OptimConfig(optimizer="adamw_8bit"))
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert optimizer.state[parameter]["state1"].dtype == torch.float32


def test_eight_bits_train_nearly_as_thirty_two_do() -> None:
    eight, exact = (trained(name, 20)[0].detach() for name in ("adamw_8bit", "adamw"))
    # 20 steps of about 1e-2 each.
    assert float((eight - exact).abs().mean()) < 0.05 * float(exact.abs().mean())
    assert not eight.equal(exact)


def test_eight_bit_states_resume_bit_by_bit(tmp_path: Path) -> None:
    expected, _ = trained("adamw_8bit", 6)
    half, optimizer = trained("adamw_8bit", 3)
    torch.save({"weight": half.data, "optimizer": optimizer.state_dict()}, tmp_path / "half.pt")
    resumed, _ = trained("adamw_8bit", 3, torch.load(tmp_path / "half.pt", weights_only=True))
    assert resumed.equal(expected)


def test_eight_bit_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install bitsandbytes"):
        build_optimizer(named(**ALL), OptimConfig(optimizer="adamw_8bit"))


@pytest.fixture
def mesh(tmp_path: object) -> object:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_eight_bit_refuses_sharded_parameters(mesh: DeviceMesh) -> None:
    parameter = nn.Parameter(distribute_tensor(torch.ones(2, 2), mesh))
    with pytest.raises(ValueError, match=r"--trainer\.strategy ddp"):
        build_optimizer([("a.weight", parameter)], OptimConfig(optimizer="adamw_8bit"))


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"lr": 0.0}, "lr"),
        ({"merger_lr": -1.0}, "merger_lr"),
        ({"vision_lr": float("inf")}, "vision_lr"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"eps": 0.0}, "eps"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"warmup_ratio": 3.0}, "warmup_ratio"),
        ({"min_lr": 1e-3}, "min_lr"),
        ({"min_lr": float("nan")}, "min_lr"),
    ],
)
def test_errors_name_the_flag(options: dict[str, float], flag: str) -> None:
    with pytest.raises(ValueError, match=rf"--model\.optim\.{flag}\b"):
        OptimConfig(**options)  # type: ignore[arg-type]
