"""Attention over segments against one dense mask, and which kernel runs where."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen2_5_VLConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from helpers.samples import mixed_prompts, tiny_backbone
from lit_vlaa.backbone import attention
from lit_vlaa.backbone.attention import attend, by_segment, by_varlen, let_pack, varlen_runs
from lit_vlaa.segments import Segments
from lit_vlaa.sequences import assemble

SEGMENTS = Segments((5, 3, 1, 4, 6), (-1, 0, 0, -1, 3))
SCALE = 0.3
CPU = torch.device("cpu")


def states(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Queries of four heads, keys and values of two, as a layer hands them on."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(SEGMENTS.lengths)
    return [torch.randn(1, heads, tokens, 8, generator=generator).to(dtype).requires_grad_() for heads in (4, 2, 2)]


def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """By the definition: a square mask over the whole sequence."""
    owner = torch.tensor([n for n, length in enumerate(SEGMENTS.lengths) for _ in range(length)])
    continued = torch.tensor(SEGMENTS.continued)[owner]
    before = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    mask = (before & (owner[:, None] == owner)) | (continued[:, None] == owner)
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=SCALE, enable_gqa=True)
    return mixed.transpose(1, 2)


def with_gradients(function: Any, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    inputs = states(dtype)
    mixed = function(*inputs)
    weights = torch.linspace(-1, 1, mixed.numel()).view(mixed.shape)
    return [mixed, *torch.autograd.grad((mixed * weights).sum(), inputs)]


def emulated(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """`torch.nn.attention.varlen.varlen_attn` as its documentation has it, sequence by sequence."""
    assert window_size == (-1, 0)
    parts = []
    for index in range(len(query_bounds) - 1):
        own, seen = (slice(*bounds[index : index + 2].tolist()) for bounds in (query_bounds, key_bounds))
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query[own], key[seen], value[seen]))
        assert q.shape[2] <= most_queries
        assert k.shape[2] <= most_keys
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
        parts.append(mixed[0].transpose(0, 1))
    return torch.cat(parts)


def test_segment_by_segment_equals_one_dense_mask() -> None:
    ours = with_gradients(lambda q, k, v: by_segment(q, k, v, SEGMENTS, scaling=SCALE))
    for mine, expected in zip(ours, with_gradients(dense), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("segments", [SEGMENTS, Segments((9, 10), (-1, -1))])
def test_the_arguments_of_the_varlen_kernel(segments: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself runs on GPUs alone (`tests/gpu`)."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", emulated)
    ours = with_gradients(lambda q, k, v: by_varlen(q, k, v, segments, scaling=SCALE))
    theirs = with_gradients(lambda q, k, v: by_segment(q, k, v, segments, scaling=SCALE))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)


def test_keys_of_mixed_precision_are_brought_to_the_values_type() -> None:
    query, key, value = states()
    mixed, _ = attend(nn.Module(), query, key, value.bfloat16(), None, plain="sdpa", segments=SEGMENTS, scaling=SCALE)
    assert mixed.dtype == torch.bfloat16


def test_dropout_leaves_weights_out() -> None:
    torch.manual_seed(0)
    query, key, value = states()
    plain, dropped = (by_segment(query, key, value, SEGMENTS, scaling=SCALE, dropout=rate) for rate in (0.0, 0.5))
    assert not dropped.equal(plain)


@pytest.mark.parametrize(
    ("device", "dtype", "head", "dropout", "capability", "reason"),
    [
        ("cpu", torch.bfloat16, 64, 0.0, (9, 0), "run on cpu"),
        ("cuda", torch.float32, 64, 0.0, (9, 0), "run in torch.float32"),
        ("cuda", torch.bfloat16, 64, 0.0, (7, 5), "too old"),
        ("cuda", torch.bfloat16, 512, 0.0, (9, 0), "heads of 512"),
        ("cuda", torch.bfloat16, 36, 0.0, (9, 0), "heads of 36"),
        ("cuda", torch.bfloat16, 64, 0.1, (9, 0), "no dropout"),
        ("cuda", torch.float16, 128, 0.0, (8, 0), None),
    ],
)
def test_which_kernel_runs_and_why_is_logged(
    device: str,
    dtype: torch.dtype,
    head: int,
    dropout: float,
    capability: tuple[int, int],
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    attention.varlen_runs.cache_clear()
    with caplog.at_level(logging.INFO):
        assert varlen_runs(torch.device(device), dtype, head, dropout) == (reason is None)
    assert (reason or "variable-length attention") in caplog.text
    attention.varlen_runs.cache_clear()


def test_a_pytorch_without_shared_heads_goes_segment_by_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda query: query)
    attention.varlen_runs.cache_clear()
    assert not varlen_runs(torch.device("cuda"), torch.bfloat16, 64, 0.0)
    attention.varlen_runs.cache_clear()


def test_padded_rows_have_the_attention_that_they_had() -> None:
    backbone = tiny_backbone().eval()
    inputs = assemble([(prompt, torch.tensor([11, 12])) for prompt in mixed_prompts(backbone)], pad_token_id=0)
    with torch.no_grad():
        ours = backbone(inputs).logprobs
        backbone.language_model.config._attn_implementation = "sdpa"  # type: ignore[union-attr]
        assert backbone(inputs).logprobs.equal(ours)


def test_the_vision_tower_keeps_its_own() -> None:
    model: Any = tiny_backbone().model
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert model.config.text_config._attn_implementation == "sdpa+segments"
    assert ALL_MASK_ATTENTION_FUNCTIONS["sdpa+segments"] is ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]


def test_flash_attention_is_called_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers looks the library up by the name that the configuration has."""
    seen: list[Any] = []

    def flash(module: Any, *tensors: Any, **options: Any) -> tuple[Tensor, None]:
        seen.extend((module.config._attn_implementation, module.config.hidden_size, module.layer_idx, options))
        return tensors[0], None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", flash)
    backbone = tiny_backbone()
    config = backbone.language_model.config
    config._attn_implementation = "flash_attention_2"  # type: ignore[union-attr]
    assert let_pack(config) is None  # type: ignore[arg-type]
    layer: Any = backbone.language_model.layers[1].self_attn  # type: ignore[index, union-attr]
    query, key, value = states()
    attend(layer, query, key, value, None, plain="flash_attention_2", scaling=SCALE, softcap=None)
    assert seen == ["flash_attention_2", 128, 1, {"scaling": SCALE, "dropout": 0.0, "softcap": None}]


def test_what_cannot_pack_says_why() -> None:
    assert tiny_backbone().not_packed is None
    assert "eager" in (tiny_backbone(attention="eager").not_packed or "")
    config = Qwen2_5_VLConfig(text_config={"use_sliding_window": True, "max_window_layers": 1, "num_hidden_layers": 2})
    config._attn_implementation = "sdpa"
    assert "sliding window" in (let_pack(config.get_text_config()) or "")
