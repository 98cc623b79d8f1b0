"""The embedded model: real Qwen2.5-VL classes at half a million parameters, made in code, for laptops and tests.

Departures from a released checkpoint, besides size: matrices start at a standard deviation of 0.06 (0.03 for the patch
embedding), because with the stock 0.02 so small a model never leaves the prior; the tokenizer is a byte-level BPE
trained on the words below, with Qwen's control tokens.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lit_vlaa.backbone.processor import Processor

_CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_WORDS = """
system user assistant <think> </think> <answer> </answer> think reason step first then final answer question image
red green blue yellow circle circles square squares triangle triangles shape shapes object objects cell row column
top middle bottom left right center box boxes corner color colour colors count counts total most least only same
how many what which where is are the a an of in on at to and or with there it no none one two three four five six
seven eight nine zero number letter option options choice choices give find write reply short phrase sentence as
function equation value values equals expression y x = * + - / ( ) [ ] , . : ? ! wait let me check again hmm so but
double-check i should confirm mistake alternatively actually because see picture shown show grid position coordinates
format normalized between inside tags only yes not more than less both each other text document chart table
A B C D E A: B: C: D: A) B) C) D) 0 1 2 3 4 5 6 7 8 9 10 12 0.0 0.33 0.67 1.0 [0.33, 0.67, [0.0, 1.0]
"""


@cache
def _trained_bpe() -> str:
    """The tokenizer as JSON; training takes five times as long as reading that."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    words = _WORDS.split()
    text = [" ".join(words), *words, *(f" {word}" for word in words)] * 4
    bpe.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=1024,
            min_frequency=4,
            special_tokens=list(_CONTROL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return str(bpe.to_str())


def tiny_processor(*, min_pixels: int, max_pixels: int) -> Processor:
    """The tiny model's processor: 28-pixel merged patches as in the real one."""
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer.from_str(_trained_bpe()),
        eos_token="<|im_end|>",  # noqa: S106  # a control token, no secret
        pad_token="<|endoftext|>",  # noqa: S106
        additional_special_tokens=list(_CONTROL[1:]),
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return Processor(tokenizer, Qwen2VLImageProcessorPil(size=size))


def tiny_model(
    processor: Processor, *, hidden_size: int = 128, layers: int = 2, attention: str = "sdpa"
) -> Qwen2_5_VLForConditionalGeneration:
    """A randomly initialised Qwen2.5-VL for `processor`'s vocabulary; the same weights in every process.

    Args:
        processor: Gives the vocabulary and the control tokens.
        hidden_size: Width of the language model; heads of 32.
        layers: Decoder layers.
        attention: Attention implementation of transformers.
    """
    ids = processor.tokenizer.convert_tokens_to_ids
    heads = hidden_size // 32
    text: dict[str, Any] = {
        "vocab_size": len(processor.tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        "bos_token_id": ids("<|endoftext|>"),
        "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"),
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": hidden_size,
        "fullatt_block_indexes": [1],
        "patch_size": 14,
        "window_size": 112,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    config._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.03 if "patch_embed" in name else 0.06)
    return model
