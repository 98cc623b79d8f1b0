"""`--model.batching`: the same run in every layout, on fewer tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.adapted import make_adapted
from helpers.modules import InMemoryData, fit, make_module
from lit_vlaa.micro_batches import RowSize, count
from lit_vlaa.policy import PolicyModule
from lit_vlaa.types import ModelInputs

EXACT: dict[str, Any] = {"optim": {"eps": 1e-3}}
"""Adam divides gradients by their own size; with the stock epsilon it would blow up rounding near zero."""

CASES: dict[str, dict[str, Any]] = {
    "sft": {"kind": "sft"},
    "sft, small budget": {"kind": "sft", "max_tokens_per_micro_batch": 130},
    "sft, checkpointing": {"kind": "sft", "backbone": {"gradient_checkpointing": True, "logprob_chunk": 20}},
    "grpo": {"kind": "grpo"},
    "grpo, groups cut": {"kind": "grpo", "max_tokens_per_micro_batch": 130},
    "grpo, old log-probabilities": {"kind": "grpo", "num_iterations": 2},
    "grpo, groups of eight": {"kind": "grpo", "group_size": 8},
    "grpo, checkpointing": {"kind": "grpo", "backbone": {"gradient_checkpointing": True}},
    "grpo, frozen tower": {"kind": "grpo", "backbone": {"freeze": ("vision",)}},
    "grpo, one loss a sequence": {"kind": "grpo", "loss": {"ratio": "sequence", "aggregation": "token_mean"}},
}


def outcome(module: PolicyModule, kind: str, **options: Any) -> tuple[dict[str, Any], list[ModelInputs]]:
    """What a run of two batches gives, and the inputs of its passes."""
    seen: list[ModelInputs] = []
    join = module.join

    def watched(rows: Any) -> ModelInputs:
        seen.append(join(rows))
        return seen[-1]

    module.join = watched  # type: ignore[method-assign]
    return fit(module, InMemoryData(kind), limit_train_batches=2, **options), seen


def tokens(passes: list[ModelInputs]) -> int:
    return sum(inputs.input_ids.numel() for inputs in passes)


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    # float32 rounding, in other orders of summation, through up to eight steps of Adam
    for mine, expected in zip(ours["logged"], theirs["logged"], strict=True):
        assert mine == pytest.approx(expected, rel=2e-4, abs=2e-6)
    for name, digest in theirs["weights"].items():
        torch.testing.assert_close(torch.tensor(ours["weights"][name]), torch.tensor(digest), atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("make", [make_module, make_adapted])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_layout_gives_the_same_run(case: dict[str, Any], make: Any) -> None:
    kind = case["kind"]
    padded, passes = outcome(make(**{**EXACT, **case}, batching="padded"), kind)
    most = tokens(passes)
    assert all(inputs.segments is None for inputs in passes)
    for batching in ("packed", *(["shared"] if kind == "grpo" else [])):
        packed, passes = outcome(make(**{**EXACT, **case}, batching=batching), kind)
        assert_same(packed, padded)
        assert all(inputs.segments is not None for inputs in passes)
        assert tokens(passes) < most
        most = tokens(passes)


def test_the_defaults_are_packed_and_shared() -> None:
    assert make_module("sft").batching == "packed"
    assert make_module("grpo").batching == "shared"


def test_no_pass_exceeds_the_budget() -> None:
    for kind in ("sft", "grpo"):
        _, passes = outcome(make_module(kind, max_tokens_per_micro_batch=150), kind)
        assert max(inputs.input_ids.numel() for inputs in passes) <= 150


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_every_rank_runs_as_many_passes_as_the_one_that_needs_most(kind: str) -> None:
    """Forward passes of sharded models are collective; two ranks in one process, which tell each other the most."""
    module = make_module(kind, max_tokens_per_micro_batch=30)
    shares = [[RowSize(10, own, row) for row, own in enumerate(owns)] for owns in ([20] * 4, [1] * 4)]
    needed = [count(sizes, 30, module.batching) for sizes in shares]
    assert needed == [4, 2]  # a row of 30 each; two of 11

    def reduce(own: torch.Tensor, reduce_op: str) -> int:
        assert int(own) in needed
        return {"max": max(needed)}[reduce_op]

    module.trainer = SimpleNamespace(strategy=SimpleNamespace(reduce=reduce))  # type: ignore[assignment]
    assert [len(module.micro_batches(sizes)) for sizes in shares] == [4, 4]


def test_completions_of_a_prompt_go_together_where_they_fit() -> None:
    # kl.coefficient 0: no reference pass. Four prompts a batch in two steps of two.
    module = make_module("grpo", max_tokens_per_micro_batch=260, kl={"coefficient": 0.0}, group_size=4)
    _, passes = outcome(module, "grpo")
    for inputs in passes:
        assert inputs.segments is not None
        continued = inputs.segments.continued
        assert [continued.count(number) for number, other in enumerate(continued) if other < 0] == [
            4
        ] * continued.count(-1)


def test_attention_that_cannot_pack_falls_back_to_padded_rows() -> None:
    module = make_module("grpo", backbone={"attention": "eager"})
    with pytest.warns(UserWarning, match=r"--model\.batching shared: rows are padded, as attention eager"):
        run, passes = outcome(module, "grpo")
    assert all(inputs.segments is None for inputs in passes)
    assert_same(run, outcome(make_module("grpo", batching="padded"), "grpo")[0])


def test_bf16_mixed_trains_alike() -> None:
    runs = [
        outcome(make_module("grpo", batching=batching), "grpo", precision="bf16-mixed")[0]
        for batching in ("shared", "padded")
    ]
    ours, theirs = (run["logged"][0] for run in runs)
    # bfloat16 keeps 8 bits: each product is off by up to 0.4%.
    for name in ("policy/entropy", "policy/sampler_gap", "policy/grad_norm"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.02)
