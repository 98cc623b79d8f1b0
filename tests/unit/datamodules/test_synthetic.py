from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datamodules.records import RecordReader
from datamodules.scenes import TASKS, Shape, Task, draw
from datamodules.sources import SOURCES
from datamodules.synthetic import SyntheticPaths, write_dataset

CUES = ("wait", "again", "double-check", "hmm", "mistake", "alternatively", "check", "i should confirm")
CENTRES = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}


def make(root: Path, **changes: Any) -> SyntheticPaths:
    options: dict[str, Any] = {"sft_count": 90, "grpo_count": 60, "test_count": 12, "seed": 3, "progress": False}
    return write_dataset(root, **(options | changes))


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SyntheticPaths:
    return make(tmp_path_factory.mktemp("synthetic") / "data")


def test_same_parameters_same_bytes_other_seed_other_bytes(data: SyntheticPaths, tmp_path: Path) -> None:
    same, other = make(tmp_path / "same"), make(tmp_path / "other", seed=4)
    assert digests(same.root) == digests(data.root)
    assert digests(other.root)["VLAA-Thinking-SFT.json"] != digests(data.root)["VLAA-Thinking-SFT.json"]


def test_a_finished_data_set_is_used_again_and_another_replaces_it(tmp_path: Path) -> None:
    root = tmp_path / "data"
    make(root, sft_count=3, grpo_count=3, test_count=1)
    (root / "mark").touch()
    make(root, sft_count=3, grpo_count=3, test_count=1)
    assert (root / "mark").exists()
    make(root, sft_count=4, grpo_count=3, test_count=1)
    assert not (root / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(ValueError, match="not empty"):
        make(tmp_path)
    assert (tmp_path / "precious").exists()


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.synthetic._write_lines", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_files_have_the_released_forms(data: SyntheticPaths) -> None:
    lines = data.data_file("sft").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 90
    assert {tuple(json.loads(line)) for line in lines} == {("image", "question", "answer")}
    rows = json.loads(data.data_file("grpo").read_text(encoding="utf-8"))
    assert len(rows) == 60
    keys = ("id", "image", "question", "gt", "caption", "meta", "verifier_type")
    assert {tuple(row) for row in rows} == {keys}
    assert {type(row["meta"]) for row in rows} == {str, dict}
    assert {type(row["gt"]) for row in rows} == {int, str, list}
    assert any(row["image"].startswith("/") for row in rows)


@pytest.mark.parametrize("split", ["sft", "grpo"])
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_the_reader_accepts_every_row(data: SyntheticPaths, split: Any, part: Any) -> None:
    file = data.data_file(split, part)
    records = list(RecordReader(file, split=split, image_root=data.image_root, on_bad_record="error"))
    assert len(records) == {"train": 90 if split == "sft" else 60}.get(part, 12)
    for record in records:
        assert record.kind == SOURCES[record.source].kind
        with Image.open(data.image_root / record.images[0]) as image:
            assert image.size == (84, 84)


def test_all_sources_and_kinds_occur(data: SyntheticPaths) -> None:
    records = list(RecordReader(data.data_file("sft"), split="sft", image_root=None, on_bad_record="error"))
    assert {record.source for record in records} == set(SOURCES)


def test_no_picture_stands_in_two_files(data: SyntheticPaths) -> None:
    by_part: dict[str, set[str]] = {}
    for name, digest in digests(data.image_root).items():
        by_part.setdefault(Path(name).stem.split("_")[0], set()).add(digest)
    assert {part: len(found) for part, found in by_part.items()} == {"sft": 90, "grpo": 60, "val": 12, "test": 12}
    assert len(set.union(*by_part.values())) == 174


def test_both_splits_are_tested_on_the_same_rows(data: SyntheticPaths) -> None:
    def read(file: Path, split: Any) -> list[tuple[Any, ...]]:
        records = RecordReader(file, split=split, image_root=None, on_bad_record="error")
        return [(record.images, record.question) for record in records]

    for part in ("val", "test"):
        sft_rows, grpo_rows = read(data.data_file("sft", part), "sft"), read(data.data_file("grpo", part), "grpo")
        assert sft_rows == grpo_rows


@pytest.mark.parametrize(("fraction", "cued"), [(0.0, {False}), (1.0, {True}), (0.5, {True, False})])
def test_the_aha_fraction_decides_which_traces_hesitate(tmp_path: Path, fraction: float, cued: set[bool]) -> None:
    paths = make(tmp_path / "data", aha_fraction=fraction)
    records = RecordReader(paths.data_file("sft"), split="sft", image_root=None, on_bad_record="error")
    assert {any(cue in str(record.response).lower() for cue in CUES) for record in records} == cued


def test_variants_differ_from_the_sft_rows_by_their_responses_alone(tmp_path: Path) -> None:
    paths = make(tmp_path / "data", direct_count=30)
    rows, aha, plain, direct = (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for file in (paths.data_file("sft"), paths.variant("aha"), paths.variant("plain"), paths.variant("direct"))
    )
    for ours, hesitant, straight in zip(rows, aha, plain, strict=True):
        assert {ours["image"]} == {hesitant["image"], straight["image"]}
        assert {ours["question"]} == {hesitant["question"], straight["question"]}
        assert ours["answer"] in {hesitant["answer"], straight["answer"]}
        assert ours["answer"].partition("</think>")[2] == straight["answer"].partition("</think>")[2]
        assert any(cue in hesitant["answer"].lower() for cue in CUES)
        assert not any(cue in straight["answer"].lower() for cue in CUES)
    assert len(direct) == 30
    assert all(re.fullmatch(r"<answer>[^<>]+</answer>", row["answer"]) for row in direct)
    assert not {row["image"] for row in direct} & {row["image"] for row in rows}
    records = RecordReader(paths.variant("direct"), split="sft", image_root=paths.image_root, on_bad_record="error")
    assert [record.response for record in records] == [row["answer"] for row in direct]


def test_direct_rows_leave_the_others_as_they_are(data: SyntheticPaths, tmp_path: Path) -> None:
    assert not data.variant("direct").exists()
    changed = digests(make(tmp_path / "data", direct_count=9).root)
    assert {name for name, digest in digests(data.root).items() if changed[name] != digest} == {"manifest.json"}


def test_weights_choose_the_sources(tmp_path: Path) -> None:
    paths = make(tmp_path / "data", weights={"clevr_math": 3, "coco": 1}, sft_count=200)
    records = RecordReader(paths.data_file("sft"), split="sft", image_root=None, on_bad_record="error")
    counts = Counter(record.source for record in records)
    assert set(counts) == {"clevr_math", "coco"}
    assert 130 <= counts["clevr_math"] <= 170


def test_larger_images_have_more_cells(tmp_path: Path) -> None:
    paths = make(tmp_path / "data", image_size=112, weights={"coco": 1}, grpo_count=30)
    rows = json.loads(paths.data_file("grpo").read_text(encoding="utf-8"))
    assert {edge for row in rows for edge in row["gt"]} == {0.0, 0.25, 0.5, 0.75, 1.0}


@pytest.mark.parametrize(
    "changes",
    [{"image_size": 85}, {"image_size": 56}, {"aha_fraction": 1.5}, {"weights": {"x": 1}}, {"weights": {"coco": 0}},
     {"weights": {}}, {"sft_count": -1}],
)  # fmt: skip
def test_senseless_parameters_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        make(tmp_path / "data", **changes)


def answer_from_pixels(source: str, image: Image.Image, question: str) -> str:
    """Reads counts and places off the picture itself: a cell's colour is that of its middle, squares fill the cell."""
    cells = {}
    for row in range(3):
        for column in range(3):
            middle = image.getpixel((column * 28 + 14, row * 28 + 14))
            for color, value in CENTRES.items():
                if middle == value:
                    cells[column, row] = color, image.getpixel((column * 28 + 1, row * 28 + 1)) == value
    counts = Counter(color for color, _ in cells.values())
    words = question.split()
    squares = {color: place for place, (color, whole) in cells.items() if whole}
    match source:
        case "clevr_math":
            answer = str(counts[words[2]])
        case "arxivqa":
            options = dict(line.split(": ") for line in question.splitlines()[2:])
            answer = next(letter for letter, count in options.items() if int(count) == counts[words[2]])
        case "synthesis":
            answer = f"y = {counts['red']} * x + {counts['blue']}"
        case "geoqa170k":
            answer = "ABCD"[list(CENTRES).index(next(iter(squares)))]
        case "vizwiz":
            answer = next(iter(counts))
        case "docvqa":
            answer = " and ".join(f"{n} {color} circle{'s' * (n > 1)}" for color, n in sorted(counts.items()))
        case _:
            column, row = squares[words[3]] if source == "vg" else next(iter(squares.values()))
            edge = (0.0, 0.33, 0.67, 1.0)
            answer = str([edge[column], edge[row], edge[column + 1], edge[row + 1]])
    return answer


def test_answers_follow_from_the_pixels(data: SyntheticPaths) -> None:
    seen = 0
    for record in RecordReader(data.data_file("sft"), split="sft", image_root=None, on_bad_record="error"):
        if record.source == "allava_laion":
            continue
        with Image.open(data.image_root / record.images[0]) as image:
            expected = answer_from_pixels(record.source, image, record.question)
        assert str(record.response).endswith(f"<answer>{expected}</answer>"), record.question
        seen += 1
    assert seen > 60


def test_drawing_fills_the_box() -> None:
    image = draw((Shape("square", "red", 1, 0, (30, 2, 45, 17)),), 3)
    assert image.getpixel((30, 2)) == image.getpixel((45, 17)) == (255, 0, 0)
    assert image.getpixel((46, 17)) == image.getpixel((29, 2)) == (255, 255, 255)


def test_every_source_has_a_task() -> None:
    assert set(TASKS) == set(SOURCES)
    assert Task.__slots__
