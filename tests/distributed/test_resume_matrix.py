"""Any strategy and number of ranks goes on from any other's checkpoint, also amid a rollout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.launch import run_ranks
from helpers.resumable import STRATEGIES, end, half, run, run_all
from lit_vlaa.checkpoints import WholeCheckpointIO

KINDS = ["sft", "grpo"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs: whole ones, and those that go on from each other's checkpoints."""
    root = tmp_path_factory.mktemp("matrix")
    run_all(str(root), KINDS, ["auto"])
    several = [name for name, ranks in STRATEGIES.items() if ranks > 1]
    run_ranks("helpers.resumable:run_all", folder=str(root), kinds=KINDS, strategies=several, timeout=280)
    for kind in KINDS:
        for source in several:
            run(str(root), kind, "auto", source)
    return root


def load(path: Path) -> dict[str, Any]:
    """A checkpoint in the form of a file, whichever it has."""
    return WholeCheckpointIO().load_checkpoint(path)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("source", STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_goes_on(kind: str, source: str, strategy: str, folder: Path) -> None:
    """Bit by bit on as many ranks under the same strategy, else within rounding.

    Measured over all pairs: weights differ by at most 1.2e-7, the optimiser's moments by 6.4e-6 of the largest of a
    tensor. The bounds leave a factor of ten for other processors.
    """
    resumed, whole = load(end(folder, kind, strategy, source)), load(end(folder, kind, strategy))
    assert resumed["global_step"] == whole["global_step"] > load(half(folder, kind, source))["global_step"]
    assert resumed["lr_schedulers"] == whole["lr_schedulers"]
    assert resumed["loops"] == whole["loops"]
    weights, expected = resumed["state_dict"], whole["state_dict"]
    (optimizer,), (wanted,) = resumed["optimizer_states"], whole["optimizer_states"]
    assert weights.keys() == expected.keys()
    assert groups(optimizer) == groups(wanted)
    assert optimizer["state"].keys() == wanted["state"].keys()
    exact = strategy == source
    for name, value in expected.items():
        check(weights[name], value, exact=exact, atol=1e-6)
    for number, moments in wanted["state"].items():
        for name, value in moments.items():
            check(optimizer["state"][number][name], value, exact=exact, atol=6e-5 * float(value.abs().max()))


def groups(optimizer: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameter groups, in which FSDP2 makes a list of Adam's two betas."""
    return [{**group, "betas": tuple(group["betas"])} for group in optimizer["param_groups"]]


def check(one: torch.Tensor, other: torch.Tensor, *, exact: bool, atol: float) -> None:
    if exact:
        assert torch.equal(one, other)
    else:
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def test_the_half_way_checkpoints_lie_amid_a_rollout(folder: Path) -> None:
    rollouts = [load(half(folder, "grpo", strategy))["unfinished_rollout"] for strategy in STRATEGIES]
    for rollout in rollouts:
        # The second batch of four rows, of whose four steps two are taken.
        assert rollout["ids"] == ["row4", "row5", "row6", "row7"]
        assert len(rollout["norms"]) == 2
        assert torch.equal(rollout["tokens"], rollouts[0]["tokens"])
