"""Chat template, tokens and images of a Qwen2.5-VL (or Qwen2-VL) backbone, without torchvision.

transformers' own combined processor needs torchvision for its video half. Images alone need only the tokenizer and the
PIL image processor, so these two are used directly; the result is the same on every machine.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils.hub import cached_file

from lit_vlaa.backbone.config import BackboneConfig
from lit_vlaa.hints import missing
from lit_vlaa.sequences import mrope_positions
from lit_vlaa.types import BoxSpace, Message, Prompt, Sample

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")

BOX_SPACES: Mapping[str, BoxSpace] = MappingProxyType({"qwen2_5_vl": "qwen2_5_vl", "qwen2_vl": "qwen2_vl"})
"""How each model type was pretrained to write boxes; the embedded tiny model learns from fractions alone."""

_END_TOKENS = ("<|im_end|>", "<|endoftext|>")


class Processor:
    """Turns samples into tokens and back (implements `lit_vlaa.protocols.ChatProcessor`)."""

    def __init__(
        self, tokenizer: Any, image_processor: Qwen2VLImageProcessorPil, *, box_space: BoxSpace = "normalized"
    ) -> None:
        """Wraps a tokenizer that has Qwen's special tokens and a chat template, and an image processor.

        Args:
            tokenizer: A transformers tokenizer.
            image_processor: Cuts images into patches.
            box_space: How the model was pretrained to write boxes.

        Raises:
            ValueError: If the tokenizer lacks a token or the template.
        """
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in (*VISION_TOKENS, *_END_TOKENS) if token not in vocabulary]
        if missing:
            raise ValueError(f"the tokenizer lacks {', '.join(missing)}; is it a Qwen2(.5)-VL model?")
        if not tokenizer.chat_template:
            raise ValueError("it has no chat template; add a chat_template.jinja or a chat_template.json")
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.box_space = box_space
        self.image_token_id: int = vocabulary["<|image_pad|>"]
        self.end_token_id: int = vocabulary["<|im_end|>"]
        self.pad_token_id: int = vocabulary["<|endoftext|>"]
        self.stop_token_ids: tuple[int, ...] = tuple(vocabulary[token] for token in _END_TOKENS)
        self.banned_token_ids: tuple[int, ...] = tuple(vocabulary[token] for token in VISION_TOKENS)
        control = sorted((token for token in tokenizer.get_added_vocab() if token.startswith("<|")), key=len)
        self._control = re.compile("|".join(re.escape(token) for token in reversed(control)))

    @property
    def settings(self) -> str:
        """Chat template, vocabulary and image settings as JSON: with these and a sample, a prompt is fixed."""
        vocabulary = hashlib.sha256(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()
        images = self.image_processor.to_dict()
        template = self.tokenizer.chat_template
        return json.dumps([template, vocabulary, images], sort_keys=True, default=str)

    def encode(self, sample: Sample) -> Prompt:
        """Applies the chat template, tokenises, prepares the images, expands each image's placeholder.

        Raises:
            ValueError: If the messages do not have one image part for each image, or an image cannot be fed.
        """
        origin = sample.record.origin
        ids = torch.tensor(self._chat_ids(sample.messages), dtype=torch.long)
        is_image = ids == self.image_token_id
        if int(is_image.sum()) != len(sample.images):
            raise ValueError(
                f"{origin}: {int(is_image.sum())} image place(s) in the chat, {len(sample.images)} image(s)"
            )
        pixels: Tensor | None = None
        grids: Tensor | None = None
        merge, patch = self.image_processor.merge_size, self.image_processor.patch_size
        if sample.images:
            try:
                features = self.image_processor(images=list(sample.images), return_tensors="pt")
            except ValueError as error:
                raise ValueError(f"{origin}: image of size {[i.size for i in sample.images]}: {error}") from error
            pixels, grids = features["pixel_values"], features["image_grid_thw"]
            repeats = torch.ones_like(ids)
            repeats[is_image] = grids.prod(-1) // merge**2
            ids = ids.repeat_interleave(repeats)
        positions = mrope_positions(ids, image_token_id=self.image_token_id, image_grid_thw=grids, merge_size=merge)
        sizes = () if grids is None else tuple((w * patch, h * patch) for _, h, w in grids.tolist())
        return Prompt(
            record=sample.record,
            input_ids=ids,
            position_ids=positions,
            pixel_values=pixels,
            image_grid_thw=grids,
            image_sizes=sizes,
            box_space=sample.box_space,
        )

    def prompt_lengths(self, messages: Sequence[Message], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Counts what `encode` would give, without an image's pixels.

        Args:
            messages: The chat, with an image part for each image.
            sizes: (width, height) of the images as opened.

        Returns:
            Tokens beside the images, and the tokens of the images.

        Raises:
            ValueError: If the chat has another number of image places, or an image cannot be fed.
        """
        ids = self._chat_ids(messages)
        places = ids.count(self.image_token_id)
        if places != len(sizes):
            raise ValueError(f"{places} image place(s) in the chat, {len(sizes)} image(s)")
        patches = sum(self.image_processor.get_number_of_image_patches(high, wide) for wide, high in sizes)
        return len(ids) - places, patches // self.image_processor.merge_size**2

    def encode_response(self, text: str) -> Tensor:
        """`[C]` tokens of an assistant's response, the end-of-turn token last."""
        ids = self.tokenizer(self._disarm(text), add_special_tokens=False)["input_ids"]
        return torch.tensor([*ids, self.end_token_id], dtype=torch.long)

    def encode_places(self, text: str) -> tuple[Tensor, list[int], str]:
        """A response's tokens without the end of turn, where each begins, and in which text.

        Returns:
            `[C]` tokens as in `encode_response`; the place of each one's first character; and the text that places
            count in, `text` with control tokens broken up.
        """
        text = self._disarm(text)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        places = [start for start, _ in encoded["offset_mapping"]]
        return torch.tensor(encoded["input_ids"], dtype=torch.long), places, text

    def decode(self, token_ids: Tensor) -> str:
        """Text of sampled tokens without control tokens."""
        return str(self.tokenizer.decode(token_ids.tolist(), skip_special_tokens=True))

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer, chat template and image settings in the Hub's layout."""
        self.tokenizer.save_pretrained(directory)
        self.image_processor.save_pretrained(directory)

    def _chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a chat that the assistant is to answer, with one for each image."""
        disarmed = [self._disarmed(message) for message in messages]
        text = self.tokenizer.apply_chat_template(disarmed, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _disarmed(self, message: Message) -> dict[str, Any]:
        content = [
            {**part, "text": self._disarm(part["text"])} if part["type"] == "text" else dict(part)
            for part in message["content"]
        ]
        if message["role"] == "system":
            return {"role": "system", "content": "".join(str(part.get("text", "")) for part in content)}
        return {"role": message["role"], "content": content}

    def _disarm(self, text: str) -> str:
        """Breaks up control tokens in data, so that a row can neither forge a turn nor an image."""
        return self._control.sub(lambda match: "< " + match.group()[1:], text)


@contextmanager
def naming_path(config: BackboneConfig) -> Iterator[None]:
    """Puts the flag and its value ahead of what loading from `config.path` may raise.

    Raises:
        ValueError: In place of OSError and ValueError; also for a path that is not there and can be no Hub id.
    """
    local = config.path.startswith((".", "/", "~")) or config.path.count("/") > 1
    if local and not Path(config.path).exists():
        raise ValueError(f"--model.backbone.path {config.path} {missing(Path(config.path))}")
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"--model.backbone.path {config.path}: {error}") from error


def load_processor(config: BackboneConfig) -> Processor:
    """Loads the processor of `config.path` with its pixel limits (`tiny` makes it).

    Raises:
        ValueError: If the path holds no usable tokenizer; the message names the flag.
    """
    if config.path == "tiny":
        from lit_vlaa.backbone.tiny import tiny_processor  # noqa: PLC0415  # tiny imports this module

        return tiny_processor(min_pixels=config.min_pixels, max_pixels=config.max_pixels)
    source: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    size = {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
    # A released checkpoint names its own limits as min_pixels and max_pixels, which would win over `size`.
    limits: dict[str, Any] = {"min_pixels": config.min_pixels, "max_pixels": config.max_pixels, "size": size}
    with naming_path(config):
        tokenizer = AutoTokenizer.from_pretrained(config.path, **source)
        tokenizer.chat_template = tokenizer.chat_template or _processor_template(config)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(
            config.path, revision=config.revision or "main", **limits
        )
        model_type = AutoConfig.from_pretrained(config.path, **source).model_type
        return Processor(tokenizer, image_processor, box_space=BOX_SPACES.get(model_type, "normalized"))


def _processor_template(config: BackboneConfig) -> str | None:
    """The chat template that checkpoints of Qwen's keep for the combined processor, apart from the tokenizer."""
    try:
        file = cached_file(config.path, "chat_template.json", revision=config.revision)
    except OSError:
        return None
    try:
        return str(json.loads(Path(str(file)).read_text(encoding="utf-8"))["chat_template"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"its chat_template.json has no chat_template: {error!r}") from error
