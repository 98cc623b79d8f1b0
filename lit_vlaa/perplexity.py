"""How likely responses are under a model: the sum of -log p over their tokens, row by row.

The paper chooses small SFT sets by the perplexity of their answers; the study asks how far a policy's traces are from
what the base model would write.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from lit_vlaa.micro_batches import Batching, RowSize, count, divide, scores_by_row
from lit_vlaa.packing import join
from lit_vlaa.traces import thinking_span
from lit_vlaa.types import Prompt

if TYPE_CHECKING:
    from lit_vlaa.backbone import Backbone, Processor

TracePart = Literal["response", "thinking"]
"""Which tokens count: all, or those between the think tags."""


@dataclass(frozen=True, slots=True)
class TextRow:
    """A response to score."""

    prompt: Prompt
    text: str
    """The response as text; it is cut into tokens anew, not always into those that were sampled."""
    ended: bool = True
    """Whether the policy ended it, so that the end-of-turn token is one of its tokens."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a response is."""

    nll: float
    """Sum of -log p over the tokens, in nats."""
    tokens: int
    """How many; 0 where there are none of the part asked for."""

    @property
    def perplexity(self) -> float:
        """Exponential of the mean nats a token; NaN without tokens, infinity beyond what a float holds."""
        if not self.tokens:
            return math.nan
        mean = self.nll / self.tokens
        return math.exp(mean) if mean < 709 else math.inf


def likelihoods(
    backbone: Backbone,
    rows: Sequence[TextRow],
    *,
    part: TracePart = "response",
    max_tokens: int = 8192,
    batching: Batching = "packed",
) -> list[Likelihood]:
    """Scores responses by the model's own distribution (temperature 1, no token banned).

    The model reads the whole response whichever part counts: the thinking is scored as it was written, after the
    prompt and the opening tag. A token belongs to the thinking where its first character stands between the tags,
    blanks beside them included. So every token belongs to one part alone, and one that joins a tag's end to the first
    word counts as the tag's.

    Args:
        backbone: The model; it is put into evaluation mode for the time.
        rows: Prompts, with their images, and responses.
        part: Which tokens count.
        max_tokens: Of one forward pass, padding included; a longer row goes alone.
        batching: Layout of a pass; padded where the backbone cannot take packed rows.

    Returns:
        One for each row, in their order; equal up to rounding whatever goes through the model together.

    Raises:
        ValueError: If `part` or `max_tokens` is out of range.
    """
    if part not in get_args(TracePart):
        raise ValueError(f"part must be response or thinking, got {part!r}")
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    if not rows:
        return []
    layout: Batching = "padded" if backbone.not_packed is not None else batching
    encoded = [_encoded(backbone.processor, row, part) for row in rows]
    # Of like length beside each other, so that padded rows hold little padding.
    order = sorted(range(len(rows)), key=lambda row: rows[row].prompt.input_ids.numel() + len(encoded[row][0]))
    pairs = [(rows[row].prompt, encoded[row][0]) for row in order]
    sizes = [RowSize(prompt.input_ids.numel(), len(tokens), at) for at, (prompt, tokens) in enumerate(pairs)]
    parts = divide(sizes, min(count(sizes, max_tokens, layout), len(sizes)), max_tokens, layout)
    pad, device = backbone.processor.pad_token_id, backbone.device
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            scores = scores_by_row(
                sizes,
                parts,
                lambda some: backbone(join([pairs[at] for at in some], layout, pad_token_id=pad, device=device)),
            )
    finally:
        backbone.train(training)
    found: dict[int, Likelihood] = {}
    for row, own in zip(order, scores, strict=True):
        counted = own.logprobs.cpu().double()[encoded[row][1]]
        found[row] = Likelihood(-float(counted.sum()) if len(counted) else 0.0, len(counted))
    return [found[row] for row in range(len(rows))]


def _encoded(processor: Processor, row: TextRow, part: TracePart) -> tuple[Tensor, Tensor]:
    """`[C]` tokens of a response, and `[C]` bool which of them count."""
    tokens, places, text = processor.encode_places(row.text)
    span = (0, len(text) + 1) if part == "response" else thinking_span(text) or (0, 0)
    counted = [span[0] <= place < span[1] for place in places]
    if row.ended:
        tokens = torch.cat([tokens, torch.tensor([processor.end_token_id])])
        counted.append(part == "response")
    return tokens, torch.tensor(counted, dtype=torch.bool)
