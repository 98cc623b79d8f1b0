"""The vision-language model that SFT, GRPO, evaluation and reward models share."""

from lit_vlaa.backbone.config import BackboneConfig
from lit_vlaa.backbone.model import Backbone, build_backbone
from lit_vlaa.backbone.processor import Processor, load_processor

__all__ = ["Backbone", "BackboneConfig", "Processor", "build_backbone", "load_processor"]
