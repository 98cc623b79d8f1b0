"""Completions end at their planned lengths, in our engine and in transformers'."""

from __future__ import annotations

import torch

from benchmarks.eos import PlannedEnds, planned, planned_generate, planned_uniforms
from benchmarks.models import Setup
from benchmarks.workload import samples
from lit_vlaa.generation import CachedGenerator, RolloutKey, TransformersGenerator
from lit_vlaa.generation.sampling import uniforms
from lit_vlaa.types import Completion, SamplingParams

KEY = RolloutKey(seed=0, step=0)
PARAMS = SamplingParams(max_new_tokens=24, temperature=0.8)
PLAN = {("0", 0): 24, ("0", 1): 2, ("0", 2): 9, ("1", 0): 17, ("1", 1): 24, ("1", 2): 5}


def completions(engine: CachedGenerator | TransformersGenerator) -> list[Completion]:
    setup = Setup()
    backbone = setup.backbone().eval()
    prompts = [backbone.processor.encode(row) for row in samples(2, setup.scale)]
    with planned_uniforms(PLAN):
        groups = engine.generate(backbone, prompts, group_size=3, params=PARAMS, key=KEY)
    return [completion for group in groups for completion in group]


def test_our_engine_writes_the_planned_lengths() -> None:
    written = completions(CachedGenerator())

    assert [len(completion.token_ids) for completion in written] == list(PLAN.values())
    assert all(completion.finish == "stop" for completion in written)


def test_reference_engine_writes_the_same_tokens() -> None:
    mine, other = completions(CachedGenerator()), completions(TransformersGenerator())

    assert [c.token_ids.tolist() for c in mine] == [c.token_ids.tolist() for c in other]


def test_sampling_is_as_before_afterwards() -> None:
    completions(CachedGenerator())

    assert torch.equal(uniforms(KEY, "0", 1, 24), uniforms(KEY, "0", 1, 24))
    assert uniforms(KEY, "0", 1, 24)[1] != 0


def test_only_the_last_number_ends_a_completion() -> None:
    numbers = planned(lambda *_: torch.tensor([0.0, 0.5, 0.999, 0.0]), {("a", 0): 4})(KEY, "a", 0, 4)

    # 0.1 + 0.89 u for u of 0, 0.5 and 0.999, and zero at the end.
    torch.testing.assert_close(numbers, torch.tensor([0.1, 0.545, 0.98911, 0.0]))


def test_generate_writes_the_planned_lengths() -> None:
    setup = Setup()
    backbone = setup.backbone().eval()
    stops = backbone.processor.stop_token_ids
    ids = torch.tensor([[300, 301, 302]]).expand(3, 3)
    with planned_generate(backbone.model, [7, 2, 12], stops):
        written = backbone.model.generate(ids, do_sample=True, max_new_tokens=12)[:, 3:]

    ends = [next(i + 1 for i, token in enumerate(row) if token in stops) for row in written.tolist()]
    assert ends == [7, 2, 12]
    assert "generate" not in vars(backbone.model)


def test_hook_of_generate_leaves_other_tokens_alone() -> None:
    hook = PlannedEnds([1, 2], (2, 0))
    scores = hook(torch.zeros(2, 5, dtype=torch.long), torch.tensor([[1.0, 2, 3, 4], [1.0, 2, 3, 4]]))

    inf = torch.inf
    assert scores.tolist() == [[-inf, 2, 1e4, 4], [-inf, 2, -inf, 4]]
