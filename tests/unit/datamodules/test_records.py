from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from datamodules.records import OnBadRecord, RecordReader, Split, normalise
from datamodules.rows import BadRecord
from lit_vlaa.types import Record

EXAMPLES = Path(__file__).parents[4] / "shared" / "data" / "vlaa_examples"
TRACE = "<think>t</think><answer>a</answer>"


def sft(**changes: Any) -> dict[str, Any]:
    return {"image": "docvqa/1.png", "question": "What?", "answer": TRACE} | changes


def grpo(**changes: Any) -> dict[str, Any]:
    row = {
        "id": "clevr_math-1",
        "image": "clevr_math/1.png",
        "question": "How many?",
        "gt": 3,
        "verifier_type": "digit",
    }
    return row | changes


def one(row: dict[str, Any], split: Split = "grpo") -> Record:
    return normalise(row, file="data/f.json", number=7, split=split)


def read(
    tmp_path: Path,
    rows: Sequence[object],
    split: Split = "grpo",
    on_bad_record: OnBadRecord = "error",
    image_root: Path | None = None,
) -> tuple[list[Record], dict[str, int]]:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    reader = RecordReader(path, split=split, image_root=image_root, on_bad_record=on_bad_record)
    return list(reader), dict(reader.skipped)


def test_sft_form() -> None:
    assert one(sft(), "sft") == Record(
        id="f.json:7",
        source="docvqa",
        kind="open_ended",
        images=("docvqa/1.png",),
        question="What?",
        truth="",
        response=TRACE,
        origin="data/f.json:7",
    )


def test_grpo_form() -> None:
    assert one(grpo(image="/clevr_math/1.png", meta={"x": 1}, caption="c")) == Record(
        id="clevr_math-1",
        source="clevr_math",
        kind="digit",
        images=("clevr_math/1.png",),
        question="How many?",
        truth="3",
        response=None,
        origin="data/f.json:7",
    )


def test_readme_form_gets_its_kind_from_the_source_and_its_response_from_ds_answer() -> None:
    row = grpo(ds_answer="<think>\nt\n</think>\n\n3 balls.")
    del row["verifier_type"]
    assert one(row).kind == "digit"
    assert one(row, "sft").response == "<think>t</think><answer>3 balls.</answer>"


@pytest.mark.parametrize("as_text", [False, True])
def test_ds_answer_is_found_in_meta_as_object_or_python_repr(as_text: bool) -> None:
    meta = {"ds_answer": '<think>it\'s "t"</think>3', "none": None, "flag": True}
    record = one(grpo(meta=repr(meta) if as_text else meta), "sft")
    assert record.response == '<think>it\'s "t"</think><answer>3</answer>'


@pytest.mark.parametrize(
    "meta",
    ["{'a': ", "__import__('os').getcwd()", "[1]", 5, "(" * 100_000, "-" * 100_000 + "1", "1" * 2_000_000],
    ids=["cut", "call", "list", "number", "brackets", "minus", "long"],
)
def test_a_bad_meta_counts_only_where_it_is_needed(meta: Any) -> None:
    assert one(grpo(meta=meta)).truth == "3"
    assert one(grpo(meta=meta, answer=TRACE), "sft").response == TRACE
    with pytest.raises(BadRecord) as caught:
        one(grpo(meta=meta), "sft")
    assert caught.value.field == "meta"


@pytest.mark.parametrize(
    ("kind", "gt", "truth"),
    [
        ("digit", 3, "3"),
        ("digit", 2.5, "2.5"),
        ("digit", " 4 ", "4"),
        ("digit", [3], "3"),
        ("mcq", "(a)", "(a)"),
        ("math", "\\[\\boxed{y = 2}\\]", "\\[\\boxed{y = 2}\\]"),
        ("open_ended", ["red", "dark red", "red"], "red; dark red"),
        ("iou", [0.62, 0.57, 0.74, 1], "[0.62, 0.57, 0.74, 1.0]"),
        ("iou", "[0.62, 0.57,0.74, 0.94]", "[0.62, 0.57, 0.74, 0.94]"),
        ("iou", "(0, 0, 0.5, 1)", "[0.0, 0.0, 0.5, 1.0]"),
        ("iou", [[0, 0, 0.5, 1]], "[0.0, 0.0, 0.5, 1.0]"),
    ],
)
def test_ground_truths_become_text(kind: str, gt: object, truth: str) -> None:
    assert one(grpo(verifier_type=kind, gt=gt)).truth == truth


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"gt": None}, "gt"),
        ({"gt": ""}, "gt"),
        ({"gt": True}, "gt"),
        ({"gt": {}}, "gt"),
        ({"gt": float("nan")}, "gt"),
        ({"gt": [1, 2]}, "gt"),
        ({"gt": "x", "verifier_type": "iou"}, "gt"),
        ({"gt": [0, 0, 1], "verifier_type": "iou"}, "gt"),
        ({"gt": [0, 0, 1, float("inf")], "verifier_type": "iou"}, "gt"),
        ({"gt": [0, 0, 1, "1"], "verifier_type": "iou"}, "gt"),
        ({"gt": [[0, 0, 1, 1], [0, 0, 1, 1]], "verifier_type": "iou"}, "gt"),
        ({"question": "  "}, "question"),
        ({"question": None}, "question"),
        ({"question": "\ud800"}, "question"),
        ({"verifier_type": "Reg-Ex"}, "verifier_type"),
        ({"verifier_type": None, "image": "mine/1.png", "id": "x"}, "verifier_type"),
        ({"image": 3}, "image"),
        ({"image": "../1.png"}, "image"),
        ({"image": "clevr_math/../../1.png"}, "image"),
        ({"image": ["clevr_math/1.png", "/"]}, "image"),
        ({"image": "a\\..\\b.png"}, "image"),
        ({"image": "a\0.png"}, "image"),
        ({"id": [1]}, "id"),
    ],
)
def test_bad_rows_name_file_row_and_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRecord) as caught:
        one(grpo(**changes))
    assert (caught.value.file, caught.value.row, caught.value.field) == ("data/f.json", 7, field)
    assert str(caught.value).startswith(f"data/f.json:7: {field}: ")


@pytest.mark.parametrize("answer", ["plain", "<think>t", 3, "<think>t</think><answer>a</answer><answer>b</answer>"])
def test_answers_that_teach_no_format_are_bad(answer: object) -> None:
    with pytest.raises(BadRecord) as caught:
        one(sft(answer=answer), "sft")
    assert caught.value.field == "answer"


def test_rows_may_have_several_images_or_none() -> None:
    assert one(grpo(image=["clevr_math/1.png", "/clevr_math/2.png"])).images == ("clevr_math/1.png", "clevr_math/2.png")
    assert one(grpo(image=None)).images == ()
    assert one(grpo(image="")).source == "clevr_math"


def test_a_row_of_another_source_keeps_its_explicit_kind() -> None:
    record = one(grpo(image="mine/1.png", id=5, verifier_type="math"))
    assert (record.source, record.kind, record.id) == ("other", "math", "5")


def test_ids_are_unique(tmp_path: Path) -> None:
    records, _ = read(tmp_path, [grpo(), grpo(), grpo(id=None), grpo(id="b")])
    assert [record.id for record in records] == ["clevr_math-1", "clevr_math-1#2", "rows.json:3", "b"]


def test_skipping_counts_by_reason(tmp_path: Path) -> None:
    rows = [grpo(), grpo(gt=None), grpo(image="../a"), grpo(image="../b"), grpo(id="z")]
    records, skipped = read(tmp_path, rows, on_bad_record="skip")
    assert [record.id for record in records] == ["clevr_math-1", "z"]
    assert skipped == {
        "gt: missing or empty; the grpo split needs a ground truth": 1,
        "image: a path with '..' or a backslash": 2,
    }
    with pytest.raises(BadRecord, match=r"rows\.json:2: gt"):
        read(tmp_path, rows)


def test_images_must_exist_below_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "clevr_math").mkdir(parents=True)
    (root / "clevr_math" / "1.png").touch()
    (tmp_path / "secret.png").touch()
    (root / "clevr_math" / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "clevr_math" / "inside.png").symlink_to(root / "clevr_math" / "1.png")
    paths = ["clevr_math/1.png", "clevr_math/inside.png", "clevr_math/link.png", "clevr_math/2.png", "clevr_math"]
    rows = [grpo(image=path, id=path) for path in [*paths, str(tmp_path / "secret.png")]]
    records, skipped = read(tmp_path, rows, on_bad_record="skip", image_root=root)
    assert [record.id for record in records] == paths[:2]
    assert skipped == {
        "image: a link out of the image root; copy or bind-mount the images below it": 1,
        "image: no such file below the image root": 3,
    }


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the project's shared folder with real records is absent")
@pytest.mark.parametrize("file", ["sft_format.json", "grpo_format.json", "readme_records.json"])
@pytest.mark.parametrize("split", ["sft", "grpo"])
def test_real_records_in_all_forms(file: str, split: Split) -> None:
    if file == "sft_format.json" and split == "grpo":
        pytest.skip("the SFT form has no ground truth")
    records = list(RecordReader(EXAMPLES / file, split=split, image_root=EXAMPLES / "images", on_bad_record="error"))
    assert [(record.source, record.kind) for record in records] == [
        ("clevr_math", "digit"),
        ("geoqa170k", "mcq"),
        ("synthesis", "math"),
        ("arxivqa", "mcq"),
        ("allava_laion", "open_ended"),
    ]
    assert records[4].images == ("allava_laion/images/100760552.jpeg",)
    if split == "sft":
        for record in records:
            assert record.response is not None
            assert record.response.startswith("<think>")
            assert record.response.endswith("</answer>")
            assert record.response.count("</think>") == record.response.count("<answer>") == 1
    else:
        assert [record.truth for record in records[:2]] == ["3", "C"]
        assert records[2].truth.endswith("Answer: y = -5 * sin(-5 * x).")
