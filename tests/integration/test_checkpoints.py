"""Directories in the layouts that exist: Qwen's own repositories, and the older model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.checkpoints import as_released, tiny_qwen2_vl
from helpers.samples import mixed_prompts, mixed_samples, tiny_backbone
from lit_vlaa.backbone import Backbone, BackboneConfig, build_backbone, load_processor
from lit_vlaa.generation import CachedGenerator, RolloutKey, TransformersGenerator
from lit_vlaa.sequences import assemble
from lit_vlaa.types import Prompt, SamplingParams


@pytest.fixture
def released(tmp_path: Path) -> Path:
    tiny_backbone().save_pretrained(tmp_path)
    as_released(tmp_path)
    return tmp_path


def responses(backbone: Backbone) -> list[torch.Tensor]:
    return [backbone.processor.encode_response(item.record.response or "") for item in mixed_samples()]


def scores(backbone: Backbone) -> torch.Tensor:
    rows = list(zip(mixed_prompts(backbone), responses(backbone), strict=True))
    with torch.no_grad():
        values: torch.Tensor = backbone.eval()(assemble(rows, pad_token_id=backbone.processor.pad_token_id)).logprobs
    return values


def test_the_layout_of_the_released_models_loads(released: Path) -> None:
    loaded = build_backbone(BackboneConfig(path=str(released), max_pixels=84 * 84))
    saved = tiny_backbone()
    for ours, theirs in zip(mixed_prompts(loaded), mixed_prompts(saved), strict=True):
        assert ours.input_ids.equal(theirs.input_ids)
        assert ours.image_sizes == theirs.image_sizes
    assert scores(loaded).equal(scores(saved))


@pytest.mark.parametrize(("limits", "fed"), [((3136, 7056), (84, 56)), ((200704, 802816), (560, 392))])
def test_pixel_limits_of_the_run_win_over_the_checkpoints(
    released: Path, limits: tuple[int, int], fed: tuple[int, int]
) -> None:
    """A picture of 300 x 200 is between the checkpoint's own limits, below or above those of the run."""
    processor = load_processor(BackboneConfig(path=str(released), min_pixels=limits[0], max_pixels=limits[1]))
    assert processor.encode(mixed_samples()[3]).image_sizes == (fed,)


@pytest.mark.parametrize("content", [None, "{}", "[]", "{"])
def test_a_missing_or_broken_template_is_named(released: Path, content: str | None) -> None:
    (released / "chat_template.json").unlink()
    if content is not None:
        (released / "chat_template.json").write_text(content)
    with pytest.raises(ValueError, match=r"--model\.backbone\.path .*chat_template"):
        load_processor(BackboneConfig(path=str(released)))


def test_a_tokenizer_of_another_family_is_named(released: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (released / name).read_text().replace("<|video_pad|>", "<|other|>")
        (released / name).write_text(text)
    with pytest.raises(ValueError, match=r"--model\.backbone\.path .*lacks <\|video_pad\|>"):
        load_processor(BackboneConfig(path=str(released)))


def test_dtype_auto_takes_the_checkpoints(released: Path) -> None:
    config: dict[str, Any] = json.loads((released / "config.json").read_text())
    (released / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    for dtype, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
        loaded = build_backbone(BackboneConfig(path=str(released), dtype=dtype))  # type: ignore[arg-type]
        assert {p.dtype for p in loaded.parameters()} == {expected}


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("qwen2_vl")
    processor = load_processor(BackboneConfig(max_pixels=84 * 84))
    tiny_qwen2_vl(processor).save_pretrained(folder)
    processor.save(folder)
    return build_backbone(BackboneConfig(path=str(folder), max_pixels=84 * 84)).eval()


def plain_logprobs(backbone: Backbone, prompt: Prompt, response: torch.Tensor) -> torch.Tensor:
    """`[C]` by transformers' own forward pass over one row."""
    ids = torch.cat([prompt.input_ids, response])[None]
    images = {}
    if prompt.pixel_values is not None:
        images = {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
    kinds = (ids == backbone.processor.image_token_id).int()
    with torch.no_grad():
        logits = backbone.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **images
        ).logits
    logprobs: torch.Tensor = logits[0, -len(response) - 1 : -1].log_softmax(-1)
    return logprobs.gather(-1, response[:, None]).squeeze(-1)


def test_qwen2_vl_scores_equal_transformers(older: Backbone) -> None:
    assert older.model.config.model_type == "qwen2_vl"
    rows = zip(mixed_prompts(older), responses(older), strict=True)
    expected = torch.cat([plain_logprobs(older, prompt, response) for prompt, response in rows])
    # fp32 rounding of batched rows with padding against one row at a time, at log-probabilities near -20.
    torch.testing.assert_close(scores(older), expected, atol=1e-4, rtol=0)


def test_qwen2_vl_trains(older: Backbone) -> None:
    row = (mixed_prompts(older)[1], responses(older)[1])
    older.zero_grad()
    older(assemble([row], pad_token_id=0)).logprobs.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in older.parameters())
    text_only = (mixed_prompts(older)[2], responses(older)[2])
    older.zero_grad()
    older(assemble([text_only], pad_token_id=0)).logprobs.sum().backward()
    assert not any(p.grad.any() for p in older.visual.parameters() if p.grad is not None)


def test_qwen2_vl_completions_equal_transformers_generate(older: Backbone) -> None:
    prompts = mixed_prompts(older)
    key = RolloutKey(seed=1, step=0)
    for params in (
        SamplingParams(max_new_tokens=24, temperature=0),
        SamplingParams(max_new_tokens=24, temperature=1.0),
    ):
        ours, theirs = (
            engine.generate(older, prompts, group_size=2, params=params, key=key)
            for engine in (CachedGenerator(), TransformersGenerator())
        )
        for our_group, their_group in zip(ours, theirs, strict=True):
            for mine, other in zip(our_group, their_group, strict=True):
                assert mine.token_ids.tolist() == other.token_ids.tolist()
                torch.testing.assert_close(mine.logprobs, other.logprobs, atol=1e-3, rtol=0)
