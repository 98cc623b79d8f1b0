"""Where `fsdp2_offload` puts things; that it trains alike is shown in `tests/distributed/test_adapters.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import StrategyRegistry
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torchmetrics import MeanMetric

from lit_vlaa.sharding import sharding_policies
from lit_vlaa.strategies import FSDP2Strategy

META = torch.device("meta")
"""Stands for a GPU."""


def trainer(precision: str = "32-true", device: str = "cpu", *, cpu_offload: bool = False) -> Any:
    strategy = SimpleNamespace(root_device=torch.device(device), cpu_offload=cpu_offload)
    return SimpleNamespace(strategy=strategy, precision=precision)


def test_the_name_is_registered() -> None:
    strategy = StrategyRegistry.get("fsdp2_offload")
    assert isinstance(strategy, FSDP2Strategy)
    assert strategy.cpu_offload
    assert not strategy._save_distributed_checkpoint
    assert not StrategyRegistry.get("fsdp2").cpu_offload


def test_policies_follow_strategy_and_precision() -> None:
    assert sharding_policies(trainer()) == {}
    assert sharding_policies(trainer("bf16-mixed"))["mp_policy"].param_dtype == torch.bfloat16
    for policies in (sharding_policies(trainer(cpu_offload=True)), sharding_policies(trainer(), cpu_offload=True)):
        assert policies == {"offload_policy": CPUOffloadPolicy(pin_memory=False)}
    on_gpu = sharding_policies(trainer(device="cuda", cpu_offload=True))
    assert on_gpu == {"offload_policy": CPUOffloadPolicy(pin_memory=True)}


class Model(LightningModule):
    """A sharded part with parameters and buffers, another part beside it, and a metric, whose states are neither."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.beside = nn.BatchNorm1d(2)
        self.metric = MeanMetric()
        fully_shard(self.backbone[0], mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
        fully_shard(self.backbone, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_shards_stay_and_the_rest_goes_to_the_device(mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, model = FSDP2Strategy(cpu_offload=True), Model(mesh)
    monkeypatch.setattr(FSDP2Strategy, "root_device", META)
    strategy.model = model
    strategy.model_to_device()
    assert {p.device.type for p in model.backbone.parameters()} == {"cpu"}
    rest = [*model.backbone.buffers(), *model.beside.parameters(), *model.beside.buffers(), model.metric.mean_value]
    assert {tensor.device.type for tensor in rest} == {"meta"}
    assert model.device == META


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        ({"cpu_offload": True}, "cpu:gloo,cuda:nccl"),
        ({"cpu_offload": True, "process_group_backend": "gloo"}, "gloo"),
        ({}, "nccl"),
    ],
)
def test_gradients_in_main_memory_are_summed_by_gloo(
    options: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FSDP2Strategy, "root_device", torch.device("cuda", 0))
    assert FSDP2Strategy(**options)._get_process_group_backend() == backend
