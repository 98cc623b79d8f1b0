"""The reference policy that GRPO's divergence is measured from: the policy as it was when the run started.

Three ways to keep it, which give the same numbers: a frozen copy beside the policy, a copy in main memory that is on
the device only for its pass, and the policy itself without its adapters, which needs no second model at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch.func import functional_call

from lit_vlaa.backbone import Backbone, BackboneConfig
from lit_vlaa.backbone.offload import pin, weights_on
from lit_vlaa.types import TokenScores

ReferenceKind = Literal["auto", "copy", "cpu", "adapter"]
"""How the reference policy is kept; see `GRPOModule`."""

Score = Callable[..., TokenScores]
"""`Backbone.forward`."""

_ORIGIN = "reference_policy"


class Reference:
    """The reference policy of one run; only `make` makes a model.

    Args:
        kind: How to keep it.
        backbone: The policy's settings.
        init_from: The checkpoint that the run starts from.

    Raises:
        ValueError: If there are no adapters to switch off, weights of 4 bits would have to travel, or dropout would
            make the policy differ from itself.
    """

    def __init__(self, kind: ReferenceKind, backbone: BackboneConfig, init_from: str | None) -> None:
        _check(kind, backbone)
        adapted = backbone.adapters is not None
        self.kind = ("adapter" if adapted else "copy") if kind == "auto" else kind
        self._origin = {"backbone.path": backbone.path, "init_from": init_from}
        self._opened: Callable[[], AbstractContextManager[Score]] | None = None

    @property
    def made(self) -> bool:
        """Whether there is a reference policy."""
        return self._opened is not None

    def make(self, policy: Backbone, build: Callable[..., Backbone], trainer: Trainer) -> None:
        """Makes the reference policy, unless it is there already.

        Args:
            policy: Gives itself where adapters are switched off.
            build: Gives another backbone with the run's starting weights; takes `cpu_offload`.
            trainer: With strategy and precision.
        """
        if self.made:
            return
        if self.kind == "adapter":
            self._opened = lambda: without_adapters(policy)
            return
        backbone = build(cpu_offload=self.kind == "cpu").requires_grad_(False).eval()
        trainer.precision_plugin.convert_module(backbone)
        device = trainer.strategy.root_device
        sharded = trainer.lightning_module.device_mesh is not None
        if self.kind == "cpu" and not sharded:
            if device.type == "cuda":
                pin(backbone)
            self._opened = lambda: visiting(backbone, device)
        else:
            # FSDP2 brings shards in main memory to the device itself, a layer at a time.
            copy = backbone if sharded else backbone.to(device)
            self._opened = lambda: resident(copy)

    def running(self) -> AbstractContextManager[Score]:
        """Has the reference ready for forward passes while it is open.

        Raises:
            RuntimeError: If there is none.
        """
        if self._opened is None:
            raise RuntimeError("the reference policy is not made yet")
        return self._opened()

    def note(self, checkpoint: dict[str, Any]) -> None:
        """Writes into a checkpoint where the run started from."""
        checkpoint[_ORIGIN] = self._origin

    def check(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to resume with another reference policy.

        Raises:
            ValueError: If the checkpoint's run started from other weights; the message says what to give.
        """
        stored = checkpoint.get(_ORIGIN)
        if stored is not None and stored != self._origin:
            given = " ".join(f"--model.{name} {value or 'null'}" for name, value in stored.items())
            raise ValueError(f"the checkpoint's run measures its KL from other weights; resume it with {given}")


@contextmanager
def resident(backbone: Backbone) -> Iterator[Score]:
    """A copy that stays where it is."""
    yield backbone


@contextmanager
def visiting(backbone: Backbone, device: torch.device) -> Iterator[Score]:
    """A copy in main memory whose weights are copied to the device, and dropped there at the end."""
    weights = weights_on(backbone, device)
    yield lambda *inputs, **options: functional_call(backbone, weights, inputs, options)


@contextmanager
def without_adapters(policy: Backbone) -> Iterator[Score]:
    """The policy with its adapters switched off, and on again at the end."""
    with policy.without_adapters():
        yield policy


def _check(kind: ReferenceKind, backbone: BackboneConfig) -> None:
    if kind == "adapter" and backbone.adapters is None:
        raise ValueError(
            "--model.reference adapter switches adapters off, and the run trains none: use copy or cpu, "
            "or train adapters with --model.backbone.lora.rank 16"
        )
    if kind == "cpu" and backbone.quantize is not None:
        raise ValueError(
            f"--model.reference cpu does not work with --model.backbone.quantize {backbone.quantize}: "
            "use adapter, which needs no memory"
        )
    if backbone.lora.dropout > 0:
        raise ValueError(
            f"--model.backbone.lora.dropout {backbone.lora.dropout}: GRPO compares passes of the policy with one "
            "another, so it must be 0"
        )
