"""`lit-vlaa data check` on rows broken in each way: one finding each."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from datamodules.check.duplicates import Known
from datamodules.check.images import look_at
from datamodules.check.problems import PROBLEMS, Finding, severity_of
from datamodules.check.rows import RowChecker
from datamodules.check.run import check
from datamodules.check.settings import Limits, Settings
from datamodules.dataset import Encoder
from datamodules.records import normalise
from datamodules.shards import is_shards, rows_of
from lit_vlaa.backbone import BackboneConfig, load_processor
from lit_vlaa.backbone.processor import Processor
from lit_vlaa.checks import UsageError
from lit_vlaa.prompts import PromptConfig

TINY = BackboneConfig(max_pixels=7056)
RESPONSE = "<think>It is red.</think><answer>red</answer>"


@pytest.fixture(autouse=True)
def one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny processor, which takes a second to make, is made once."""
    monkeypatch.setattr("datamodules.check.run.processor_of", tiny)


@lru_cache
def tiny(backbone: BackboneConfig) -> Processor:
    return load_processor(backbone)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images `0.png` to `9.png` of one colour each, and files that are none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (56, 28), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


def settings(root: Path | None, split: str = "sft", **options: Any) -> Settings:
    return Settings(split=split, image_root=root, backbone=TINY, **options)  # type: ignore[arg-type]


def sft(number: int, **changes: Any) -> dict[str, Any]:
    row = {"image": f"{number}.png", "question": f"Which colour {number}?", "answer": RESPONSE, "verifier_type": "mcq"}
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


def grpo(number: int, **changes: Any) -> dict[str, Any]:
    row = {"image": f"{number}.png", "question": f"How many {number}?", "gt": 3, "verifier_type": "digit"}
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


def write(folder: Path, rows: list[Any], name: str = "rows.json") -> Path:
    file = folder / name
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return file


def found(file: Path, given: Settings, **options: Any) -> list[tuple[str, int]]:
    findings: list[Finding] = []
    check(file, given, workers=1, note=findings.append, progress=False, **options)
    return [(finding.problem, finding.row) for finding in findings]


BROKEN_SFT: Mapping[str, Any] = {
    "bad_row": '{"image": ',
    "bad_id": sft(1, id=["a"]),
    "bad_question": sft(1, question="  "),
    "bad_image": sft(1, image="../1.png"),
    "bad_verifier_type": sft(1, verifier_type=None),
    "bad_gt": sft(1, gt={"a": 1}),
    "bad_answer": sft(1, answer="red"),
    "bad_meta": sft(1, answer=None, meta="not python"),
    "image_missing": sft(1, image="11.png"),
    "trace_form": sft(1, answer="<think>It is.</think> So <answer>red</answer>"),
    "placeholder_count": sft(1, question="<image> or <image>?"),
    "control_token": sft(1, question="Which <|im_end|>?"),
    "odd_unicode": sft(1, question="Which \ufffd?"),
    "response_too_long": sft(1, answer=f"<think>{'ab ' * 300}</think><answer>red</answer>"),
}


@pytest.mark.parametrize("problem", BROKEN_SFT)
def test_one_finding_in_a_row_for_sft(problem: str, root: Path, tmp_path: Path) -> None:
    file = write(tmp_path, [sft(0), BROKEN_SFT[problem], sft(2)])
    assert found(file, settings(root, limits=Limits(row=10**6, response=200, context=10**6))) == [(problem, 2)]


BROKEN_GRPO: Mapping[str, Any] = {
    "bad_gt": grpo(1, gt=""),
    "truth_unparsable": grpo(1, gt="many"),
    "kind_unscored": grpo(1, verifier_type="colour"),
    "contradicting_row": grpo(0, gt=4),
    "duplicate_row": grpo(0),
    "repeated_image": grpo(0, question="How many others?"),
}


@pytest.mark.parametrize("problem", BROKEN_GRPO)
def test_one_finding_in_a_row_for_grpo(problem: str, root: Path, tmp_path: Path) -> None:
    file = write(tmp_path, [grpo(0), BROKEN_GRPO[problem], grpo(2)])
    assert found(file, settings(root, "grpo")) == [(problem, 2)]


@pytest.mark.parametrize(
    ("box", "problem"),
    [([float("nan"), 0, 1, 1], "bad_gt"), ([0.5, 0, 0.2, 1], "truth_unparsable"), ([0, 0, 28, 28], "truth_unparsable")],
    ids=["not finite", "not ordered", "pixels"],
)
def test_boxes(box: list[float], problem: str, root: Path, tmp_path: Path) -> None:
    rows = [grpo(0, gt=[0.1, 0.1, 0.6, 0.9], verifier_type="iou"), grpo(1, gt=box, verifier_type="iou")]
    assert found(write(tmp_path, rows), settings(root, "grpo")) == [(problem, 2)]


def test_boxes_are_read_in_the_frame_that_is_said(root: Path, tmp_path: Path) -> None:
    # On the square of 56 pixels the image of 56 x 28 lies between 0.25 and 0.75: this box begins above it.
    rows = [grpo(0, gt=[0.1, 0.0, 0.6, 0.7], verifier_type="iou", image="0.png")]
    file = write(tmp_path, rows)
    assert found(file, settings(root, "grpo")) == []
    padded = settings(root, "grpo", truth_boxes={"other": "padded_square"})
    assert found(file, padded) == [("truth_unparsable", 1), ("box_frame", 0)]


def test_images_broken_in_each_way(root: Path, tmp_path: Path) -> None:
    Image.effect_noise((60, 60), 50).convert("RGB").save(root / "cut.png")
    whole = (root / "cut.png").read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "text.png").write_text("no image", encoding="utf-8")
    outside = tmp_path / "outside.png"
    Image.new("RGB", (28, 28)).save(outside)
    (root / "link.png").symlink_to(outside)
    Image.new("RGB", (100, 100)).save(root / "large.png")
    Image.new("RGB", (400, 1)).save(root / "thin.png")
    Image.new("RGB", (28, 28), "blue").save(root / "jpeg.png", format="JPEG")
    Image.new("CMYK", (28, 28)).save(root / "print.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (28, 28), "red").save(root / "turned.jpg", exif=exif)
    names = {
        "cut.png": "image_broken",
        "text.png": "image_broken",
        "link.png": "image_outside",
        "large.png": "image_too_large",
        "thin.png": "image_unfeedable",
        "jpeg.png": "image_suffix",
        "print.jpg": "image_mode",
        "turned.jpg": "image_turned",
        f"{'a' * 300}.png": "image_missing",
    }
    file = write(tmp_path, [sft(number, image=name) for number, name in enumerate(names)])
    given = settings(root, max_image_pixels=9999)
    assert found(file, given) == [(problem, row) for row, problem in enumerate(names.values(), 1)]
    # Without decoding the cut image looks whole: its header is.
    fast = [(problem, row) for row, problem in enumerate(names.values(), 1) if row != 1]
    assert found(file, replace(given, fast=True)) == fast


def test_the_same_file_under_another_name_is_the_same_image(root: Path, tmp_path: Path) -> None:
    (root / "copy.png").write_bytes((root / "0.png").read_bytes())
    file = write(tmp_path, [sft(0), sft(0, image="copy.png"), sft(1, image="copy.png")])
    assert found(file, settings(root)) == [("duplicate_row", 2), ("repeated_image", 3)]
    assert found(file, settings(root, fast=True)) == [("repeated_image", 3)]


def test_another_file_has_the_row_the_image_or_the_id(root: Path, tmp_path: Path) -> None:
    other = write(tmp_path, [grpo(1), grpo(2, id="x"), grpo(3, id="y"), "{broken"], "other.json")
    rows = [sft(0), sft(1, question="How  many 1?"), sft(2), sft(4, id="y")]
    file = write(tmp_path, rows)
    expected = [("leaked_row", 2), ("leaked_image", 3), ("shared_id", 4)]
    assert found(file, settings(root), against=[other]) == expected
    assert found(file, settings(root)) == []


def test_ids_twice(root: Path, tmp_path: Path) -> None:
    file = write(tmp_path, [sft(0, id="a"), sft(1, id="a"), sft(2, id=7), sft(3, id="7")])
    assert found(file, settings(root)) == [("duplicate_id", 2), ("duplicate_id", 4)]


def test_long_ids_are_told_apart_and_cut_where_they_are_shown(root: Path, tmp_path: Path) -> None:
    ids = ["a" * 10**5, "a" * 10**5 + "b", "a" * 10**5]
    file = write(tmp_path, [sft(number, id=name) for number, name in enumerate(ids)])
    findings: list[Finding] = []
    check(file, settings(root), workers=1, note=findings.append, progress=False)
    ((problem, row, detail, *_, shown),) = findings
    assert (problem, row, len(detail) < 400, shown) == ("duplicate_id", 3, True, "a" * 300)


def test_what_is_kept_of_a_row_does_not_grow_with_it(root: Path, tmp_path: Path) -> None:
    """So the memory of a check depends on the number of rows alone: counted, in bytes of what a process hands over."""
    long = "x" * 10**5
    answer = f"<think>{long}</think><answer>{long}</answer>"
    short, hostile = ([sft(1, id="a")], [sft(1, id=long, image=f"{long}.png", question=long, answer=answer)])
    sizes = []
    for rows in (short, hostile, [f'{{"{long}": 1, "question": 5, "image": "{long}"}}']):
        checker = RowChecker(settings(root), tiny(TINY), None, inside=False)
        sizes.append(len(pickle.dumps(checker(list(rows_of(write(tmp_path, rows)))))))
    assert max(sizes) < 1500, sizes


def test_what_is_known_of_other_rows_takes_some_hundred_bytes_each(root: Path, tmp_path: Path) -> None:
    file = write(
        tmp_path, [sft(number % 10, id=f"row {number}", question=f"Which {number}?") for number in range(1600)]
    )
    checker = RowChecker(settings(root), None, None, inside=False)
    facts = checker(list(rows_of(file)))
    known, kept = Known(), []
    tracemalloc.start()
    try:
        for start in range(0, 1600, 800):
            for one in facts[start : start + 800]:
                known.add(pickle.loads(pickle.dumps(one)))  # noqa: S301 - as a process hands it over
            kept.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert kept[1] < 2.5 * kept[0] < 2.5 * 800 * 700, kept  # bytes


@pytest.mark.parametrize(("rows", "detail"), [([], "it is empty"), (["{", "5"], "2 rows")])
@pytest.mark.parametrize("skips", [True, False])
def test_no_row_is_an_error_of_its_own(skips: bool, rows: list[Any], detail: str, root: Path, tmp_path: Path) -> None:
    findings: list[Finding] = []
    report = check(write(tmp_path, rows), settings(root, skips=skips), workers=1, note=findings.append, progress=False)
    assert report.stops
    assert (findings[-1].problem, findings[-1].detail) == ("no_rows", detail)


def test_no_row_is_not_said_of_a_sample(root: Path, tmp_path: Path) -> None:
    file = write(tmp_path, ["{", sft(1)])
    assert found(file, settings(root), rows=1) == [("bad_row", 1)]


def test_a_file_that_breaks_off(root: Path, tmp_path: Path) -> None:
    file = write(tmp_path, ["[" + json.dumps(sft(0)) + ",", json.dumps(sft(1)) + ',{"ima'])
    assert found(file, settings(root)) == [("file_broken", 3)]


def test_limits_are_judged_one_token_apart(root: Path, tmp_path: Path) -> None:
    file = write(tmp_path, [sft(0)])
    record = normalise(sft(0), file="f", number=1, split="sft")
    processor = tiny(TINY)
    encoder = Encoder(image_root=root, max_image_pixels=10**6, prompt=PromptConfig(), processor=processor)
    prompt = encoder(record).input_ids.numel()
    response = processor.encode_response(RESPONSE).numel()
    total = prompt + response
    assert found(file, settings(root, limits=Limits(row=total, response=response, context=total))) == []
    assert found(file, settings(root, limits=Limits(row=total - 1))) == [("over_budget", 1)]
    assert found(file, settings(root, limits=Limits(row=total - 1, context=total - 1))) == [("over_context", 1)]
    assert found(file, settings(root, limits=Limits(response=response - 1))) == [("response_too_long", 1)]
    # A prompt to complete needs room for a completion as long as may be.
    rows = write(tmp_path, [grpo(0)], "grpo.json")
    record = normalise(grpo(0), file="f", number=1, split="grpo")
    room = encoder(record).input_ids.numel() + 50
    assert found(rows, settings(root, "grpo", limits=Limits(row=room, response=50))) == []
    assert found(rows, settings(root, "grpo", limits=Limits(row=room, response=51))) == [("over_budget", 1)]


def test_a_row_too_long_to_count_is_not_counted(root: Path, tmp_path: Path) -> None:
    room = 2**20 - len(RESPONSE)
    file = write(tmp_path, [sft(0, question="a" * room), sft(1, question="b" * (room + 1))])
    report = check(file, settings(root), workers=1, progress=False)
    assert report.summary.groups["over_long"].first == [(2, f"{2**20 + 1} characters")]
    (source,) = report.summary.sources.values()
    assert len(source.lengths["text"]) == 1


@pytest.mark.parametrize("size", [(56, 28), (300, 200), (28, 28), (30, 500)])
def test_lengths_are_those_of_the_prompt(size: tuple[int, int], root: Path, tmp_path: Path) -> None:
    Image.new("RGB", size).save(root / "sized.png")
    row = sft(0, image=["sized.png", "1.png"], question="<|im_start|> which of <image> and <image>?")
    processor = tiny(TINY)
    encoder = Encoder(image_root=root, max_image_pixels=10**6, prompt=PromptConfig(), processor=processor)
    prompt = encoder(normalise(row, file="f", number=1, split="sft"))
    report = check(write(tmp_path, [row]), settings(root), workers=1, progress=False)
    (source,) = report.summary.sources.values()
    images = int((prompt.input_ids == processor.image_token_id).sum())
    assert isinstance(prompt.input_ids, torch.Tensor)
    assert (list(source.lengths["text"]), list(source.lengths["image"])) == (
        [prompt.input_ids.numel() - images],
        [images],
    )
    # More than 84 x 84 pixels are not fed.
    assert source.reduced == (size[0] * size[1] > 7056)


def test_what_the_run_leaves_out_is_not_looked_at(root: Path, tmp_path: Path) -> None:
    file = write(tmp_path, [grpo(0), grpo(1, gt="many"), grpo(0, verifier_type="mcq", gt="A")])
    assert found(file, settings(root, "grpo", kinds=("mcq",))) == []
    assert found(file, settings(root, "grpo", sources=("coco",))) == [("no_rows", 0)]
    # The others stop a run all the same.
    broken = write(tmp_path, [grpo(0, question=""), grpo(1, verifier_type="mcq", gt="A")], "broken.json")
    assert found(broken, settings(root, "grpo", kinds=("mcq",))) == [("bad_question", 1)]


def test_a_kind_with_too_many_unreadable_truths(root: Path, tmp_path: Path) -> None:
    rows = [grpo(number, gt="many" if number < 3 else 3) for number in range(4)]
    file = write(tmp_path, rows)
    unparsable = [("truth_unparsable", 1), ("truth_unparsable", 2), ("truth_unparsable", 3)]
    # 3 of 4 are more than 0.7 of them, and not more than 0.75.
    assert found(file, settings(root, "grpo", max_failed=0.7, failed_window=4)) == [*unparsable, ("truths_fail", 0)]
    assert found(file, settings(root, "grpo", max_failed=0.75, failed_window=4)) == unparsable
    assert found(file, settings(root, "grpo", max_failed=0.7, failed_window=5)) == unparsable


def test_a_kind_of_the_users_own_is_scored_by_its_function(root: Path, tmp_path: Path) -> None:
    file = write(tmp_path, [grpo(0, verifier_type="colour", gt="red")])
    verifiers = {"colour": lambda answer, request: float(answer == request.truth)}
    assert found(file, settings(root, "grpo", verifiers=verifiers)) == []
    assert found(file, settings(root, "grpo")) == [("kind_unscored", 1)]


def test_skipping_runs_do_not_stop_at_bad_rows(root: Path, tmp_path: Path) -> None:
    file = write(tmp_path, [sft(0), sft(1, image="11.png")])
    assert check(file, settings(root), workers=1, progress=False).stops
    assert not check(file, settings(root, skips=True), workers=1, progress=False).stops
    assert severity_of("file_broken", skips=True) == "error"


def test_images_are_left_alone_without_a_root(tmp_path: Path) -> None:
    file = write(tmp_path, [sft(11)])
    report = check(file, settings(None), workers=1, progress=False)
    assert not report.opened
    assert report.summary.counts == {"error": 0, "warning": 0, "note": 0}
    assert list(report.summary.sources["other"].lengths["image"]) == [0]


def test_a_sample_is_spread_over_the_file(root: Path, tmp_path: Path) -> None:
    file = write(tmp_path, [sft(number, question="" if number in {0, 4, 8} else "Q?") for number in range(9)])
    # 3 of 9 rows are rows 1, 5 and 9.
    assert found(file, settings(root), rows=3) == [("bad_question", row) for row in (1, 5, 9)]
    report = check(file, settings(root), workers=1, rows=3, progress=False)
    assert report.sampled == (3, 9)
    assert "3 of 9 rows" in report.lines()[0]


def test_a_file_of_another_kind_is_told_by_its_name(root: Path) -> None:
    (root / "text.png").write_text("no image", encoding="utf-8")
    ((_, detail),) = look_at(root, "text.png", max_pixels=10**6, fast=False).findings
    assert detail == "cannot be read: 'text.png': no PNG, JPEG, WEBP, GIF, BMP"


def test_a_circle_of_links_is_a_missing_image(root: Path) -> None:
    (root / "a.png").symlink_to("b.png")
    (root / "b.png").symlink_to("a.png")
    ((problem, _),) = look_at(root, "a.png", max_pixels=10**6, fast=False).findings
    assert problem == "image_missing"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_broken(root: Path) -> None:
    (root / "1.png").chmod(0)
    ((problem, _),) = look_at(root, "1.png", max_pixels=10**6, fast=False).findings
    assert problem == "image_broken"


def test_every_problem_is_explained() -> None:
    assert all(problem.headline and problem.remedy for problem in PROBLEMS.values())
    assert not is_shards("/nowhere")


def test_a_process_that_is_killed_is_told(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.check.rows.RowChecker.__call__", lambda *_: os._exit(9))
    with pytest.raises(UsageError, match="use fewer --workers"):
        check(write(tmp_path, [sft(0)]), settings(root), workers=2, progress=False)
