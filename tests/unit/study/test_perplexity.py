"""Likelihood of responses: against transformers' own loss, whatever shares a batch, whole and by part."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from helpers.samples import mixed_samples, tiny_backbone
from lit_vlaa.backbone import Backbone
from lit_vlaa.perplexity import Likelihood, TextRow, likelihoods

TEXTS = (
    "<think>\nWait, there are 2 </think>\n<answer>2</answer>",
    "<think>Let me check: caf\u00e9 \u7b54\u6848 \U0001f600.</think><answer>the first</answer>",
    "<answer>2</answer>",
    "<think>one <|im_end|> two",
)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def rows(backbone: Backbone) -> list[TextRow]:
    prompts = [backbone.processor.encode(item) for item in mixed_samples()]
    return [TextRow(prompt, text, ended=not text.endswith("two")) for prompt, text in zip(prompts, TEXTS, strict=True)]


def reference(backbone: Backbone, row: TextRow) -> tuple[float, int]:
    """transformers' own loss over the response's tokens, times their number."""
    response = backbone.processor.encode_response(row.text)
    response = response if row.ended else response[:-1]
    ids = torch.cat([row.prompt.input_ids, response])[None]
    labels = ids.clone()
    labels[:, : row.prompt.input_ids.numel()] = -100
    images: dict[str, Any] = {}
    if row.prompt.pixel_values is not None:
        images = {"pixel_values": row.prompt.pixel_values, "image_grid_thw": row.prompt.image_grid_thw}
    with torch.no_grad():
        loss = backbone.model.eval()(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == backbone.processor.image_token_id).int(),
            labels=labels,
            **images,
        ).loss
    return float(loss) * len(response), len(response)


@pytest.mark.parametrize("batching", ["packed", "padded", "shared"])
@pytest.mark.parametrize("max_tokens", [8192, 60, 1])
def test_equals_transformers_loss_in_any_company(
    batching: Any, max_tokens: int, backbone: Backbone, rows: list[TextRow]
) -> None:
    found = likelihoods(backbone, rows, max_tokens=max_tokens, batching=batching)
    for row, one in zip(rows, found, strict=True):
        total, tokens = reference(backbone, row)
        assert one.tokens == tokens
        assert one.nll / tokens == pytest.approx(total / tokens, abs=1e-5)
    turned = likelihoods(backbone, rows[::-1], max_tokens=max_tokens, batching=batching)[::-1]
    assert [one.nll for one in turned] == pytest.approx([one.nll for one in found], rel=1e-6)
    assert [one.tokens for one in turned] == [one.tokens for one in found]


def test_max_tokens_bounds_a_pass(backbone: Backbone, rows: list[TextRow], monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    original = backbone.forward

    def noting(inputs: Any, **options: Any) -> Any:
        passes.append(inputs.input_ids.numel())
        return original(inputs, **options)

    monkeypatch.setattr(backbone, "forward", noting)
    likelihoods(backbone, rows)
    assert len(passes) == 1
    likelihoods(backbone, rows, max_tokens=1)
    assert len(passes) == 1 + len(rows)
    longest = max(passes[1:])
    passes.clear()
    likelihoods(backbone, rows, max_tokens=longest, batching="padded")
    assert max(passes) <= longest


def test_thinking_alone_is_a_part_of_the_whole(backbone: Backbone, rows: list[TextRow]) -> None:
    """Which tokens count is told by the text that they spell, their sum by the same text cut off after them."""
    whole, thinking = (likelihoods(backbone, rows, part=part) for part in ("response", "thinking"))
    ids, places, text = backbone.processor.encode_places(rows[0].text)
    inside = [at for at, place in enumerate(places) if text.index("\nWait") <= place < text.index("</think>")]
    assert thinking[0].tokens == len(inside)
    # The blank before the closing tag and the tag's first two characters are one token, which begins in the thinking.
    assert backbone.processor.decode(ids[inside]) == "\nWait, there are 2 </"
    cut = [TextRow(rows[0].prompt, text, ended=False) for text in ("<think>", "<think>so 2", "<think>so 2</think>4")]
    opening, upto, _ = likelihoods(backbone, cut)
    (part,) = likelihoods(backbone, cut[2:], part="thinking")
    assert part.tokens == upto.tokens - opening.tokens
    assert part.nll == pytest.approx(upto.nll - opening.nll, rel=1e-5)
    assert all(own.nll < one.nll and own.tokens < one.tokens for own, one in zip(thinking, whole, strict=True))
    assert thinking[2] == Likelihood(0.0, 0)


def test_end_of_turn_counts_where_it_was_written(backbone: Backbone, rows: list[TextRow]) -> None:
    open_end, closed = likelihoods(backbone, [TextRow(rows[2].prompt, "two", ended) for ended in (False, True)])
    assert closed.tokens == open_end.tokens + 1
    assert closed.nll > open_end.nll
    assert likelihoods(backbone, [TextRow(rows[2].prompt, "", ended=False)]) == [Likelihood(0.0, 0)]


def test_places_of_tokens(backbone: Backbone) -> None:
    for text in TEXTS:
        ids, places, read = backbone.processor.encode_places(text)
        assert torch.equal(ids, backbone.processor.encode_response(text)[:-1])
        assert len(places) == len(ids)
        assert places == sorted(places)
        assert read.replace("< |", "<|") == text


def test_perplexity() -> None:
    assert Likelihood(6.0, 3).perplexity == pytest.approx(math.exp(2))
    assert math.isnan(Likelihood(0.0, 0).perplexity)
    assert Likelihood(1e6, 1).perplexity == math.inf


def test_leaves_the_model_as_it_was(backbone: Backbone, rows: list[TextRow]) -> None:
    backbone.train()
    likelihoods(backbone, rows[:1])
    assert backbone.training
    assert torch.is_grad_enabled()
    assert likelihoods(backbone, []) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"part": "answer"}, "part must be response or thinking"), ({"max_tokens": 0}, "max_tokens must be at least 1")],
)
def test_settings_that_cannot_work(options: Any, message: str, backbone: Backbone, rows: list[TextRow]) -> None:
    with pytest.raises(ValueError, match=message):
        likelihoods(backbone, rows, **options)
