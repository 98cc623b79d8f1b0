"""How fast a run is, how much of the hardware it uses, and where its time goes."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections import deque
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, Self

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

PEAK: dict[str, float] = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989.4e12,
    "H200": 989.4e12,
    "H200 NVL": 835.5e12,
    "H100": 989.4e12,
    "H100 NVL": 835.5e12,
    "H100 PCIe": 756.5e12,
    "H800": 989.4e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10": 125e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX A6000": 154.8e12,
    "RTX 6000 Ada": 364.2e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
"""Operations a second in bfloat16 with sums in float32, without sparsity, from NVIDIA's data sheets, by a part of the
GPU's name."""

_BESIDE = {"step", "reward"}
"""Of `time/*`: the sum of the phases, and one that runs while others do."""


class Reading(Protocol):
    """What a batch took on this rank."""

    @property
    def tokens(self) -> int:
        """Tokens trained on, without padding."""

    @property
    def rollout_tokens(self) -> int:
        """Tokens sampled."""

    @property
    def flops(self) -> int:
        """Floating-point operations needed."""


class Meter(Protocol):
    """What this callback needs of a module, as `module.meter`, beside its `latest` numbers; it may have neither."""

    def read(self) -> Reading:
        """What the batch took so far."""


@dataclass(slots=True)
class Totals:
    """Sums over all ranks."""

    samples: float = 0.0
    tokens: float = 0.0
    rollout_tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    """Of training, loading and saving; without validation."""

    def __iadd__(self, other: Totals) -> Self:
        for name in fields(self):
            setattr(self, name.name, getattr(self, name.name) + getattr(other, name.name))
        return self


@dataclass(frozen=True, slots=True)
class _Batch:
    totals: Totals
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds."""


class Throughput(Callback):
    """Logs `throughput/*` for each training batch, as means over the latest ones.

    - `samples_per_second`: rows of SFT, prompts of GRPO; `tokens_per_second`: of prompts and completions that were
      trained on, at every pass over them, without padding; both over all ranks, and over all time but validation.
    - `rollout_tokens_per_second`: sampled tokens by seconds of generation.
    - `mfu`: share of the devices' peak that the needed operations come to (`lit_vlaa.flops`), and the same as
      `tflops_per_device`.
    - `memory_gib`: the most so far on the rank that takes most: allocated on a GPU, resident on the CPU.
    - `share/*`: of the time by phase, as the module logs it in `time/*`; `share/rest` is loading, logging and saving.
    - `total_*`: since the run's beginning, interruptions included.
    """

    def __init__(self, *, window: int = 20, peak_flops: float | None = None) -> None:
        """Sets what is measured.

        Args:
            window: Batches whose means are logged.
            peak_flops: Floating-point operations that one device can do in a second, for `mfu`; null takes those of its
                data sheet in bfloat16 by its name, and logs no `mfu` where there are none, as on the CPU.

        Raises:
            ValueError: If one is not positive.
        """
        if window < 1:
            raise ValueError(f"Throughput: window must be at least 1, got {window}")
        if peak_flops is not None and not peak_flops > 0:
            raise ValueError(f"Throughput: peak_flops must be positive, got {peak_flops}")
        self.window = window
        self.peak_flops = peak_flops
        self._latest: deque[_Batch] = deque(maxlen=window)
        self._totals = Totals()
        self._since = self._paused = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Begins to measure time."""
        self._latest.clear()
        self._since = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Stops the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Lets it go on."""
        self._since += time.perf_counter() - self._paused

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Logs the means; every rank must come here."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        taken = self._batch(trainer, pl_module, batch, seconds)
        self._latest.append(taken)
        self._totals += taken.totals
        device = trainer.strategy.root_device
        memory = float(_reduced(trainer, torch.tensor([peak_memory(device)]), "max"))
        peak = peak_of(device) if self.peak_flops is None else self.peak_flops
        values = means(list(self._latest), devices=trainer.world_size, peak=peak)
        values |= {"memory_gib": memory / 2**30}
        values |= {f"total_{name}": getattr(self._totals, name) for name in ("samples", "tokens", "seconds")}
        pl_module.log_dict({f"throughput/{name}": value for name, value in values.items()}, rank_zero_only=True)
        shown = {"tokens/s": values["tokens_per_second"], **({"mfu": values["mfu"]} if "mfu" in values else {})}
        pl_module.log_dict(shown, prog_bar=True, logger=False, rank_zero_only=True)

    def state_dict(self) -> dict[str, Any]:
        """The totals; means over the latest batches begin anew in a resumed run."""
        return {name.name: getattr(self._totals, name.name) for name in fields(Totals)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the totals of the interrupted run."""
        self._totals = Totals(**state_dict)

    def _batch(self, trainer: Trainer, module: Any, batch: Any, seconds: float) -> _Batch:
        meter: Meter | None = getattr(module, "meter", None)
        reading = None if meter is None else meter.read()
        rows = float(len(batch)) if isinstance(batch, Sized) else 0.0
        own = [0, 0, 0] if reading is None else [reading.tokens, reading.rollout_tokens, reading.flops]
        sums: list[float] = _reduced(trainer, torch.tensor([rows, *map(float, own)]), "sum").tolist()
        samples, tokens, rollout_tokens, flops = sums
        totals = Totals(samples, tokens, rollout_tokens, flops, seconds)
        return _Batch(totals, phases_of(getattr(module, "latest", {}), seconds))


def phases_of(latest: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Seconds of each phase of a batch.

    Args:
        latest: What the module logged, `time/*` among it.
        seconds: That the batch took; a module that says more counts work that an interrupted run did, which gives no
            phases here.
    """
    times = {name.removeprefix("time/"): value for name, value in latest.items() if name.startswith("time/")}
    phases = {name: value for name, value in times.items() if name not in _BESIDE}
    phases = phases or {name: value for name, value in times.items() if name == "step"}
    return phases if sum(phases.values()) <= seconds else {}


def means(batches: list[_Batch], *, devices: int, peak: float | None) -> dict[str, float]:
    """Rates and shares over some batches.

    Args:
        batches: One or more.
        devices: Of the run.
        peak: Operations a second of one of them; None where they are not known.
    """
    sums = Totals()
    for batch in batches:
        sums += batch.totals
    values = {
        "samples_per_second": sums.samples / sums.seconds,
        "tokens_per_second": sums.tokens / sums.seconds,
        "tflops_per_device": sums.flops / sums.seconds / devices / 1e12,
    }
    if peak is not None:
        values["mfu"] = sums.flops / sums.seconds / devices / peak
    told = [batch for batch in batches if batch.phases]
    generating = sum(batch.phases.get("generate", 0.0) for batch in told)
    if generating:
        values["rollout_tokens_per_second"] = sum(batch.totals.rollout_tokens for batch in told) / generating
    whole = sum(batch.totals.seconds for batch in told)
    names = {name for batch in told for name in batch.phases}
    shares = {name: sum(batch.phases.get(name, 0.0) for batch in told) / whole for name in sorted(names)}
    if shares:
        shares["rest"] = 1 - sum(shares.values())
    return values | {f"share/{name}": share for name, share in shares.items()}


def peak_of(device: torch.device) -> float | None:
    """Operations a second of a GPU's data sheet; None for other devices and for parts of one."""
    return peak_by_name(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_by_name(name: str) -> float | None:
    """Operations a second by a GPU's name as its driver gives it; None for unknown ones."""
    if re.search(r"\b(Laptop|Max-Q|MIG)\b", name):
        return None
    found = [part for part in PEAK if re.search(rf"\b{part}\b", name)]
    return PEAK[max(found, key=len)] if found else None


def peak_memory(device: torch.device) -> float:
    """The most bytes so far: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else 1024 * most)


def _reduced(trainer: Trainer, values: Tensor, how: str) -> Tensor:
    result: Tensor = trainer.strategy.reduce(values.to(trainer.strategy.root_device), reduce_op=how)
    return result
