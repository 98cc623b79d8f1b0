"""From completions to rewards and advantages, prompt by prompt."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from helpers.samples import mixed_prompts, tiny_backbone
from lit_vlaa.algorithm import AdvantageConfig
from lit_vlaa.kl import k1, k3
from lit_vlaa.resampling import replace_groups
from lit_vlaa.rollout import (
    Judged,
    Rollout,
    divergence,
    flatten,
    judge,
    request_for,
    table,
    with_advantages,
)
from lit_vlaa.types import Completion, Prompt, RewardRequest, RewardResult

VERDICTS = (
    # Prompt 0: rewards 1, 0, 0.5 and one without a verdict.
    ((1.0, "ok"), (0.0, "no_answer"), (0.5, "ok"), (0.0, "timeout")),
    # Prompt 1: all alike.
    ((1.0, "ok"), (1.0, "ok"), (1.0, "ok"), (1.0, "ok")),
    # Prompt 2: only one verdict.
    ((0.0, "timeout"), (0.0, "verifier_error"), (1.0, "ok"), (0.0, "unparsable_gt")),
    # Prompt 3: no verdict at all.
    ((0.0, "timeout"), (0.0, "timeout"), (0.0, "timeout"), (0.0, "timeout")),
)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return mixed_prompts(tiny_backbone())


def completion(*tokens: int) -> Completion:
    return Completion(torch.tensor(tokens), torch.zeros(len(tokens)), "stop")


def make(
    prompts: list[Prompt], asked: list[RewardRequest] | None = None, config: AdvantageConfig = AdvantageConfig()
) -> Rollout:
    groups = [[completion(*range(10 * p, 10 * p + g + 1)) for g in range(4)] for p in range(4)]

    def reward(requests: Sequence[RewardRequest]) -> list[RewardResult]:
        if asked is not None:
            asked.extend(requests)
        flat: list[Any] = [verdict for group in VERDICTS for verdict in group]
        return [RewardResult(v, r.kind, None, status) for r, (v, status) in zip(requests, flat, strict=True)]

    judged = judge(flatten(prompts, groups), lambda ids: " ".join(map(str, ids.tolist())), reward)
    return with_advantages(judged, config, limit=4, divergence=None, sum_over_ranks=lambda total: total)


def test_rewards_and_advantages_by_hand(prompts: list[Prompt]) -> None:
    rollout = make(prompts)
    assert rollout.group_size == 4
    assert rollout.rewards.tolist() == [[1.0, 0.0, 0.5, 0.0], [1.0] * 4, [0.0, 0.0, 1.0, 0.0], [0.0] * 4]
    assert rollout.valid.tolist() == [[True, True, True, False], [True] * 4, [False, False, True, False], [False] * 4]
    # Prompt 0: mean 0.5, deviation 0.5 over n - 1 = 2; the failed one takes no part.
    expected = torch.zeros(4, 4)
    expected[0, 0], expected[0, 1] = 0.5 / 0.5001, -0.5 / 0.5001
    torch.testing.assert_close(rollout.advantages, expected)
    assert rollout.flat_groups().tolist() == [False, True, True, True]


def test_every_response_is_judged_against_its_own_prompt(prompts: list[Prompt]) -> None:
    asked: list[RewardRequest] = []
    rollout = make(prompts, asked)
    assert [request.response for request in asked[:5]] == ["0", "0 1", "0 1 2", "0 1 2 3", "10"]
    for index, request in enumerate(asked):
        prompt = prompts[index // 4]
        assert (request.truth, request.question) == (prompt.record.truth, prompt.record.question)
        assert (request.kind, request.source, request.box_space) == ("digit", "clevr_math", "normalized")
        assert request.image_size == (prompt.image_sizes[0] if prompt.image_sizes else None)
    assert request_for(prompts[2], "x").image_size is None
    assert rollout.texts[4] == "10"


def test_rows_follow_the_prompts(prompts: list[Prompt]) -> None:
    rollout = make(prompts)
    prompt, tokens = rollout.row(6)
    assert prompt is prompts[1]
    assert tokens.tolist() == [10, 11, 12]
    assert rollout.size(6) == (prompts[1].input_ids.numel(), 3, 1)


def test_groups_for_readers(prompts: list[Prompt]) -> None:
    groups = make(prompts).groups()
    assert [group.record.id for group in groups] == ["one", "two", "none", "large"]
    assert groups[0].texts == ("0", "0 1", "0 1 2", "0 1 2 3")
    assert groups[0].lengths == (1, 2, 3, 4)
    assert [result.value for result in groups[0].results] == [1.0, 0.0, 0.5, 0.0]
    assert groups[0].advantages == pytest.approx((0.5 / 0.5001, -0.5 / 0.5001, 0.0, 0.0))
    assert [result.status for result in groups[2].results] == ["timeout", "verifier_error", "ok", "unparsable_gt"]


@cache
def text_prompt() -> Prompt:
    return mixed_prompts(tiny_backbone())[2]


def pairs(*rewards: float, lengths: Sequence[int] = (), failed: Sequence[int] = ()) -> Judged:
    """Groups of two: completions of some lengths, and verdicts with these rewards."""
    row = text_prompt()
    sizes = lengths or [1] * len(rewards)
    groups = [[completion(*range(sizes[i + part])) for part in range(2)] for i in range(0, len(rewards), 2)]
    results = tuple(
        RewardResult(0.0 if i in failed else value, "digit", None, "timeout" if i in failed else "ok")
        for i, value in enumerate(rewards)
    )
    sampled = flatten([row] * len(groups), groups)
    texts = tuple(str(completion.token_ids.tolist()) for completion in sampled.completions)
    return Judged(sampled.prompts, sampled.completions, texts, results)


def advantages(judged: Judged, config: AdvantageConfig, **options: Any) -> torch.Tensor:
    options = {"limit": 10, "divergence": None, "sum_over_ranks": lambda total: total, **options}
    return with_advantages(judged, config, **options).advantages


def test_weights_multiply_advantages_by_kind_and_source() -> None:
    judged = pairs(1, 0, 1, 0, 1, 0)
    names = (("math", "synthesis"), ("digit", "clevr_math"), ("math", "docvqa"))
    prompts = tuple(
        dataclasses.replace(prompt, record=dataclasses.replace(prompt.record, kind=kind, source=source))
        for prompt, (kind, source) in zip(judged.prompts, names, strict=True)
    )
    config = AdvantageConfig(scale="none", weights={"math": 3.0, "docvqa": 0.5, "clevr_math": 0.0})
    found = advantages(dataclasses.replace(judged, prompts=prompts), config)
    # Half a point up and down, by 3, by 0, and by 3 * 0.5.
    assert found.tolist() == [[1.5, -1.5], [0.0, 0.0], [0.75, -0.75]]


def test_the_length_penalty_shapes_advantages_but_not_the_logged_rewards() -> None:
    judged = pairs(1, 1, lengths=(4, 8))
    config = AdvantageConfig(scale="none", length_penalty=0.6, length_buffer=5)
    # Eight tokens are three of five into the buffer before ten: 0.36 off. Means 0.82; a distance of 0.18.
    torch.testing.assert_close(advantages(judged, config), torch.tensor([[0.18, -0.18]]))
    assert not advantages(judged, AdvantageConfig()).any()
    rollout = with_advantages(judged, config, limit=10, divergence=None, sum_over_ranks=lambda total: total)
    assert rollout.rewards.tolist() == [[1.0, 1.0]]
    assert rollout.flat_groups().tolist() == [True]


def test_a_divergence_is_taken_from_the_rewards_of_its_own_completion() -> None:
    judged = pairs(1, 0, 0.5, 0.5)
    found = advantages(judged, AdvantageConfig(scale="none"), divergence=torch.tensor([0.5, 0.1, 0.0, 0.4]))
    # 0.5 and -0.1 about 0.2; 0.5 and 0.1 about 0.3.
    torch.testing.assert_close(found, torch.tensor([[0.3, -0.3], [0.2, -0.2]]))


def test_divergence_sums_over_tokens_of_the_old_policy_or_of_the_sampler() -> None:
    judged = pairs(1, 0, lengths=(2, 1))
    reference = [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0])]
    # The sampler's log-probabilities are all 0.
    assert divergence(judged, None, reference, k1).tolist() == [3.0, 3.0]
    old = [torch.tensor([-0.5, -1.5]), torch.tensor([-3.0 + math.log(2)])]
    assert divergence(judged, old, reference, k1).tolist() == pytest.approx([1.0, math.log(2)])
    # k3 of e^-0.5 twice: e^-0.5 - 1 + 0.5; of one half: 0.5 - 1 + ln 2.
    assert divergence(judged, old, reference, k3).tolist() == pytest.approx(
        [2 * (math.exp(-0.5) - 0.5), math.log(2) - 0.5]
    )


def test_the_scale_of_the_batch_is_that_of_all_ranks_and_of_shaped_rewards() -> None:
    judged = pairs(1, 0, 0.25, 0.75, failed=[1])
    other = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)  # 0 and 1 on another rank: count, sum, squares
    found = advantages(judged, AdvantageConfig(scale="batch"), sum_over_ranks=lambda total: total + other)
    # 1, 0.25, 0.75, 0, 1: mean 0.6, squares 0.16 + 0.1225 + 0.0225 + 0.36 + 0.16 = 0.825, over 4.
    scale = math.sqrt(0.825 / 4) + 1e-4
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [-0.25, 0.25]]) / scale)


def test_groups_drawn_again_replace_flat_ones_where_they_now_differ() -> None:
    judged = pairs(1, 1, 1, 0, 0, 0, lengths=(1, 2, 3, 4, 5, 6))
    fresh = pairs(0, 0, 0, 1, lengths=(7, 8, 9, 10))
    merged = replace_groups(judged, [0, 2], fresh)
    # The first is flat again and stays as it was; the last differs now.
    assert [c.token_ids.numel() for c in merged.completions] == [1, 2, 3, 4, 9, 10]
    assert [result.value for result in merged.results] == [1, 1, 1, 0, 0, 1]
    assert merged.texts[4] == str(list(range(9)))
    assert merged.prompts == judged.prompts


def test_a_rank_without_flat_groups_replaces_nothing() -> None:
    judged = pairs(1, 0)
    merged = replace_groups(judged, [], Judged((), (), (), ()))
    assert (merged.texts, merged.results) == (judged.texts, judged.results)


def test_a_group_with_one_verdict_left_counts_as_flat_and_is_replaced() -> None:
    judged = pairs(1, 0, failed=[1])
    rewards, valid = table(judged.results, 2)
    assert (rewards.tolist(), valid.tolist()) == ([[1.0, 0.0]], [[True, False]])
    fresh = pairs(0, 1, lengths=(3, 3))
    assert replace_groups(judged, [0], fresh).results == fresh.results
    fresh = pairs(0, 1, lengths=(3, 3), failed=[0])
    assert replace_groups(judged, [0], fresh).results == judged.results
