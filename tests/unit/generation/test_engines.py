"""Our engine against transformers' `generate` and against a teacher-forced forward pass."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from helpers.samples import mixed_prompts, tiny_backbone
from lit_vlaa.backbone import Backbone
from lit_vlaa.generation import CachedGenerator, RolloutKey, TransformersGenerator
from lit_vlaa.sequences import assemble
from lit_vlaa.types import Completion, SamplingParams

KEY = RolloutKey(seed=7, step=3)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    # Sharper head than at initialisation, so that greedy choices are clear of rounding, and sampled completions end
    # at different lengths (the end token gets a bonus through its embedding's norm).
    torch.manual_seed(0)
    model = tiny_backbone()
    with torch.no_grad():
        next(model.lm_head.parameters()).mul_(4.0)
    return model.eval()


def token_lists(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.token_ids.tolist() for completion in group] for group in groups]


def test_greedy_tokens_equal_transformers_generate(backbone: Backbone) -> None:
    prompts = mixed_prompts(backbone)
    params = SamplingParams(max_new_tokens=24, temperature=0)
    ours = CachedGenerator().generate(backbone, prompts, group_size=1, params=params, key=KEY)
    theirs = TransformersGenerator().generate(backbone, prompts, group_size=1, params=params, key=KEY)
    assert token_lists(ours) == token_lists(theirs)


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.9, 0), (1.0, 20)])
def test_sampled_completions_equal_transformers_generate(backbone: Backbone, top_p: float, top_k: int) -> None:
    prompts = mixed_prompts(backbone)
    params = SamplingParams(max_new_tokens=24, temperature=0.8, top_p=top_p, top_k=top_k)
    ours = CachedGenerator().generate(backbone, prompts, group_size=3, params=params, key=KEY)
    theirs = TransformersGenerator().generate(backbone, prompts, group_size=3, params=params, key=KEY)
    assert token_lists(ours) == token_lists(theirs)
    assert len({tuple(tokens) for tokens in token_lists(ours)[0]}) == 3, "samples of a group must differ"


def test_logprobs_equal_a_teacher_forced_forward_pass(backbone: Backbone) -> None:
    prompts = mixed_prompts(backbone)
    params = SamplingParams(max_new_tokens=24, temperature=0.8)
    groups = CachedGenerator().generate(backbone, prompts, group_size=3, params=params, key=KEY)
    for prompt, group in zip(prompts, groups, strict=True):
        rows = [(prompt, completion.token_ids) for completion in group]
        inputs = assemble(rows, pad_token_id=backbone.processor.pad_token_id)
        with torch.no_grad():
            scores = backbone(inputs, temperature=0.8, ban=True)
        sampled = torch.cat([completion.logprobs for completion in group])
        # fp32 rounding of two different summation orders.
        torch.testing.assert_close(sampled, scores.logprobs, atol=1e-4, rtol=0)


def test_completions_do_not_depend_on_company_order_or_budget(backbone: Backbone) -> None:
    prompts = mixed_prompts(backbone)
    params = SamplingParams(max_new_tokens=16, temperature=0.8)
    together = CachedGenerator().generate(backbone, prompts, group_size=4, params=params, key=KEY)
    reversed_order = CachedGenerator().generate(backbone, prompts[::-1], group_size=4, params=params, key=KEY)[::-1]
    one_by_one = CachedGenerator(max_rows=4).generate(backbone, prompts, group_size=4, params=params, key=KEY)
    assert token_lists(together) == token_lists(reversed_order) == token_lists(one_by_one)


def test_key_and_prompt_id_decide_the_draws(backbone: Backbone) -> None:
    prompt = mixed_prompts(backbone)[0]
    params = SamplingParams(max_new_tokens=16, temperature=1.0)

    def run(key: RolloutKey, name: str) -> list[list[list[int]]]:
        renamed = dataclasses.replace(prompt, record=dataclasses.replace(prompt.record, id=name))
        return token_lists(CachedGenerator().generate(backbone, [renamed], group_size=2, params=params, key=key))

    first = run(KEY, "a")
    assert run(KEY, "a") == first
    assert run(RolloutKey(seed=8, step=3), "a") != first
    assert run(RolloutKey(seed=7, step=4), "a") != first
    assert run(KEY, "b") != first


def test_vision_tokens_are_never_drawn_and_rows_end_at_the_end_token(backbone: Backbone) -> None:
    prompts = mixed_prompts(backbone)
    params = SamplingParams(max_new_tokens=64, temperature=2.0)
    groups = CachedGenerator().generate(backbone, prompts, group_size=16, params=params, key=KEY)
    stops = set(backbone.processor.stop_token_ids)
    finishes = set()
    for completion in (completion for group in groups for completion in group):
        tokens = completion.token_ids.tolist()
        assert not set(tokens) & set(backbone.processor.banned_token_ids)
        assert not set(tokens[:-1]) & stops
        assert (tokens[-1] in stops) == (completion.finish == "stop")
        assert completion.logprobs.shape == completion.token_ids.shape
        finishes.add(completion.finish)
    assert finishes == {"stop", "length"}


def test_the_reference_engine_announces_every_group(backbone: Backbone) -> None:
    heard: list[tuple[int, list[Completion]]] = []
    groups = TransformersGenerator().generate(
        backbone,
        mixed_prompts(backbone),
        group_size=2,
        params=SamplingParams(max_new_tokens=4),
        key=KEY,
        on_group=lambda index, group: heard.append((index, group)),
    )
    assert heard == list(enumerate(groups))
