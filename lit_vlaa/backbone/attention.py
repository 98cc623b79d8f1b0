"""Attention over packed sequences, in the form in which transformers takes attention functions.

`let_pack` gives a decoder's attention a second way to run. Where a forward pass is given `segments`, each attends
within itself and to the segment that it continues: by PyTorch's kernel for sequences of any lengths where there is one,
else by one call of its SDPA a segment. Without `segments`, what was there before runs.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_vlaa.scores import gather
from lit_vlaa.segments import Segments

_SUFFIX = "+segments"
_LARGEST_HEAD = 256

_log = logging.getLogger(__name__)


def let_pack(config: PreTrainedConfig) -> str | None:
    """Has a decoder take packed sequences too.

    Args:
        config: Of the decoder; the name of its attention changes.

    Returns:
        None, or why it cannot.
    """
    name = str(config._attn_implementation)
    if name.endswith(_SUFFIX):
        return None
    if "sliding_attention" in getattr(config, "layer_types", ()):
        return "the model has layers with a sliding window"
    if name not in ALL_ATTENTION_FUNCTIONS:
        return f"attention {name} takes padded rows alone"
    AttentionInterface.register(name + _SUFFIX, functools.partial(attend, plain=name))
    AttentionMaskInterface.register(name + _SUFFIX, ALL_MASK_ATTENTION_FUNCTIONS[name])
    config._attn_implementation = name + _SUFFIX
    return None


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    plain: str,
    segments: Segments | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer.

    Args:
        module: The layer's attention.
        query: `[1, H, T, Dh]` of packed rows; any batch where `segments` is None.
        key: `[1, K, T, Dh]`.
        value: `[1, K, T, Dh]`.
        attention_mask: Of padded rows.
        plain: Name of the attention that padded rows have.
        segments: Layout of the packed sequence.
        scaling: Factor of the products.
        dropout: Share of the weights left out.
        options: For the plain attention.

    Returns:
        `[1, T, H, Dh]`, and nothing.
    """
    if segments is None:
        function = ALL_ATTENTION_FUNCTIONS[plain]
        named: Any = _Named(module, plain) if "flash" in plain else module
        result: tuple[Tensor, None] = function(
            named, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options
        )
        return result
    return _packed(query, key, value, segments, scaling=scaling, dropout=dropout), None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # each layout would be compiled anew
def _packed(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, *, scaling: float | None, dropout: float
) -> Tensor:
    # Under autocast rotation leaves queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    kernel = by_varlen if varlen_runs(value.device, value.dtype, value.shape[-1], dropout) else by_segment
    return kernel(query, key, value, segments, scaling=scaling, dropout=dropout)


def by_segment(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, *, scaling: float | None, dropout: float = 0.0
) -> Tensor:
    """One call of SDPA a segment."""
    lengths = list(segments.lengths)
    queries, keys, values = (torch.split(tensor, lengths, dim=2) for tensor in (query, key, value))
    attention: Callable[..., Tensor] = functools.partial(
        scaled_dot_product_attention, scale=scaling, dropout_p=dropout, enable_gqa=query.shape[1] != key.shape[1]
    )
    mixed = []
    for number, other in enumerate(segments.continued):
        if other < 0:
            mixed.append(attention(queries[number], keys[number], values[number], is_causal=True))
            continue
        both = (torch.cat([tensors[other], tensors[number]], dim=2) for tensors in (keys, values))
        mixed.append(attention(queries[number], *both, attn_mask=segments.mask(number, query.device)))
    return torch.cat([part.transpose(1, 2) for part in mixed], dim=1)


def by_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    *,
    scaling: float | None,
    dropout: float = 0.0,  # noqa: ARG001  # `varlen_runs` is False with any
) -> Tensor:
    """One call of PyTorch's kernel for sequences of any lengths; keys that several segments see are repeated."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  # only GPUs have the kernel

    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    query_bounds, key_bounds, most_queries, most_keys, source = segments.varlen(query.device)
    if source is not None:
        key, value = gather(key, source), gather(value, source)
    mixed: Any = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        query_bounds,
        key_bounds,
        most_queries,
        most_keys,
        scale=scaling,
        window_size=(-1, 0),  # causal, aligned at the last key
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed[None]  # type: ignore[no-any-return]


@functools.cache
def varlen_runs(device: torch.device, dtype: torch.dtype, head_size: int, dropout: float) -> bool:
    """Whether the kernel for sequences of any lengths does here; logs which attention runs and why."""
    reason = _no_varlen(device, dtype, head_size, dropout)
    if reason is None:
        _log.info("packed rows: variable-length attention")
    else:
        _log.info("packed rows: attention segment by segment, as %s", reason)
    return reason is None


def _no_varlen(device: torch.device, dtype: torch.dtype, head_size: int, dropout: float) -> str | None:
    """Why PyTorch's kernel cannot run; None where it can."""
    if device.type != "cuda":
        return f"variable-length attention does not run on {device.type}"
    for reason, holds in (
        (f"variable-length attention does not run in {dtype}", dtype not in {torch.bfloat16, torch.float16}),
        ("the GPU is too old for variable-length attention", torch.cuda.get_device_capability(device) < (8, 0)),
        (f"variable-length attention takes no heads of {head_size}", head_size > _LARGEST_HEAD or head_size % 8),
        ("variable-length attention has no dropout", dropout),
    ):
        if holds:
            return reason
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  # only GPUs have the kernel

    shares = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return None if shares else "this PyTorch's variable-length attention has no shared key-value heads"


class _Named:
    """An attention module whose configuration has the attention's plain name, which flash attention looks up."""

    def __init__(self, wrapped: Any, name: str) -> None:
        self._wrapped = wrapped
        self._attn_implementation = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._wrapped, attribute)
        return _Named(value, self._attn_implementation) if attribute == "config" else value
