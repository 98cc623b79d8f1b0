"""A small LightningModule and data module that train by the project's own strategies and optimiser choices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

import lit_vlaa.strategies  # noqa: F401  # registers fsdp2
from lit_vlaa.optim import OptimConfig, build_optimizer, build_scheduler
from lit_vlaa.parallel import accumulate, clip_gradients, unsharded
from lit_vlaa.sharding import mixed_precision_policy

WIDTH = 8
GLOBAL_BATCH = 8
BATCHES = 3
OPTIM = OptimConfig(lr=1e-2, merger_lr=2e-2, vision_lr=5e-3, weight_decay=0.1, min_lr=1e-3)


class Block(nn.Module):
    """A residual block with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.fc(self.norm(x)))


class Tower(nn.Module):
    """Blocks with a merger behind them, named as in Qwen2.5-VL."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.merger = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.merger(self.block(x))


class Net(nn.Module):
    """The shape of a vision-language model: tower, layers, head."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = Tower()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.visual(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def decode(self, x: Tensor, steps: int) -> float:
        """Runs children one by one, never the whole, as a rollout engine does."""
        x = self.visual(x)
        for _ in range(steps):
            for layer in self.layers:
                x = layer(x)
        return float(self.head(x).float().sum())


class ToyModule(LightningModule):
    """Learns a random target.

    Args:
        optim: Optimiser choices.
        max_grad_norm: Bound of the gradient's global norm.
        micro_batches: Parts of a batch whose gradients are added up.
        freeze_visual: Whether the tower stays as it is.
        rollout: Whether every step begins with a rollout through the children.
    """

    def __init__(
        self,
        optim: OptimConfig = OPTIM,
        max_grad_norm: float | None = 0.05,
        micro_batches: int = 2,
        freeze_visual: bool = False,
        rollout: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optim, self.max_grad_norm, self.micro_batches = optim, max_grad_norm, micro_batches
        self.freeze_visual, self.rollout = freeze_visual, rollout
        self.net: Any = None
        self.trace: list[list[float]] = []
        self.rollouts: list[float] = []

    def configure_model(self) -> None:
        if self.net is not None:
            return
        torch.manual_seed(1)
        self.net = Net()
        self.net.visual.requires_grad_(not self.freeze_visual)
        if self.device_mesh is not None:
            policy = mixed_precision_policy(str(self.trainer.precision))
            options: dict[str, Any] = {"mesh": self.device_mesh["data_parallel"]}
            if policy is not None:
                options["mp_policy"] = policy
            for unit in (*self.net.layers, self.net.visual, self.net):
                fully_shard(unit, **options)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.net.named_parameters(), self.optim)
        return [optimizer], [{"scheduler": build_scheduler(optimizer, self.optim, 2 * BATCHES), "interval": "step"}]

    def training_step(self, batch: list[Tensor]) -> None:
        if self.rollout:
            with torch.no_grad(), unsharded(self):
                self.rollouts.append(self.net.decode(torch.ones(1, WIDTH), steps=2 + self.global_rank))
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        total = 0.0
        parts = list(zip(*(column.chunk(self.micro_batches) for column in batch), strict=True))
        for number, (x, y) in enumerate(parts, start=1):
            with accumulate(self, self.net, sync=number == len(parts)):
                loss = (self.net(x).float() - y).square().mean() / len(parts)
                self.manual_backward(loss)
            total += float(loss.detach())
        norm = clip_gradients(self.net.parameters(), self.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        mean = float(self.trainer.strategy.reduce(torch.tensor(total), reduce_op="mean"))
        self.log("loss", mean)
        self.trace.append([mean, norm])

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val_loss", (self.net(batch[0]) - batch[1]).square().mean(), sync_dist=True)

    def test_step(self, batch: list[Tensor]) -> None:
        self.validation_step(batch)

    def predict_step(self, batch: list[Tensor]) -> Tensor:
        return self.net(batch[0])


class ToyData(LightningDataModule):
    """Batches that are the same for every number of ranks, each rank taking its share."""

    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(0)
        rows = GLOBAL_BATCH * BATCHES
        data = TensorDataset(torch.randn(rows, WIDTH, generator=generator), torch.randn(rows, 1, generator=generator))
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return DataLoader(data, batch_sampler=Batches(world, rank))

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Batches:
    """Row numbers of this rank's share of each batch."""

    def __init__(self, world: int, rank: int) -> None:
        self.world, self.rank = world, rank

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(BATCHES):
            rows = range(batch * GLOBAL_BATCH, (batch + 1) * GLOBAL_BATCH)
            yield list(rows[self.rank :: self.world])


def fit(
    strategy: str,
    *,
    devices: int = 1,
    epochs: int = 1,
    precision: str = "32-true",
    resume: str | None = None,
    save: str | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Trains a toy and tells what happened: (loss, norm) a step, rollouts, the weights' checksum."""
    module = ToyModule(**arguments)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]  # any of the names it knows
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
    )
    trainer.fit(module, ToyData(), ckpt_path=resume)
    if save:
        trainer.save_checkpoint(save)
    optimizer: Any = module.optimizers()
    return {
        "trace": module.trace,
        "rollouts": module.rollouts,
        "rates": [group["lr"] for group in optimizer.param_groups],
        "dtypes": sorted({str(parameter.dtype) for parameter in module.net.parameters()}),
    }


def fit_all(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Several trainings in a row in the same processes; an error is returned as its text."""
    results: dict[str, Any] = {}
    for name, run in runs.items():
        try:
            results[name] = fit(**run)
        except (ValueError, RuntimeError) as error:
            results[name] = {"error": str(error)}
    return results
