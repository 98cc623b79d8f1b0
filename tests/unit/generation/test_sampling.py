"""Drawing tokens against probabilities worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_vlaa.generation import RolloutKey
from lit_vlaa.generation.sampling import sample_tokens, uniforms
from lit_vlaa.types import SamplingParams

GRID = 2000
PROBABILITIES = (0.5, 0.25, 0.15, 0.1)
KEY = RolloutKey(seed=1, step=2)


def frequencies(banned: tuple[int, ...] = (), **options: float) -> list[float]:
    """Share of each of four tokens over evenly spread uniform numbers (the middles of `GRID` equal intervals)."""
    params = SamplingParams(max_new_tokens=1, **{"temperature": 1.0, **options})  # type: ignore[arg-type]
    uniform = (torch.arange(GRID) + 0.5) / GRID
    logits = torch.tensor(PROBABILITIES).log().expand(GRID, -1)
    tokens, _ = sample_tokens(logits, uniform, params, torch.tensor(banned) if banned else None)
    return [float((tokens == token).float().mean()) for token in range(len(PROBABILITIES))]


def close(*shares: float) -> object:
    # Evenly spread numbers hit an interval as often as its length says, but for one at either end.
    return pytest.approx(shares, abs=2 / GRID)


def test_shares_are_the_probabilities() -> None:
    assert frequencies() == close(*PROBABILITIES)


@pytest.mark.parametrize(
    ("temperature", "shares"),
    [
        # Squares 0.25, 0.0625, 0.0225, 0.01 over their sum 0.345.
        (0.5, (0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345)),
        # Square roots 0.70711, 0.5, 0.38730, 0.31623 over their sum 1.91064.
        (2.0, (0.70711 / 1.91064, 0.5 / 1.91064, 0.38730 / 1.91064, 0.31623 / 1.91064)),
        (0.0, (1.0, 0.0, 0.0, 0.0)),
    ],
)
def test_temperature(temperature: float, shares: tuple[float, ...]) -> None:
    assert frequencies(temperature=temperature) == close(*shares)


@pytest.mark.parametrize(
    ("top_k", "shares"),
    [(1, (1.0, 0.0, 0.0, 0.0)), (2, (2 / 3, 1 / 3, 0.0, 0.0)), (4, PROBABILITIES), (9, PROBABILITIES)],
)
def test_top_k_keeps_the_k_most_probable(top_k: int, shares: tuple[float, ...]) -> None:
    assert frequencies(top_k=top_k) == close(*shares)


@pytest.mark.parametrize(
    ("top_p", "shares"),
    [
        (0.49, (1.0, 0.0, 0.0, 0.0)),  # The first alone reaches 0.49.
        (0.7, (2 / 3, 1 / 3, 0.0, 0.0)),  # 0.5 does not reach 0.7, 0.75 does.
        (0.8, (0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0.0)),
        (0.95, PROBABILITIES),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p: float, shares: tuple[float, ...]) -> None:
    assert frequencies(top_p=top_p) == close(*shares)


def test_top_p_counts_after_top_k() -> None:
    # Top-k leaves (2/3, 1/3), and 2/3 alone reaches 0.6; over all four tokens 0.5 would not.
    assert frequencies(top_k=2, top_p=0.6) == close(1.0, 0.0, 0.0, 0.0)


def test_banned_tokens_are_never_drawn_and_the_rest_is_scaled_up() -> None:
    assert frequencies(banned=(0, 3)) == close(0.0, 0.625, 0.375, 0.0)
    assert frequencies(banned=(0,), temperature=0.0) == close(0.0, 1.0, 0.0, 0.0)
    assert frequencies(banned=(0,), top_k=1) == close(0.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24])
def test_the_ends_of_the_interval_draw_only_possible_tokens(uniform: float) -> None:
    """Zero probability stands at both ends of the vocabulary; a sum's rounding must not let it in."""
    logits = torch.full((1, 5006), -torch.inf)
    logits[:, 3:-3] = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(max_new_tokens=1, temperature=1.0)
    token, logprob = sample_tokens(logits, torch.tensor([uniform]), params, None)
    assert 3 <= int(token) < 5003
    assert logprob.isfinite().all()


def test_logprobs_count_temperature_and_bans_but_not_truncation() -> None:
    logits = torch.tensor(PROBABILITIES).log()[None]
    banned = torch.tensor([3])
    for options in ({}, {"top_k": 1}, {"top_p": 0.1}):
        params = SamplingParams(max_new_tokens=1, temperature=0.5, **options)
        token, logprob = sample_tokens(logits, torch.tensor([0.0]), params, banned)
        assert int(token) == 0
        # 0.25 / (0.25 + 0.0625 + 0.0225): squares without the banned one.
        assert logprob.exp().item() == pytest.approx(0.25 / 0.335, rel=1e-5)
    greedy = SamplingParams(max_new_tokens=1, temperature=0.0)
    _, logprob = sample_tokens(logits, torch.tensor([0.0]), greedy, banned)
    assert logprob.exp().item() == pytest.approx(0.5 / 0.9, rel=1e-5)


def test_rows_are_drawn_each_by_its_own_number() -> None:
    logits = torch.tensor(PROBABILITIES).log().expand(4, -1)
    params = SamplingParams(max_new_tokens=1, temperature=1.0)
    tokens, _ = sample_tokens(logits, torch.tensor([0.95, 0.1, 0.6, 0.8]), params, None)
    # The cumulated probabilities are 0.5, 0.75, 0.9, 1.
    assert tokens.tolist() == [3, 0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_half_precision_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.zeros(1, 50_000, dtype=dtype)
    params = SamplingParams(max_new_tokens=1, temperature=1.0)
    token, logprob = sample_tokens(logits, torch.tensor([0.5]), params, None)
    assert int(token) == pytest.approx(25_000, abs=50)
    assert logprob.dtype == torch.float32
    assert logprob.item() == pytest.approx(-10.8198, abs=1e-3)  # -ln 50000


def test_uniforms_are_repeatable_and_a_longer_run_goes_on_where_a_shorter_one_ends() -> None:
    numbers = uniforms(KEY, "row", 0, 64)
    assert uniforms(KEY, "row", 0, 64).equal(numbers)
    assert uniforms(KEY, "row", 0, 16).equal(numbers[:16])
    assert numbers.dtype == torch.float32


def test_every_part_of_the_key_changes_the_uniforms() -> None:
    others: list[Tensor] = [
        uniforms(KEY, "row", 0, 8),
        uniforms(RolloutKey(seed=2, step=2), "row", 0, 8),
        uniforms(RolloutKey(seed=1, step=3), "row", 0, 8),
        uniforms(KEY, "other", 0, 8),
        uniforms(KEY, "row", 1, 8),
        # Digits that would run together without a separator.
        uniforms(RolloutKey(seed=12, step=2), "row", 0, 8),
        uniforms(KEY, "row1", 0, 8),
        uniforms(RolloutKey(seed=1, step=22), "row", 0, 8),
    ]
    assert len({tuple(numbers.tolist()) for numbers in others}) == len(others)


def test_uniforms_are_uniform_in_the_half_open_interval() -> None:
    numbers = torch.cat([uniforms(KEY, "row", sample, 1000) for sample in range(100)])
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = torch.histc(numbers, bins=10, min=0, max=1)
    # Chi-square with 9 degrees of freedom exceeds 27.9 once in a thousand keys; the key here is fixed.
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 27.9


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
    ],
)
def test_settings_out_of_range_name_themselves(options: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=rf"--model\.sampling\.{name}"):
        SamplingParams(**{"max_new_tokens": 1, **options})  # type: ignore[arg-type]
