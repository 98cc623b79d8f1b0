"""Both sides run the work of a case, and the gates see when they part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import gates, theirs
from benchmarks.candidates import fastest, ours_candidates, their_grpo_candidates, their_sft_candidates
from benchmarks.cases import SIDES, Case
from benchmarks.gates import Replay, all_gates, greedy_gate, made_up_rollout, run_through, similarity
from benchmarks.lockstep import Pause, Run
from benchmarks.memory import measured_apart
from benchmarks.models import Setup
from benchmarks.workload import SCALES, Scale
from lit_vlaa.algorithm import LossConfig
from lit_vlaa.grpo import GRPOModule

SMALL = Scale(4, 48, 2, 4, 12, ((56, 56), (84, 56)))
needs_trl = pytest.mark.skipif(theirs.missing() is not None, reason=str(theirs.missing()))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(SCALES, "tiny", SMALL)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def check_sft(side: str) -> list[dict[str, Any]]:
    case = Case(Setup(threads=1), "sft")
    return run_through(case.run(side, case.candidates(side)[1], 2))


def check_grpo(side: str) -> None:
    case = Case(Setup(threads=1), "grpo")
    steps = run_through(case.run(side, case.candidates(side)[1], 2))
    assert len(steps) == 2
    for values in steps:
        assert values["lengths"] == case.planned
        parts = [values[name] for name in ("prepare", "rollout", "update")]
        assert min(*parts, values["cpu"]) > 0
        assert values["step"] == pytest.approx(sum(parts) + values.get("reward", 0.0))


def test_our_sft_learns() -> None:
    first, second = check_sft("ours")

    assert second["loss"] < first["loss"]


def test_our_grpo_writes_the_planned_completions() -> None:
    check_grpo("ours")


@needs_trl
def test_losses_of_both_agree() -> None:
    case = Case(Setup(threads=1), "sft")
    case.check({side: check_sft(side) for side in SIDES}, 1e-5)


@needs_trl
def test_their_grpo_writes_the_planned_completions() -> None:
    check_grpo("trl")


@needs_trl
def test_all_gates_pass() -> None:
    assert [gate.found for gate in all_gates(Setup(threads=1)) if not gate.passed] == []


@needs_trl
def test_replay_gate_sees_another_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "_unbanned", mean_of_tokens)

    assert not gates.replay_gate(Setup(threads=1)).passed


def mean_of_tokens(watch: Any) -> Any:
    class TokenMean(GRPOModule):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options, loss=LossConfig(aggregation="token_mean"))

        def configure_model(self) -> None:
            super().configure_model()
            watch(self.backbone.model)

    return TokenMean


def test_greedy_gate_passes() -> None:
    gate = greedy_gate(Setup(threads=1))

    assert gate.passed
    # Two prompts of at most 32 tokens each.
    assert gate.found.split()[0] == gate.found.split()[2]


def test_greedy_gate_sees_other_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "_greedy", lambda *_: [5, 5, 5])

    assert not greedy_gate(Setup(threads=1)).passed


def test_case_refuses_other_lengths_and_losses() -> None:
    case = Case(Setup(threads=1), "grpo")
    with pytest.raises(RuntimeError, match="trl: completions are not of the planned lengths"):
        case.check({"ours": [{"lengths": case.planned}], "trl": [{"lengths": [1]}]}, 1e-5)
    with pytest.raises(RuntimeError, match="SFT losses part"):
        Case(Setup(threads=1), "sft").check({"ours": [{"loss": 1.0}], "trl": [{"loss": 1.1}]}, 1e-5)


def test_rollout_for_the_replay_ends_every_completion() -> None:
    setup = Setup()
    given = made_up_rollout(setup)
    stop = setup.processor().end_token_id

    assert [ids.index(stop) + 1 for ids in given] == [len(ids) for ids in given] == Case(setup, "grpo").planned
    groups = Replay(given, 4).generate(setup.backbone(), [])
    assert [c.token_ids.tolist() for c in groups[1]] == given[4:]


def test_similarity_is_the_cosine_over_all_weights() -> None:
    mine = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}

    assert similarity(mine, {"b": torch.tensor([3.0]), "a": torch.tensor([4.0])}) == pytest.approx(24 / 25)
    assert similarity(mine, {"a": torch.tensor([3.0])}) == 0.0


def test_fastest_settings_win_and_too_large_ones_are_noted() -> None:
    def make(settings: dict[str, Any], steps: int) -> Run:
        def run(pause: Pause) -> None:
            if settings["rows"] > 4:
                raise torch.OutOfMemoryError("of 1 GiB")
            for step in range(steps):
                pause({"step": (0.1, 9.0, 8.0 / settings["rows"])[step]})

        return run

    best, trials = fastest("x", [{"rows": rows} for rows in (1, 4, 2, 8)], make, lambda _: None)

    assert best == {"rows": 4}
    assert trials == {"rows=1": 8.0, "rows=4": 2.0, "rows=2": 4.0, "rows=8": "out of memory: of 1 GiB"}
    with pytest.raises(RuntimeError, match="none of 1 settings"):
        fastest("x", [{"rows": 8}], make, lambda _: None)


def test_both_sides_choose_among_micro_batches() -> None:
    setup = Setup()

    assert {} in ours_candidates("sft")
    assert {c.get("batching") for c in ours_candidates("grpo")} == {None, "packed", "padded"}
    assert [c["micro_batch"] for c in their_sft_candidates(setup)] == [2, 4]
    assert {c["micro_batch"] for c in their_grpo_candidates(setup)} == {8}


@pytest.mark.slow
def test_peak_memory_of_a_step_holds_weights_gradients_and_moments() -> None:
    # In a process of its own, as what other tests freed would hide what a step takes.
    case = Case(Setup(threads=1), "sft")
    trained = sum(p.numel() * 4 for p in case.setup.backbone().parameters() if p.requires_grad)

    assert measured_apart(case, "ours", {}) > 4 * trained
