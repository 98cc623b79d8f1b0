"""A backbone that scores responses within Lightning's prediction loop, for the tools that ask how likely they are."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch import LightningModule

from lit_vlaa.backbone import Backbone, BackboneConfig, Processor, build_backbone, load_processor
from lit_vlaa.backbone.config import LoRAConfig
from lit_vlaa.micro_batches import Batching
from lit_vlaa.perplexity import Likelihood, TextRow, TracePart, likelihoods


@dataclass(frozen=True, slots=True)
class Model:
    """What scores, and how it runs."""

    backbone: BackboneConfig
    init_from: str | None
    max_tokens: int
    batching: Batching
    accelerator: Any
    precision: Any


def for_scoring(backbone: BackboneConfig) -> BackboneConfig:
    """The backbone without what is for training; adapters would be new ones, which add nothing."""
    plain: dict[str, Any] = {"freeze": (), "lora": LoRAConfig(), "quantize": None, "gradient_checkpointing": False}
    return replace(backbone, **plain, compile=False)


class LikelihoodModule(LightningModule):
    """Builds the backbone where the Trainer runs it."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.settings = model
        self.processor: Processor = load_processor(model.backbone)
        self.backbone: Backbone

    def configure_model(self) -> None:
        """Builds the backbone."""
        if "backbone" not in self._modules:
            self.backbone = build_backbone(self.settings.backbone, init_from=self.settings.init_from)

    def likelihoods(self, rows: Sequence[TextRow], part: TracePart) -> list[Likelihood]:
        """Scores responses, as `lit_vlaa.perplexity.likelihoods`."""
        return likelihoods(
            self.backbone, rows, part=part, max_tokens=self.settings.max_tokens, batching=self.settings.batching
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without what Lightning says of devices and of itself, and PyTorch's notices to it and of few processors."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def worth_saying(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO

    log.addFilter(worth_saying)
    try:
        with warnings.catch_warnings():
            for message in (r".*isinstance\(treespec, LeafSpec\)", "This DataLoader will create"):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        log.removeFilter(worth_saying)
