"""GRPO steps of this project's module against TRL's own trainer, on the same model, rollout and rewards.

Both train the embedded Qwen2.5-VL (`helpers.beside_trl`). Compared are the advantages, the gradient of every weight at
each of the three optimiser steps that the rollout gives, and the weights at the end. From the second step on the ratios
are off 1, so that clips decide and the divergence has a gradient.

What TRL does otherwise, and what is done about it here:

1. It gives the vision tokens that sampling bans their probability; the module under test bans none.
2. Its `bnpo` averages over micro-batches that may hold different numbers of tokens. `token_mean` is its `dapo`, and its
   `bnpo` only where one micro-batch holds the whole step.
3. Completions without a verdict, or masked as truncated, count among the sequences that `grpo` and `dr_grpo` divide by;
   here they do not. The gradients differ by that factor.
4. Its `delta` bounds the ratio whatever the advantage's sign. From `1 + epsilon_high` on, which is where its help wants
   it, that is `dual_clip`; below, it is not.
5. It multiplies the KL term by the ratio unless `use_bias_correction_kl` is off (DeepSeek-V3.2); GRPO's own does not.
6. It has no KL in GRPO's reward, no k1 or k2 and no adaptive coefficient to compare with.
7. Its weights for a sampler of lower precision are tied to vLLM; the test says that vLLM had drawn the rollout.

Everything is float32, as parts of both compute in it whatever type the weights have. Adam's epsilon is large, or its
first steps would blow up the rounding of tiny gradients. Measured over all cases: advantages are equal bit for bit,
norms differ by 8e-7 of themselves, gradients by 1.1e-8 where the largest is 4e-3, weights by 1.2e-7 after three steps
of up to 5e-3. The bounds leave a factor of ten for other processors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_vlaa.algorithm import AdvantageConfig, KLConfig, LossConfig
from lit_vlaa.losses import clipped_surrogate

pytest.importorskip("trl")

from helpers.beside_trl import STEPS, Outcome, ours, theirs


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Sums have one order, and workers beside each other do not fight for cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_same(mine: Outcome, other: Outcome, *, factor: float = 1.0) -> None:
    """Both took the same steps; `factor` is what this module's first gradient is expected to be of TRL's."""
    torch.testing.assert_close(mine.advantages, other.advantages, rtol=1e-6, atol=1e-7)
    assert len(mine.norms) == len(other.norms) == len(mine.gradients) == len(other.gradients) == STEPS
    # Norms are of the gradients before clipping, so only they show a factor; from the second step on the paths part.
    steps = STEPS if factor == 1.0 else 1
    assert mine.norms[:steps] == pytest.approx([factor * norm for norm in other.norms[:steps]], rel=1e-5)
    for step, expected in zip(mine.gradients[:steps], other.gradients, strict=False):
        assert_close(step, expected, atol=1e-7)
    if factor == 1.0:
        assert_close(mine.weights, other.weights, atol=1.2e-6)


def assert_close(mine: dict[str, Tensor], other: dict[str, Tensor], *, atol: float) -> None:
    assert mine.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=atol, msg=f"{name} differs")


def case(name: str, mine: dict[str, Any], other: dict[str, Any]) -> Any:
    return pytest.param(mine, {"loss_type": "grpo", **other}, id=name)


TOKEN_MEAN = LossConfig(aggregation="token_mean")
CASES = [
    case("token_mean", {"loss": TOKEN_MEAN}, {"loss_type": "dapo"}),
    case("token_mean, one micro-batch", {"loss": TOKEN_MEAN}, {"loss_type": "bnpo", "micro_batches": 1}),
    case("constant_length", {"loss": LossConfig(aggregation="constant_length")}, {"loss_type": "dr_grpo"}),
    case(
        "ratio of the sequence",
        {"loss": LossConfig(ratio="sequence", clip_low=3e-2, clip_high=4e-2)},
        {"importance_sampling_level": "sequence", "epsilon": 3e-2, "epsilon_high": 4e-2},
    ),
    case(
        "ratio of the sequence, token_mean",
        {"loss": LossConfig(ratio="sequence", aggregation="token_mean")},
        {"importance_sampling_level": "sequence", "loss_type": "dapo"},
    ),
    case("clip_high", {"loss": LossConfig(clip_high=0.28)}, {"epsilon_high": 0.28}),
    case("clip_low", {"loss": LossConfig(clip_low=0.1)}, {"epsilon": 0.1, "epsilon_high": 0.2}),
    case("dual_clip", {"loss": LossConfig(dual_clip=1.25)}, {"delta": 1.25}),
    case(
        "importance_cap",
        {"loss": LossConfig(importance_cap=0.03)},
        {
            "from_vllm": True,
            "vllm_importance_sampling_mode": "token_truncate",
            "vllm_importance_sampling_clip_max": 0.03,
        },
    ),
    case("no scale", {"advantage": AdvantageConfig(scale="none")}, {"scale_rewards": "none"}),
    case("scale of the batch", {"advantage": AdvantageConfig(scale="batch")}, {"scale_rewards": "batch"}),
    case("no KL", {"kl": KLConfig(coefficient=0.0)}, {"beta": 0.0}),
    case("much KL", {"kl": KLConfig(coefficient=2.0)}, {"beta": 2.0}),
]


@pytest.fixture(scope="module")
def plain() -> Outcome:
    """The paper's objective."""
    return ours()


def test_the_papers_objective_is_trls_grpo(plain: Outcome, tmp_path: Path) -> None:
    assert_same(plain, theirs(tmp_path, loss_type="grpo"))


@pytest.mark.parametrize(("mine", "other"), CASES)
def test_three_steps_are_trls(mine: dict[str, Any], other: dict[str, Any], plain: Outcome, tmp_path: Path) -> None:
    outcome = ours(**mine)
    assert_same(outcome, theirs(tmp_path, **other))
    # The setting took part: not all steps are those of the paper's objective.
    assert outcome.norms != pytest.approx(plain.norms, rel=1e-3)


def test_without_a_verdict(tmp_path: Path) -> None:
    """Two of sixteen completions: their advantages are 0 on both sides; TRL divides by 16 sequences, this by 14."""
    failed = (1, 6)
    mine = ours(failed=failed, kl=KLConfig(coefficient=0.0))
    assert mine.advantages[list(failed)].tolist() == [0.0, 0.0]
    assert_same(mine, theirs(tmp_path, failed=failed, loss_type="grpo", beta=0.0), factor=16 / 14)


def test_masked_as_truncated(tmp_path: Path) -> None:
    """One of four completions: `dapo` leaves its tokens out of the count, `grpo` does not leave out the sequence."""
    mask: dict[str, Any] = {"mask_truncated_completions": True, "cut": True}
    mine = ours(cut=True, loss=LossConfig(mask_truncated=True, aggregation="token_mean"))
    assert_same(mine, theirs(tmp_path / "tokens", loss_type="dapo", **mask))
    mine = ours(cut=True, loss=LossConfig(mask_truncated=True))
    assert_same(mine, theirs(tmp_path / "sequences", loss_type="grpo", **mask), factor=16 / 12)


def test_delta_below_the_clip_is_no_dual_clip(tmp_path: Path) -> None:
    """At ratio 1.15, clip 0.2 and a bound of 1.1 TRL's objective is min(1.1 A, 1.15 A).

    That is 1.1 for A = 1 and -1.15 for A = -1. The dual clip (Ye et al. 2020, equation 5) leaves a good completion
    alone, 1.15, and bounds what a bad one can cost, -1.1.
    """
    surrogate = clipped_surrogate(
        torch.tensor([[1.15], [1.15]]).log(), torch.tensor([1.0, -1.0]), clip_low=0.2, clip_high=0.2, dual_clip=1.1
    )
    torch.testing.assert_close(-surrogate.loss, torch.tensor([[1.15], [-1.1]]))
    mine = ours(loss=LossConfig(dual_clip=1.1))
    other = theirs(tmp_path, loss_type="grpo", delta=1.1)
    assert mine.norms[0] == pytest.approx(other.norms[0], rel=1e-5)  # all ratios are 1
    assert mine.norms[1] != pytest.approx(other.norms[1], rel=1e-3)
