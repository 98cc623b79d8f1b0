from __future__ import annotations

import pytest

from lit_vlaa.endpoints.breaker import Breaker, End


class Clock:
    """The time, which only a test moves on."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("lit_vlaa.endpoints.breaker.monotonic", found)
    return found


def call(breaker: Breaker, clock: Clock, seconds: float, end: End) -> str:
    """Sends a call, if it may be sent, and says as what."""
    turn = breaker.admit()
    if turn is None:
        return "held back"
    clock.now += seconds
    breaker.release(turn, end)
    return "probe" if turn.probe else "call"


def test_a_few_failures_in_a_row_open_it(clock: Clock) -> None:
    breaker = Breaker(600)
    assert [call(breaker, clock, 20, "failure") for _ in range(5)] == ["call"] * 3 + ["probe", "held back"]


def test_any_sign_of_life_starts_the_count_anew(clock: Clock) -> None:
    for sign in ("reply", "refusal"):
        breaker = Breaker(600)
        ends: list[End] = ["failure", "failure", sign, "failure", "failure"]
        assert [call(breaker, clock, 20, end) for end in ends] == ["call"] * 5
        assert not breaker.gone


def test_short_trouble_does_not_open_it(clock: Clock) -> None:
    breaker = Breaker(600)
    assert [call(breaker, clock, 3, "failure") for _ in range(9)] == ["call"] * 9
    assert not breaker.gone
    call(breaker, clock, 3, "failure")  # half a minute in all
    assert breaker.gone


def test_one_call_without_a_connection_opens_it(clock: Clock) -> None:
    breaker = Breaker(600)
    assert [call(breaker, clock, 0, "unreachable") for _ in range(3)] == ["call", "probe", "held back"]


@pytest.mark.parametrize(("length", "rest"), [(20.0, 180.0), (0.0, 1.0)])
def test_a_probe_is_followed_by_a_rest_of_nine_times_its_length(clock: Clock, length: float, rest: float) -> None:
    breaker = Breaker(600)
    call(breaker, clock, 20, "unreachable")
    assert call(breaker, clock, length, "failure") == "probe"
    clock.now += rest - 0.5
    assert call(breaker, clock, length, "failure") == "held back"
    clock.now += 0.5
    assert call(breaker, clock, length, "failure") == "probe"


def test_one_probe_at_a_time(clock: Clock) -> None:
    breaker = Breaker(600)
    call(breaker, clock, 0, "unreachable")
    probe = breaker.admit()
    assert probe is not None
    clock.now += 1000
    assert breaker.admit() is None
    breaker.release(probe, "reply")
    assert [call(breaker, clock, 0, "reply") for _ in range(2)] == ["call"] * 2


def test_time_without_a_reply_counts_once_however_many_call(clock: Clock) -> None:
    breaker = Breaker(100)
    turns = [breaker.admit() for _ in range(4)]
    assert [turn.within_s for turn in turns if turn] == [100.0] * 4
    clock.now += 60
    late = breaker.admit()
    assert late is not None
    assert late.within_s == 40
    clock.now += 39
    for turn in [*turns, late]:
        assert turn is not None
        breaker.release(turn, "refusal")
    assert not breaker.gone
    assert call(breaker, clock, 1, "refusal") == "call"
    assert breaker.gone
    # A server that refuses even the probe stays gone, one that replies is back.
    assert call(breaker, clock, 1, "refusal") == "probe"
    clock.now += 9
    assert [call(breaker, clock, 1, "reply") for _ in range(2)] == ["probe", "call"]


def test_time_in_which_nobody_asks_does_not_count(clock: Clock) -> None:
    breaker = Breaker(100)
    for _ in range(3):
        call(breaker, clock, 30, "refusal")
        clock.now += 5000
    turn = breaker.admit()
    assert turn is not None
    assert (turn.probe, turn.within_s) == (False, 10.0)


def test_what_was_cut_off_says_nothing(clock: Clock) -> None:
    breaker = Breaker(600)
    ends: list[End] = ["failure", "failure", "abandoned", "failure"]
    assert [call(breaker, clock, 20, end) for end in ends] == ["call"] * 4
    assert breaker.gone


def test_a_reset_forgets(clock: Clock) -> None:
    breaker = Breaker(100)
    for end in ("failure", "failure", "failure", "failure"):
        call(breaker, clock, 40, end)
    assert breaker.gone
    breaker.reset()
    turn = breaker.admit()
    assert turn is not None
    assert (turn.probe, turn.within_s) == (False, 100.0)
