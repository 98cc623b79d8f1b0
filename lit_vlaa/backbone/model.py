"""One module that owns the vision-language model: loading, freezing, sharding, scoring, and access for generation."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedModel

from lit_vlaa.backbone.adapter_state import fingerprint, keep_adapters_alone, note_for
from lit_vlaa.backbone.adapters import adapt, adapters_off, merged_weights
from lit_vlaa.backbone.attention import let_pack
from lit_vlaa.backbone.compiled import compile_layers
from lit_vlaa.backbone.config import BackboneConfig, LoRAConfig
from lit_vlaa.backbone.features import ImageEncoder
from lit_vlaa.backbone.processor import Processor, load_processor, naming_path
from lit_vlaa.backbone.weights import load_weights
from lit_vlaa.scores import gather, token_scores
from lit_vlaa.types import ModelInputs, TokenScores

_MODEL_TYPES = ("qwen2_5_vl", "qwen2_vl")


class Backbone(nn.Module):
    """A Qwen2.5-VL or Qwen2-VL with its processor, whole or sharded."""

    def __init__(
        self, model: PreTrainedModel, processor: Processor, config: BackboneConfig, *, init_from: str | None = None
    ) -> None:
        """Wraps a loaded model, freezes the parts that `config` names, and puts adapters in place.

        Args:
            model: With the weights to start from.
            processor: Its processor.
            config: What to freeze, and which adapters to add.
            init_from: The checkpoint that these weights come from, for the note in checkpoints of adapters.
        """
        super().__init__()
        self.origin: str | None = None
        """Fingerprint of the weights that the run starts from, before adapters."""
        # Loading leaves a model in evaluation mode, in which transformers ignores gradient checkpointing.
        self.model = model.train()
        self.processor = processor
        self.config = config
        for part in config.freeze:
            for parameter in self._part(part):
                parameter.requires_grad_(False)
        note = note_for(model, config, init_from)
        adapt(model, config)
        self.not_packed = let_pack(self.language_model.config)  # type: ignore[arg-type]
        """Why packed rows cannot be scored; None where they can."""
        keep_adapters_alone(self, note)
        self.images = ImageEncoder(model, cached=config.cache_vision)
        self._vision_apart = False
        if config.compile:
            compile_layers(self.language_model)
        if config.gradient_checkpointing:
            _recompute_activations(model)
        self.register_buffer("_banned", torch.tensor(processor.banned_token_ids), persistent=False)

    @property
    def visual(self) -> nn.Module:
        """The vision tower with its merger."""
        return self.model.model.visual  # type: ignore[no-any-return]

    @property
    def language_model(self) -> nn.Module:
        """The decoder without its head."""
        return self.model.model.language_model  # type: ignore[no-any-return]

    @property
    def lm_head(self) -> nn.Module:
        """The projection to the vocabulary."""
        return self.model.lm_head  # type: ignore[no-any-return]

    @property
    def banned_token_ids(self) -> Tensor:
        """`[K]` ids that sampling never draws: an image token without an image would break the next forward pass."""
        return self._banned  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """Where inputs belong."""
        return self._banned.device  # type: ignore[return-value]

    def forward(self, inputs: ModelInputs, *, temperature: float = 1.0, ban: bool = False) -> TokenScores:
        """Scores the target tokens of `inputs`.

        Args:
            inputs: Padded or, unless `not_packed` says why not, packed rows.
            temperature: Divides the logits, as in sampling.
            ban: Give the tokens that sampling bans no probability, as in sampling.

        Returns:
            One score a target token, row by row.
        """
        return token_scores(
            gather(self.hidden_states(inputs).flatten(0, 1), inputs.predictors),
            inputs.targets,
            self.lm_head,
            temperature=temperature,
            banned=self.banned_token_ids if ban else None,
            chunk_size=self.config.logprob_chunk,
        )

    def hidden_states(self, inputs: ModelInputs) -> Tensor:
        """`[B, T, H]` states of the last layer, after the final norm; the heads read these."""
        embeds = self.embed(inputs)
        options: dict[str, Any] = {}
        if inputs.segments is not None:
            # A mapping of masks keeps transformers from making one.
            options = {"attention_mask": {"full_attention": None}, "segments": inputs.segments}
        output = self.language_model(inputs_embeds=embeds, position_ids=inputs.position_ids, use_cache=False, **options)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def embed(self, inputs: ModelInputs) -> Tensor:
        """`[B, T, H]` token embeddings with image features in their places; each distinct image is encoded once."""
        embeds: Tensor = self.language_model.embed_tokens(inputs.input_ids)  # type: ignore[operator]
        if inputs.image_slots is not None:
            features = self.images(inputs)
            placed = torch.cat([features[slot] for slot in inputs.image_slots.tolist()])
            places = (inputs.input_ids == self.processor.image_token_id).unsqueeze(-1).expand_as(embeds)
            return embeds.masked_scatter(places, placed.to(embeds.dtype))
        if self._vision_apart or (self.images.trains and torch.is_grad_enabled()):
            # Every rank must reach what trains of the tower, with images or without: gathering its shards and reducing
            # its gradients are collective. A blank image times zero does it without changing any number.
            embeds = embeds + 0.0 * self.images.blank(embeds.device).sum().to(embeds.dtype)
        return embeds

    def without_adapters(self) -> AbstractContextManager[None]:
        """While open, the model computes with the weights that it started from; without adapters nothing changes."""
        return adapters_off(self.model)

    def shard(self, mesh: Any, **policies: Any) -> None:
        """Shards the parameters over `mesh` with FSDP2: each decoder layer, what trains of the tower, and the rest.

        What of the tower is frozen stays with the rest, so that a rank without images never waits for one with images.

        Args:
            mesh: One-dimensional device mesh.
            policies: `mp_policy` and `offload_policy` of `fully_shard`.
        """
        from torch.distributed.fsdp import fully_shard  # noqa: PLC0415  # needs torch.distributed

        options: dict[str, Any] = {"mesh": mesh, **policies}
        for layer in self.language_model.layers:  # type: ignore[union-attr]
            fully_shard(layer, **options)
        if self.images.trains:
            fully_shard(self.images.trained_unit, **options)
            self._vision_apart = True
        fully_shard(self, **options)

    def save_pretrained(self, directory: str | Path, *, max_shard_size: int = 5 * 10**9) -> None:
        """Writes an unsharded model in the Hub's layout (safetensors, config, tokenizer, image settings).

        Adapters are added to the weights, so that transformers, vLLM and others load it as any other model.

        Args:
            directory: Folder to write to.
            max_shard_size: Most bytes of a weight file.
        """
        self.model.save_pretrained(directory, state_dict=merged_weights(self.model), max_shard_size=max_shard_size)
        self.processor.save(directory)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Moves or converts the model, but never the precision of its rotary frequencies.

        Positions of some hundreds are no bfloat16 numbers.
        """
        exact = {
            module: value for module in self.modules() for name, value in module._buffers.items() if name == "inv_freq"
        }
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module, frequencies in exact.items():
            if frequencies is not None:
                module._buffers["inv_freq"] = frequencies.to(self.device)
        return self

    def _part(self, part: str) -> list[nn.Parameter]:
        merger = list(self.visual.merger.parameters())  # type: ignore[union-attr]
        if part == "merger":
            return merger
        if part == "vision":
            apart = {id(parameter) for parameter in merger}
            return [p for p in self.visual.parameters() if id(p) not in apart]
        return [*self.language_model.parameters(), *self.lm_head.parameters()]


def build_backbone(config: BackboneConfig, *, init_from: str | None = None) -> Backbone:
    """Loads or makes the backbone that `config` describes, on the CPU.

    Args:
        config: What to load.
        init_from: Checkpoint of an earlier run whose weights to take, its adapters added to them. New adapters are put
            beside the result, so that they always start from zero.

    Raises:
        ValueError: If the path is no Qwen2.5-VL or Qwen2-VL, or cannot be read; the message names the flag.
    """
    # Lightning builds models with a GPU as the default device, on which transformers would load by accelerate and the
    # tiny model would draw other weights.
    with torch.device("cpu"):
        plain = replace(config, lora=LoRAConfig(), quantize=None)
        backbone = _tiny(plain) if config.path == "tiny" else _loaded(plain)
        if init_from is not None:
            load_weights(backbone, init_from)
        origin = fingerprint(backbone.model)
        if config.adapters is not None:
            backbone = Backbone(backbone.model, backbone.processor, config, init_from=init_from)
        backbone.origin = origin
        return backbone


def _tiny(config: BackboneConfig) -> Backbone:
    from lit_vlaa.backbone.tiny import tiny_model  # noqa: PLC0415  # only this path needs it

    processor = load_processor(config)
    backbone = Backbone(tiny_model(processor, attention=_attention(config, torch.float32)), processor, config)
    return backbone if config.dtype == "auto" else backbone.to(getattr(torch, config.dtype))


def _loaded(config: BackboneConfig) -> Backbone:
    source: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    with naming_path(config):
        model_config = AutoConfig.from_pretrained(config.path, **source)
        check_type(model_config.model_type)
    processor = load_processor(config)
    dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    wanted = getattr(model_config, "dtype", None) if dtype == "auto" else dtype
    attention = _attention(config, wanted)
    with naming_path(config):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            config.path, dtype=dtype, attn_implementation=attention, output_loading_info=True, **source
        )
        model, loading = loaded
        # transformers only warns, and gives them random values.
        missing = sorted(loading["missing_keys"])
        if missing:
            raise ValueError(f"its files lack {len(missing)} of the model's tensors, the first of them {missing[0]}")
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=list(processor.stop_token_ids), pad_token_id=processor.pad_token_id
    )
    # transformers hands it over in evaluation mode, in which gradient checkpointing does nothing.
    return Backbone(model, processor, config).train()


def check_type(model_type: str) -> None:
    """Refuses models that `Backbone` cannot hold.

    Args:
        model_type: As `config.json` has it.

    Raises:
        ValueError: If it is another.
    """
    if model_type not in _MODEL_TYPES:
        raise ValueError(f"it is a {model_type}, not one of {', '.join(_MODEL_TYPES)}")


def _recompute_activations(model: PreTrainedModel) -> None:
    """Keeps no activations within layers; transformers renamed this method and warns of the older name."""
    newer = getattr(model, "activation_checkpointing_enable", None)
    if newer is None:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    else:
        newer({"use_reentrant": False})


def _attention(config: BackboneConfig, dtype: torch.dtype | None) -> str:
    if config.attention != "auto":
        if config.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
            raise ValueError(
                "--model.backbone.attention flash_attention_2 needs flash-attn: run `pip install flash-attn "
                "--no-build-isolation` (it needs nvcc), or leave it at auto"
            )
        return config.attention
    half = dtype in {torch.bfloat16, torch.float16}
    flash = half and torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if flash else "sdpa"
