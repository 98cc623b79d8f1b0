from __future__ import annotations

import pytest

from callbacks.benchmarks.published import AVERAGE, BENCHMARKS, PUBLISHED

WHOLE = [name for name, row in PUBLISHED.items() if len(row) > 1]


def test_rows_are_whole_or_an_average() -> None:
    assert WHOLE == ["Qwen2.5-VL-3B", "VLAA-Thinker-3B", "Qwen2.5-VL-7B", "VLAA-Thinker-7B"]
    for name, row in PUBLISHED.items():
        assert list(row) == ([*BENCHMARKS, AVERAGE] if name in WHOLE else [AVERAGE])


@pytest.mark.parametrize("name", WHOLE)
def test_the_papers_average_is_the_mean_of_its_row(name: str) -> None:
    row = PUBLISHED[name]
    mean = sum(row[benchmark] for benchmark in BENCHMARKS) / 6
    assert abs(mean - row[AVERAGE]) <= 0.05 + 1e-9  # one printed decimal


def test_the_gain_that_the_paper_claims() -> None:
    gains = {
        size: PUBLISHED[f"VLAA-Thinker-{size}"][AVERAGE] - PUBLISHED[f"Qwen2.5-VL-{size}"][AVERAGE]
        for size in ("3B", "7B")
    }
    assert gains == {"3B": pytest.approx(3.6), "7B": pytest.approx(2.4)}  # 35.4 - 31.8, 42.5 - 40.1


def test_nobody_can_change_a_number() -> None:
    with pytest.raises(TypeError):
        PUBLISHED["Qwen2.5-VL-3B"]["mathvista"] = 99.0  # type: ignore[index]
