from __future__ import annotations

import pytest

from callbacks.benchmarks.ask import MAX_REPLY_CHARS, MAX_SHOWN_CHARS, TEMPERATURES, ask, shown
from helpers.judges import ScriptedJudge


def digit(reply: str) -> int | None:
    return int(reply) if reply in {"0", "1"} else None


@pytest.mark.parametrize(
    ("replies", "value", "calls"),
    [
        (["1"], 1, 1),
        (["0"], 0, 1),
        (["maybe", "1"], 1, 2),
        ([None, "0"], 0, 2),
        (["x", None, None, "0"], None, 3),
        (["", "x", None, "y", "1"], 1, 5),
        (["x"] * 9, None, 5),
        ([None, None, "1"], None, 2),
    ],
    ids=str,
)
def test_asks_until_a_reply_can_be_read(replies: list[str | None], value: int | None, calls: int) -> None:
    judge = ScriptedJudge(replies)
    assert ask(judge, "same?", digit) == (value, calls)
    assert judge.prompts == ["same?"] * calls
    assert judge.temperatures == [0.0, 0.5, 1.0, 1.5, 2.0][:calls]


def test_without_a_judge_nobody_is_asked() -> None:
    assert ask(None, "same?", digit) == (None, 0)


def test_temperatures_bound_the_calls() -> None:
    judge = ScriptedJudge(["x"] * 9)
    assert ask(judge, "same?", digit, TEMPERATURES[:3]) == (None, 3)
    assert judge.temperatures == [0.0, 0.5, 1.0]


def test_a_flood_is_cut_before_it_is_read() -> None:
    assert ask(ScriptedJudge(["9" * 10**6]), "?", len) == (MAX_REPLY_CHARS, 1)


def test_an_overlong_answer_is_shown_from_its_end() -> None:
    assert shown("x" * 10 + "y" * MAX_SHOWN_CHARS) == "y" * MAX_SHOWN_CHARS
    assert shown("short") == "short"
