"""Drawing tokens: one uniform number a token, fixed in advance by what the token belongs to.

Inverse-transform sampling needs a single number a token, so the numbers of a completion can be drawn before it is
generated, from a counter-based generator keyed by (seed, step, prompt, sample). They are the same on every device.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from lit_vlaa.generation.protocol import RolloutKey
from lit_vlaa.scores import scale_logits
from lit_vlaa.types import SamplingParams


def uniforms(key: RolloutKey, prompt_id: str, sample: int, count: int) -> Tensor:
    """`[count]` float32 numbers in [0, 1) for the tokens of one completion."""
    attempt = f"\x00{key.attempt}" if key.attempt else ""
    name = f"{key.seed}\x00{key.step}\x00{prompt_id}\x00{sample}{attempt}".encode()
    philox = np.random.Philox(key=int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little"))
    return torch.from_numpy(np.random.Generator(philox).random(count, dtype=np.float32))


def sample_tokens(
    logits: Tensor, uniform: Tensor, params: SamplingParams, banned: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Draws one token a row.

    Args:
        logits: `[R, V]` raw logits.
        uniform: `[R]` numbers in [0, 1).
        params: Temperature (0 takes the most probable token), top-k and top-p.
        banned: Ids never drawn.

    Returns:
        `[R]` token ids, and `[R]` float32 log-probabilities under temperature and bans, before top-k and top-p.
    """
    scaled = scale_logits(logits, temperature=params.temperature or 1.0, banned=banned)
    highest = scaled.amax(-1, keepdim=True)
    weights = torch.exp(scaled - highest)
    cumulative = weights.cumsum(-1)
    log_z = highest + cumulative[:, -1:].log()
    if params.temperature == 0:
        tokens = scaled.argmax(-1, keepdim=True)
    else:
        if params.top_k or params.top_p < 1:
            weights = torch.exp(_truncate(scaled, params) - highest)
            cumulative = weights.cumsum(-1)
        # The first sum that reaches a positive threshold belongs to a token that made it grow.
        threshold = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
        threshold = threshold.clamp(min=torch.finfo(cumulative.dtype).tiny)
        tokens = torch.searchsorted(cumulative, threshold).clamp(max=logits.shape[-1] - 1)
        if logits.device.type != "cpu":
            # There a sum in parallel may grow by rounding at a token without probability.
            tokens = torch.where(weights.gather(-1, tokens) > 0, tokens, scaled.argmax(-1, keepdim=True))
    return tokens.squeeze(-1), (scaled.gather(-1, tokens) - log_z).squeeze(-1)


def _truncate(scaled: Tensor, params: SamplingParams) -> Tensor:
    if 0 < params.top_k < scaled.shape[-1]:
        smallest = scaled.topk(params.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < smallest, -torch.inf)
    if params.top_p < 1:
        ordered, order = scaled.sort(dim=-1, descending=True)
        probabilities = torch.softmax(ordered, dim=-1)
        before = probabilities.cumsum(-1) - probabilities
        drop = torch.zeros_like(scaled, dtype=torch.bool).scatter(-1, order, before >= params.top_p)
        scaled = scaled.masked_fill(drop, -torch.inf)
    return scaled
