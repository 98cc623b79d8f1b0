"""From completions to rewards and advantages, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from helpers.samples import mixed_prompts, tiny_backbone
from lit_vlaa.algorithm import AdvantageConfig
from lit_vlaa.rollout import Rollout, flatten, judge, request_for, with_advantages
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

    sampled = flatten(prompts, groups, lambda ids: " ".join(map(str, ids.tolist())))
    results = judge(sampled, reward)
    return with_advantages(sampled, results, config, limit=4, divergence=None, sum_over_ranks=lambda total: total)


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
    assert rollout.length(6) == prompts[1].input_ids.numel() + 3


def test_groups_for_readers(prompts: list[Prompt]) -> None:
    groups = make(prompts).groups()
    assert [group.record.id for group in groups] == ["one", "two", "none", "large"]
    assert groups[0].texts == ("0", "0 1", "0 1 2", "0 1 2 3")
    assert groups[0].lengths == (1, 2, 3, 4)
    assert [result.value for result in groups[0].results] == [1.0, 0.0, 0.5, 0.0]
    assert groups[0].advantages == pytest.approx((0.5 / 0.5001, -0.5 / 0.5001, 0.0, 0.0))
    assert [result.status for result in groups[2].results] == ["timeout", "verifier_error", "ok", "unparsable_gt"]
