"""Tables of traces: rates by hand, the stratified difference, what is missing, and hostile names."""

from __future__ import annotations

import json
import math
import random
import statistics
from dataclasses import replace
from typing import Any

import pytest

from lit_vlaa.study.responses import ScoredResponse
from lit_vlaa.study.tables import Stratum, aggregate, describe, error_rates, measured, risk_difference
from lit_vlaa.study.trace_report import EXAMPLES, SHOWN_CHARS, cases, escaped, markdown, marked, picture

DOUBT = "<think>Wait, two.</think><answer>2</answer>"
PLAIN = "<think>It is two</think><answer>2</answer>"


def row(text: str, score: float | None = None, number: int = 0, **known: Any) -> ScoredResponse:
    return ScoredResponse("test", f"r{number}", text, score, **known)


def test_risk_difference_by_hand() -> None:
    # First stratum, N = 10: w = 4 * 6 / 10 = 2.4, top = (3 * 6 - 2 * 4) / 10 = 1,
    #   P = (16 * 2 - 36 * 3 + 24 * 1) / 100 = -0.52, Q = (3 * 4 + 2 * 1) / 20 = 0.7.
    # Second, N = 10: w = 2.5, top = (2 * 5 - 1 * 5) / 10 = 0.5, P = (25 - 50 + 0) / 100 = -0.25, Q = 11 / 20 = 0.55.
    # The difference is 1.5 / 4.9, its variance that times -0.77, plus 1.25, over the square of 4.9.
    found = risk_difference([Stratum(4, 3, 6, 2), Stratum(5, 2, 5, 1), Stratum(7, 7, 0, 0), Stratum(0, 0, 9, 1)])
    assert found is not None
    assert found.difference == pytest.approx(1.5 / 4.9)
    assert found.variance == pytest.approx((1.5 / 4.9 * -0.77 + 1.25) / 24.01)
    assert found.low == pytest.approx(found.difference - 1.959964 * math.sqrt(found.variance))
    assert found.high + found.low == pytest.approx(2 * found.difference)
    assert (found.strata, found.rows) == (2, 20)


def test_risk_difference_of_one_stratum_is_that_of_two_rates() -> None:
    found = risk_difference([Stratum(10, 7, 10, 4)])
    assert found is not None
    assert found.difference == pytest.approx(0.3)
    assert found.variance == pytest.approx(0.7 * 0.3 / 10 + 0.4 * 0.6 / 10)


def test_risk_difference_varies_as_it_says() -> None:
    """Drawn strata, of which many are small: the mean of the variances is the variance of the differences."""
    rng = random.Random(5)
    sizes = [(2, 3, 0.3), (1, 4, 0.6), (6, 2, 0.5), (10, 10, 0.2), (3, 3, 0.7), (2, 1, 0.4)] * 2
    found = []
    for _ in range(4000):
        strata = [
            Stratum(a, sum(rng.random() < rate + 0.1 for _ in range(a)), b, sum(rng.random() < rate for _ in range(b)))
            for a, b, rate in sizes
        ]
        result = risk_difference(strata)
        assert result is not None
        found.append(result)
    assert statistics.fmean(one.difference for one in found) == pytest.approx(0.1, abs=0.01)
    spread = statistics.variance(one.difference for one in found)
    assert statistics.fmean(one.variance for one in found) == pytest.approx(spread, rel=0.06)


def test_no_stratum_with_both_sorts() -> None:
    assert risk_difference([Stratum(3, 1, 0, 0), Stratum(0, 0, 2, 1)]) is None
    assert risk_difference([]) is None


def test_confounding_by_kind_goes_away() -> None:
    """Doubt stands where questions are hard; within each kind it makes no difference."""
    rows = [row(DOUBT, float(n < 2), kind="hard", tokens=9) for n in range(8)]
    rows += [row(PLAIN, float(n < 1), kind="hard", tokens=5) for n in range(4)]
    rows += [row(DOUBT, float(n < 3), kind="easy", tokens=9) for n in range(4)]
    rows += [row(PLAIN, float(n < 6), kind="easy", tokens=5) for n in range(8)]
    rows.append(row(DOUBT, None, kind="easy", tokens=9))
    found = error_rates(measured(rows))
    doubt = found["aha"]
    # 12 with a cue, 6 + 1 of them wrong; 12 without, 3 + 2 wrong.
    assert doubt["with"] == {"n": 12, "wrong": pytest.approx(7 / 12)}
    assert doubt["without"] == {"n": 12, "wrong": pytest.approx(5 / 12)}
    assert doubt["difference"] == pytest.approx(2 / 12)
    assert doubt["standardised"]["difference"] == pytest.approx(0.0)
    assert (doubt["standardised"]["strata"], doubt["standardised"]["rows"]) == (2, 24)
    # Every row is well formed, so that there is nothing to compare.
    assert "well_formed" not in found
    alone = error_rates(measured([row(DOUBT, 1.0, kind="a"), row(PLAIN, 0.0, kind="b")]))
    assert alone["aha"]["standardised"] is None
    by_source = error_rates(measured([row(DOUBT, 1.0, source="a"), row(PLAIN, 0.0, source="b")]))
    assert by_source["aha"]["standardised"] is None


def test_means_are_over_what_is_known() -> None:
    rows = measured(
        [row(DOUBT, 1.0, 1, tokens=10), row(PLAIN, 0.4, 2, tokens=20), row(PLAIN, None, 3)],
        nll={("test", "r1"): (6.0, 3), ("test", "r2"): (2.0, 1), ("other", "r3"): (9.0, 9)},
    )
    found = describe(rows)
    assert (found["rows"], found["judged"], found["wrong"]) == (3, 2, 0.5)
    assert found["numbers"]["tokens"] == {"mean": 15.0, "n": 2}
    # <think>Wait, | two.</think><answer>2</answer>; the others have three words.
    assert found["numbers"]["words"] == {"mean": pytest.approx(8 / 3), "n": 3}
    assert found["flags"]["aha"] == {"mean": pytest.approx(1 / 3), "n": 3}
    assert "truncated" not in found["flags"]
    assert found["right"]["tokens"] == {"mean": 10.0, "n": 1}
    assert found["wrong_rows"]["tokens"] == {"mean": 20.0, "n": 1}
    assert found["nll"] == {"mean": 2.0, "perplexity": pytest.approx(math.exp(2)), "n": 2, "tokens": 4}
    assert describe(measured([row(PLAIN)]))["wrong"] is None


def test_threshold_of_right() -> None:
    rows = [row(PLAIN, 0.4)]
    assert describe(measured(rows))["wrong"] == 1.0
    assert describe(measured(rows, correct_from=0.4))["wrong"] == 0.0


def table(**arms: list[ScoredResponse]) -> tuple[dict[str, Any], dict[str, Any]]:
    rows = {name: measured(own) for name, own in arms.items()}
    return aggregate(rows), rows


FULL = [
    replace(row(DOUBT, 0.0, 1), kind="mcq", source="geo", tokens=9, finish="stop", question="q"),
    replace(row(PLAIN, 1.0, 2), kind="mcq", source="geo", tokens=5, finish="stop", question="q"),
]


def test_tables_are_json_and_name_what_is_missing() -> None:
    found, _ = table(full=FULL, bare=[row(PLAIN)])
    assert json.loads(json.dumps(found)) == found
    assert found["arms"]["full"]["by_kind"]["mcq"]["rows"] == 2
    assert list(found["arms"]["full"]["by_source"]) == ["geo"]
    assert found["arms"]["bare"]["by_kind"] == {}
    assert [line for line in found["missing"] if line.startswith("full")] == []
    assert "bare: 1 of 1 rows have no number of tokens" in found["missing"]
    assert "bare: 1 of 1 rows have no score, so that they are neither right nor wrong" in found["missing"]


def test_markdown_says_numbers_and_what_is_left_out() -> None:
    found, _ = table(full=FULL, bare=[row(PLAIN)])
    text = markdown(found)
    assert "| aha cue (paper's substrings) | 50.0% (2) | 0.0% (1) |" in text
    assert (
        "| aha cue (paper's substrings) | 100.0% (1) | 0.0% (1) | +100.0 | +100.0 (+100.0 to +100.0) | 2 in 1 |" in text
    )
    assert "| full | mcq | 2 | 50.0% (2) | 2.5 (2) | 50.0% (2) | 50.0% (2) | 0.0% (2) | 100.0% (2) |" not in text
    assert "| full | mcq | 2 | 50.0% (2) | 2.5 (2) |" in text
    assert "- bare: 1 of 1 rows have no score" in text
    assert "## Left out" not in markdown(table(full=FULL)[0])


HOSTILE = "<script>|`_[x](javascript:1)\n# h\u202e\ud800"


def test_hostile_names_stay_text() -> None:
    text = markdown(table(**{HOSTILE: [replace(FULL[0], kind=HOSTILE, source="\n" * 9 + "|x")]})[0])
    assert "<script>" not in text
    assert "\u202e" not in text
    assert "\ud800" not in text
    assert "\n# h" not in text
    assert escaped(HOSTILE) == "&lt;script&gt;\\|\\`\\_\\[x\\](javascript:1) \\# h\ufffd\ufffd"
    assert escaped("x" * 100) == "x" * 60 + "..."


def test_cases_show_each_sort_with_marks() -> None:
    rows = [replace(FULL[0], id=f"d{n}", score=float(n % 2)) for n in range(2 * EXAMPLES + 2)]
    rows.append(row("<think>I pick B.</think><answer>C</answer>", 0.0, 77))
    rows.append(row("</pre><b>wait</b>\x1b[31m", None, 78))
    text = cases(table(arm=rows)[1])
    assert text.count("### wrong, with an aha cue or a hesitation marker: 4 of 10") == 1
    assert text.count("- id: d0\n") == 1
    assert "- id: d6" not in text
    assert "<mark>Wait</mark>, two." in text
    assert "### contradicting itself: 1 of 10" in text
    assert "### without a verdict: 1 of 10" in text
    assert "&lt;/pre&gt;&lt;b&gt;<mark>wait</mark>&lt;/b&gt;\ufffd[31m" in text
    assert text.count("<pre>") == text.count("</pre>")


def test_a_long_trace_loses_its_middle() -> None:
    text = marked("a" * SHOWN_CHARS + "b" * 10)
    assert "[... 10 characters ...]" in text
    assert text.endswith("a" * 10 + "b" * 10)


def test_picture_draws_arms_and_intervals() -> None:
    found, _ = table(one=FULL, **{"_$x$": FULL * 3, "bare": [row(PLAIN)]})
    figure = picture(found)
    shares, lengths, errors = figure.axes
    assert [text.get_text() for text in shares.get_legend().get_texts()] == ["one", "$x$", "bare"]
    assert {"aha cue (paper's substrings)", "well-formed tags"} <= {one.get_text() for one in shares.get_yticklabels()}
    assert len(lengths.patches) == 4  # right and wrong ones of two arms; the third has no verdict
    assert len(errors.lines) > 1
    figure.canvas.draw()
