"""Rollouts: completions sampled from the policy, with the log-probability of every sampled token."""

from lit_vlaa.generation.engine import CachedGenerator
from lit_vlaa.generation.protocol import Generator, RolloutKey
from lit_vlaa.generation.transformers_generate import TransformersGenerator
from lit_vlaa.generation.vllm.generator import VLLMGenerator

__all__ = ["CachedGenerator", "Generator", "RolloutKey", "TransformersGenerator", "VLLMGenerator"]
