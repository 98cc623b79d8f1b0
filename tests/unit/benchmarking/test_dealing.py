"""How evenly rows are dealt, by hand."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from benchmarks import dealing
from benchmarks.dealing import bound, compared, imbalance


def test_imbalance_and_bound_by_hand() -> None:
    costs = [6, 1, 4, 1]
    # 6 + 4 of 12 on the first of two: 10 / 6. At best 6 + 1 of 12: 7 / 6.
    assert imbalance([[0, 2], [1, 3]], costs) == pytest.approx(10 / 6)
    assert bound(costs, 2) == pytest.approx(7 / 6)
    assert bound([1, 1, 1, 1], 2) == 1
    assert compared([[(cost, cost) for cost in costs]], 2) == pytest.approx((10 / 6, 7 / 6, 7 / 6))


def test_rows_are_dealt_by_estimates_and_counted_by_costs() -> None:
    # By estimates rows 0 and 3, and 1 and 2: costs of 7 and 5.
    assert compared([[(2, 6), (1, 1), (1, 4), (0, 1)]], 2)[1] == pytest.approx(7 / 6)
    # Equal estimates tell nothing: in turn.
    assert compared([[(1, 6), (1, 1), (1, 4), (1, 1)]], 2)[1] == pytest.approx(10 / 6)


def test_a_table_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dealing, "trace_rows", functools.partial(dealing.trace_rows, 24))
    assert dealing.main(["--rows", "64", "--batches", "2", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "dealing.md").read_text(encoding="utf-8")
    assert "python -m benchmarks.dealing --rows 64" in text
    # One row a rank: nothing to choose.
    row = next(line for line in text.splitlines() if line.startswith("| traces"))
    before, _, after = row.split(" | ")[-1].partition(" → ")
    assert before == after.split(" ")[0]
    with pytest.raises(SystemExit):
        dealing.main(["--rows", "63"])
    assert "multiples of 64" in capsys.readouterr().err
