"""Token scores against plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from lit_vlaa.scores import gather, scale_logits, token_scores


@pytest.mark.parametrize("chunk_size", [3, 100])
@pytest.mark.parametrize("numbers", [1, 60, 2**17])
def test_token_scores_equal_plain_log_softmax(chunk_size: int, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_vlaa.scores._CACHED_NUMBERS", numbers)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(10, 8, generator=generator, requires_grad=True)
    weight = torch.randn(20, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, 18, (10,), generator=generator)
    banned = torch.tensor([18, 19])
    scores = token_scores(
        hidden, targets, lambda h: h @ weight.T, temperature=0.8, banned=banned, chunk_size=chunk_size
    )
    shares = torch.linspace(-1, 2, 10)
    grads = torch.autograd.grad((scores.logprobs * shares).sum(), (hidden, weight))

    logits = (hidden @ weight.T / 0.8).index_fill(1, banned, -torch.inf)
    expected = torch.distributions.Categorical(logits=logits[:, :18])
    reference = expected.log_prob(targets)
    reference_grads = torch.autograd.grad((reference * shares).sum(), (hidden, weight))
    torch.testing.assert_close(scores.logprobs, reference)
    torch.testing.assert_close(scores.entropy, expected.entropy())
    assert scores.correct.equal(logits.argmax(1) == targets)
    for grad, reference_grad in zip(grads, reference_grads, strict=True):
        torch.testing.assert_close(grad, reference_grad)


def test_banned_tokens_get_no_probability() -> None:
    scaled = scale_logits(torch.tensor([[0.0, 100.0]]), temperature=1.0, banned=torch.tensor([1]))
    assert torch.softmax(scaled, -1).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("banned", [None, torch.tensor([2])])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logits_stay_as_they_came(temperature: float, banned: torch.Tensor | None) -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    targets = torch.tensor([0, 1, 3, 4, 0, 1])
    scores = token_scores(
        torch.zeros(6, 1, requires_grad=True),
        targets,
        lambda h: logits + 0 * h,
        temperature=temperature,
        banned=banned,
    )
    scores.logprobs.sum().backward()
    scale_logits(logits, temperature=temperature, banned=banned)
    assert logits.equal(before)


def test_half_precision_logits_are_scored_in_float32() -> None:
    """Of a token that is nearly certain the gradient is one less its probability, which bfloat16 rounds to nothing."""
    logits = torch.tensor([[8.0, 0.0, 0.0]]).bfloat16()
    shift = torch.zeros(1, 3, dtype=torch.bfloat16, requires_grad=True)
    scores = token_scores(shift, torch.tensor([0]), lambda h: logits + h)
    scores.logprobs.sum().backward()
    rest = 2 / (torch.tensor(8.0).exp() + 2)
    assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32
    torch.testing.assert_close(scores.logprobs, torch.log1p(-rest)[None])
    assert shift.grad is not None
    torch.testing.assert_close(shift.grad[0, 0].float(), rest, rtol=0.005, atol=0)


def test_no_target_gives_no_score() -> None:
    hidden = torch.zeros(0, 4, requires_grad=True)
    scores = token_scores(hidden, torch.zeros(0, dtype=torch.long), lambda h: h @ torch.zeros(4, 7))
    scores.logprobs.sum().backward()
    assert scores.logprobs.shape == scores.entropy.shape == scores.correct.shape == (0,)


def test_gathered_gradients_add_up_in_float32() -> None:
    values = torch.zeros(3, 2, dtype=torch.bfloat16, requires_grad=True)
    # In bfloat16 256 + 1 is 256 however often 1 is added.
    shares = torch.tensor([256.0, *[1.0] * 32]).bfloat16()[:, None]
    (gather(values, torch.tensor([1] * 33)) * shares).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0, 0], [288, 288], [0, 0]]
