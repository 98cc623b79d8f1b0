from __future__ import annotations

import pytest

from lit_vlaa.rewards.failures import STATUSES, FailureWatch, Tally, shares, tally
from lit_vlaa.types import Kind, RewardResult, RewardStatus

KINDS: tuple[Kind, ...] = ("math", "open_ended")


def counts(**by_kind: dict[RewardStatus, int]) -> Tally:
    return [[by_kind.get(kind, {}).get(status, 0) for status in STATUSES] for kind in KINDS]


def test_results_are_counted_by_kind_and_status() -> None:
    verdicts: list[tuple[Kind, RewardStatus]] = [("math", "ok"), ("math", "ok"), ("open_ended", "timeout")]
    results = [RewardResult(0.0, kind, None, status) for kind, status in verdicts]
    assert tally(results, KINDS) == counts(math={"ok": 2}, open_ended={"timeout": 1})


def test_shares_by_hand() -> None:
    table = counts(math={"ok": 3, "timeout": 1}, open_ended={"no_answer": 4})
    # One of four math answers; no other completion has an answer.
    assert shares(table, KINDS) == {
        "failed/math": 0.25,
        "failed/unparsable_gt": 0.0,
        "failed/verifier_error": 0.0,
        "failed/timeout": 0.25,
    }
    assert shares(counts(), KINDS) == {}


def test_one_kind_alone_can_stop_the_run() -> None:
    watch = FailureWatch(KINDS, most=0.5, window=4)
    reason = watch.update(counts(math={"ok": 100}, open_ended={"verifier_error": 2, "timeout": 1, "ok": 1}))
    assert reason is not None
    assert "3 of the latest 4 open_ended answers" in reason
    assert "verifier_error 2, timeout 1" in reason
    assert "--model.reward.max_failed" in reason


@pytest.mark.parametrize("status", ["ok", "no_answer"])
def test_wrong_answers_are_no_failures(status: RewardStatus) -> None:
    assert FailureWatch(KINDS, most=0.0, window=1).update(counts(math={status: 50})) is None


def test_the_share_itself_is_allowed() -> None:
    watch = FailureWatch(KINDS, most=0.5, window=4)
    assert watch.update(counts(math={"timeout": 2, "ok": 2})) is None
    assert watch.update(counts(math={"timeout": 3, "ok": 1})) is not None


def test_fewer_than_the_window_say_nothing_until_they_add_up() -> None:
    watch = FailureWatch(KINDS, most=0.5, window=5)
    assert watch.update(counts(math={"timeout": 2})) is None
    assert watch.update(counts(math={"timeout": 2})) is None
    assert watch.update(counts(open_ended={"ok": 9})) is None
    assert watch.update(counts(math={"timeout": 2})) is not None


def test_what_lies_before_the_window_is_forgotten() -> None:
    watch = FailureWatch(KINDS, most=0.5, window=4)
    assert watch.update(counts(math={"ok": 100})) is None
    # 100 good ones lie before the latest four, all of which failed.
    assert watch.update(counts(math={"verifier_error": 4})) is not None
    assert watch.update(counts(math={"ok": 4})) is None


def test_completions_without_an_answer_do_not_hide_a_scorer_that_is_down() -> None:
    watch = FailureWatch(KINDS, most=0.5, window=4)
    assert watch.update(counts(math={"no_answer": 90, "verifier_error": 4})) is not None
    assert FailureWatch(KINDS, most=0.5, window=4).update(counts(math={"no_answer": 90})) is None


def test_a_limit_of_one_never_stops() -> None:
    assert FailureWatch(KINDS, most=1.0, window=1).update(counts(math={"timeout": 9})) is None


def test_a_resumed_run_looks_back_on_what_the_interrupted_one_saw() -> None:
    watch, resumed = (FailureWatch(KINDS, most=0.5, window=4) for _ in range(2))
    watch.update(counts(math={"timeout": 3}))
    resumed.load_state(watch.state())
    reasons = [one.update(counts(math={"timeout": 1})) for one in (watch, resumed)]
    assert reasons[0] == reasons[1]
    assert "4 of the latest 4 math answers" in str(reasons[0])


def test_what_ended_a_run_is_not_held_against_the_one_that_goes_on() -> None:
    watch = FailureWatch(KINDS, most=0.5, window=4)
    assert watch.update(counts(math={"timeout": 4})) is not None
    assert watch.update(counts(math={"ok": 1})) is None
