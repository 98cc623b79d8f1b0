"""What `lit-vlaa data check` tells of its findings."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.check.duplicates import Known
from datamodules.check.picture import draw
from datamodules.check.report import Report
from datamodules.check.rows import RowFacts
from datamodules.check.settings import Limits, Settings
from datamodules.check.summary import Summary, quantiles
from lit_vlaa.backbone import BackboneConfig

HOSTILE = "<script>alert(1)</script> | `a` ](http://x) \x1b[31m\nnew"


def facts(number: int, *findings: tuple[str, str], **options: Any) -> RowFacts:
    return RowFacts(number, source=options.pop("source", "coco"), kind="iou", findings=findings, **options)


def report(summary: Summary, **options: Any) -> Report:
    given: dict[str, Any] = {"sampled": None, "others": (), "opened": True, "seconds": 1.0}
    return Report(file="rows.json", summary=summary, **{**given, **options})


def settings(**options: Any) -> Settings:
    return Settings(split="sft", image_root=Path("/images"), **options)


def test_the_table_counts_by_source() -> None:
    summary = Summary(settings())
    for number in range(1, 21):
        summary.add(facts(number, lengths=(number, 10, 100), key=b"k", trace=number > 5, cue=number > 15), [])
    summary.add(facts(21, ("image_missing", "a.png")), [("duplicate_row", "as in row 1")])
    summary.add(facts(22, ("odd_unicode", "question: U+FFFD"), source="vg"), [])
    (coco,) = [line.split() for line in report(summary).lines() if line.startswith("coco ")][:1]
    # Rows, bad, missing, duplicates; lengths of 111 to 130: the 10th and the 19th of 20, and the largest.
    assert coco == ["coco", "21", "1", "1", "1", "120", "129", "130", "-"]
    numbers = report(summary).numbers()
    assert numbers["sources"]["coco"]["tokens_by_part"]["text"] == {"p50": 10, "p95": 19, "max": 20}
    assert {name: numbers["sources"]["coco"][name] for name in ("traces", "cues", "direct")} == {
        "traces": 15,
        "cues": 5,
        "direct": 5,
    }
    assert numbers["findings"] == {"error": 1, "warning": 2, "note": 0}
    assert report(summary).stops


def test_many_findings_name_the_first_rows_and_the_remedy() -> None:
    summary = Summary(settings())
    for number in range(1, 15):
        summary.add(facts(number, ("image_missing", f"{number}.png")), [])
    text = "\n".join(report(summary).lines())
    assert "error: images that are not there: 14 (rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 4 more)" in text
    assert "row 3: 3.png" in text
    assert "row 4: 4.png" not in text
    assert "-> see --data.image_root" in text
    assert text.endswith("14 error(s), 0 warning(s), 0 note(s): a run would stop")


def test_warnings_stop_no_run() -> None:
    summary = Summary(settings())
    summary.add(facts(1, ("odd_unicode", "question: U+FFFD")), [])
    assert not report(summary).stops
    assert report(summary).verdict().endswith("no run stops at these")
    assert report(Summary(settings())).verdict() == "nothing found"


def test_nothing_of_the_data_reaches_terminal_or_markdown_as_it_stands() -> None:
    summary = Summary(settings())
    summary.add(facts(1, ("bad_gt", HOSTILE), source=HOSTILE), [])
    made = report(summary, others=(HOSTILE,))
    assert "\x1b" not in "".join(made.lines())
    assert all("\n" not in line for line in made.lines())
    markdown = made.markdown()
    for part in ("<script>", "`a`", "](http", "\x1b"):
        assert part not in markdown
    (row,) = [line for line in markdown.splitlines() if "alert" in line and line.startswith("| ")][:1]
    assert row.count("|") == 10  # nine cells


def test_fast_and_missing_limits_are_said() -> None:
    backbone = BackboneConfig(max_pixels=7056)
    assert any("--fast" in line for line in report(Summary(settings(fast=True))).lines())
    assert any("give --config" in line for line in report(Summary(settings(backbone=backbone))).lines())
    limits = Limits(row=8192, response=800, context=32768)
    (line,) = [line for line in report(Summary(settings(backbone=backbone, limits=limits))).lines() if "limits" in line]
    assert "7056 pixels" in line
    assert "8192 a micro-batch, 800 a completion, 32768 of context" in line


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([3], (3, 3, 3)), ([1, 2], (1, 2, 2)), (list(range(1, 101)), (50, 95, 100)), ([], None)],
    ids=["one", "two", "hundred", "none"],
)
def test_quantiles(numbers: list[int], expected: tuple[int, int, int] | None) -> None:
    found = quantiles(np.asarray(numbers))
    assert (None if found is None else tuple(found.values())) == expected


def test_limits_are_drawn() -> None:
    summary = Summary(settings(limits=Limits(row=300, response=120, context=10**6)))
    rng = np.random.default_rng(0)
    for number in range(200):
        text, image, response = rng.integers(20, 100, 3).tolist()
        name = "vg" if number % 2 else "co$c^o"  # no formula
        summary.add(facts(number, lengths=(text, image, response), source=name), [])
    figure = draw(summary)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["whole rows", "prompts beside images", "images", "responses"]
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    # The context is far beyond every row: an arrow points to it.
    assert texts == [["a micro-batch: 300", "context: 1000000 →"], [], [], ["a completion: 120"]]
    assert [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"] == [300]
    figure.canvas.draw()


def test_no_picture_without_lengths() -> None:
    assert draw(Summary(settings())) is None


def test_known_rows_take_the_first_of_each() -> None:
    known = Known("other.json")
    known.add(RowFacts(3, id="a", id_key=b"a", key=b"k", images=(b"i",)))
    known.add(RowFacts(4, id="a", id_key=b"a", key=b"k", images=(b"i",)))
    assert list(known.leaks(RowFacts(1, key=b"k", images=(b"i",)))) == [("leaked_row", "other.json, row 3")]
    assert list(known.leaks(RowFacts(1, id="a", id_key=b"a", images=(b"i",)))) == [
        ("leaked_image", "other.json, row 3"),
        ("shared_id", "'a', other.json, row 3"),
    ]
    assert isinstance(Summary(settings()).sources["x"].lengths["text"], array)
