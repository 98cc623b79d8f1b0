"""Log-probability and entropy of tokens, with a few rows of logits in memory at one time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from lit_vlaa.types import TokenScores

_CACHED_NUMBERS = 2**17
"""Half a megabyte in float32: a part of a core's second-level cache."""
GPU_NUMBERS = 2**26
"""A quarter of a gigabyte in float32: enough to keep a GPU busy."""


def token_scores(
    hidden: Tensor,
    targets: Tensor,
    project: Callable[[Tensor], Tensor],
    *,
    temperature: float = 1.0,
    banned: Tensor | None = None,
    chunk_size: int = 2048,
) -> TokenScores:
    """Log-probability and entropy of each target token, without ever holding `[N, V]` logits.

    The head runs over `chunk_size` tokens at a time; in training the logits of a chunk are computed again in the
    backward pass instead of being kept.

    Args:
        hidden: `[N, H]` states that predict the targets.
        targets: `[N]` token ids.
        project: The language-model head, `[n, H]` to `[n, V]`.
        temperature: Divides the logits, as sampling does.
        banned: Token ids that the sampler may never draw; they get no probability here either.
        chunk_size: Tokens a chunk.
    """

    def score(hidden_chunk: Tensor, target_chunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = project(hidden_chunk)
        return _Scores.apply(logits, target_chunk, temperature, banned)  # type: ignore[no-any-return, no-untyped-call]

    chunks = max(1, math.ceil(targets.numel() / chunk_size))
    recompute = chunks > 1 and torch.is_grad_enabled()
    parts = []
    for hidden_chunk, target_chunk in zip(hidden.chunk(chunks), targets.chunk(chunks), strict=True):
        if recompute:
            parts.append(checkpoint(score, hidden_chunk, target_chunk, use_reentrant=False))
        else:
            parts.append(score(hidden_chunk, target_chunk))
    logprobs, entropy, correct = (torch.cat(column) for column in zip(*parts, strict=True))
    return TokenScores(logprobs=logprobs, entropy=entropy, correct=correct)


def scale_logits(logits: Tensor, *, temperature: float, banned: Tensor | None) -> Tensor:
    """The policy's distribution as sampled from: fp32 logits over temperature, banned tokens out of reach.

    A finite floor stands for minus infinity, so that probability times logit stays zero for a banned token.
    """
    scaled = logits.float()
    if temperature != 1.0:
        scaled = scaled / temperature
    if banned is not None:
        floor = torch.finfo(torch.float32).min / 4
        # What was made here may be written to; logits are the caller's.
        scaled = scaled.index_fill(-1, banned, floor) if scaled is logits else scaled.index_fill_(-1, banned, floor)
    return scaled


def gather(values: Tensor, places: Tensor) -> Tensor:
    """`values[places]` whose gradient adds up in float32 where a place occurs several times.

    Args:
        values: `[T, ...]`.
        places: `[N]` int64.
    """
    result: Tensor = _Gather.apply(values, places)  # type: ignore[no-untyped-call]
    return result


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = values.shape
        return values.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        wide = torch.promote_types(gradient.dtype, torch.float32)
        total = torch.zeros(ctx.shape, dtype=wide, device=gradient.device)
        return total.index_add_(0, places, gradient.to(wide)).to(gradient.dtype), None


class _Scores(torch.autograd.Function):
    """Log-probability, entropy and hit of each target from its logits.

    The steps are those of a few lines of plain PyTorch. By hand, they pass over the logits fewer times, keep them only
    once and as they came, and hold float32 numbers for a few rows at a time, which stay in a processor's cache.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float, banned: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.temperature = temperature
        ctx.rows = rows_at_once(logits.shape[-1], logits.device)
        parts = [
            _score_block(scale_logits(own, temperature=temperature, banned=banned), target)
            for own, target in zip(torch.split(logits, ctx.rows), torch.split(targets, ctx.rows), strict=True)
        ]
        logprobs, entropy, correct, log_z = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(logits, targets, log_z, banned)
        ctx.mark_non_differentiable(entropy, correct)
        return logprobs, entropy, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None, None]:
        logits, targets, log_z, banned = ctx.saved_tensors
        # d logprob / d logits = (one at the target - probabilities) / temperature
        factors = (gradient / ctx.temperature)[:, None]
        result = torch.empty_like(logits)
        split = (
            torch.split(tensor, ctx.rows) for tensor in (result, logits, targets[:, None], log_z[:, None], factors)
        )
        for out, own, target, total, factor in zip(*split, strict=True):
            scaled = scale_logits(own, temperature=ctx.temperature, banned=banned)
            out.copy_((scaled - total).exp_().mul_(-factor).scatter_add_(-1, target, factor))
        return result, None, None, None


def _score_block(scaled: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probability, entropy, hit and normaliser of a few rows; what they take is free again before the next."""
    largest, most_probable = scaled.max(dim=-1)
    weights = (scaled - largest[:, None]).exp_()
    total = weights.sum(-1)
    log_z = largest + total.log()
    logprobs = scaled.gather(-1, targets[:, None]).squeeze(-1) - log_z
    entropy = log_z - weights.mul_(scaled).sum(-1) / total
    return logprobs, entropy, most_probable == targets, log_z


def rows_at_once(vocabulary: int, device: torch.device) -> int:
    """How many rows of logits are held in float32 at one time."""
    return max(1, (_CACHED_NUMBERS if device.type == "cpu" else GPU_NUMBERS) // vocabulary)
