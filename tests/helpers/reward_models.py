"""Small reward models on disk, and transformers' own word on what they say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from helpers.samples import image, tiny_backbone
from lit_vlaa.rewards.scorers import RewardModelScorer
from lit_vlaa.types import RewardRequest

HIDDEN = 128
MAX_PIXELS = 84 * 84

ROUNDING = 1e-4
"""float32, for scores that spread over 35; measured for batched rows with padding against one row at a time: 2e-5."""


def save_reward_model(folder: Path, head: dict[str, torch.Tensor] | None = None) -> Path:
    """Writes the tiny backbone with a value head, of random weights unless `head` gives them."""
    tiny_backbone().save_pretrained(folder)
    if head is None:
        generator = torch.Generator().manual_seed(11)
        head = {
            "v_head.summary.weight": torch.randn(1, HIDDEN, generator=generator),
            "v_head.summary.bias": torch.tensor([0.25]),
        }
    save_file(head, folder / "value_head.safetensors")
    return folder


def card_text(tokenizer: Any, question: str, answer: str, images: int) -> str:
    """The conversation as the model card of Skywork-VL-Reward-7B writes it."""
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": question}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
    return text


class CardScorer:
    """The card's way of scoring, row by row, with transformers' model and a linear layer: nothing of lit-vlaa's."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.images = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": MAX_PIXELS})
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
        self.head = nn.Linear(HIDDEN, 1)
        stored = load_file(folder / "value_head.safetensors")
        self.head.load_state_dict({key.removeprefix("v_head.summary."): value for key, value in stored.items()})

    @torch.no_grad()
    def __call__(self, question: str, answer: str, images: Sequence[Image] = ()) -> float:
        text = card_text(self.tokenizer, question, answer, len(images))
        extra: dict[str, Any] = {}
        if images:
            extra = dict(self.images(images=list(images), return_tensors="pt"))
            for grid in extra["image_grid_thw"].tolist():
                count = grid[0] * grid[1] * grid[2] // 4
                text = text.replace("<|image_pad|>", "<|place|>" * count, 1)
            text = text.replace("<|place|>", "<|image_pad|>")
        image_id: Any = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]])
        output = self.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=ids.eq(image_id).int(),
            output_hidden_states=True,
            use_cache=False,
            **extra,
        )
        return float(self.head(output.hidden_states[-1][0, -1].float()))


def scorer_of(folder: Path, **options: Any) -> RewardModelScorer:
    return RewardModelScorer(**{"path": str(folder), "dtype": "float32", "max_pixels": MAX_PIXELS, **options})


def request(name: str, question: str, *images: Image, truth: str = "a red circle") -> RewardRequest:
    return RewardRequest(
        response="",
        kind="open_ended",
        truth=truth,
        question=question,
        source="allava_laion",
        id=name,
        images=(lambda: images) if images else None,
    )


ONE = (image(84, 84, 0),)
TWO = (image(84, 56, 1), image(56, 84, 2))
LARGE = (image(300, 200, 3),)

ROWS = [
    (request("one", "What is shown in the picture?", *ONE), "a red circle and a green one", ONE),
    (request("two", "Which image has more circles?", *TWO), "the first", TWO),
    (request("none", "What is 1 + 1?"), "two", ()),
    (request("one", "What is shown in the picture?", *ONE), "", ONE),
    (request("large", "Describe it.", *LARGE), "many words " * 20, LARGE),
    (request("one", "What is shown in the picture?", *ONE), "nothing: only a blue square", ONE),
]
REQUESTS = [row for row, _, _ in ROWS]
ANSWERS = [answer for _, answer, _ in ROWS]


def expected(card: CardScorer) -> list[float]:
    """The card's scores of `ROWS`."""
    return [card(row.question, answer.strip(), images) for row, answer, images in ROWS]
