"""`lit-vlaa data check` on whole data sets, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules import convert
from datamodules.synthetic import SyntheticPaths, write_dataset
from helpers.commands import lit, started

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "quickstart"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SyntheticPaths:
    return write_dataset(
        tmp_path_factory.mktemp("data") / "set", sft_count=90, grpo_count=90, test_count=18, progress=False
    )


def numbers(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    del read["seconds"]
    return read


@pytest.mark.parametrize("split", ["sft", "grpo"])
def test_clean_data_give_no_finding(
    split: Any, data: SyntheticPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = ["grpo" if split == "sft" else "sft"]
    words = ["--data-file", data.data_file(split), "--image-root", data.image_root, "--output-dir", tmp_path / "out"]
    words += ["--config", CONFIGS / f"{split}.yaml", "--workers", "1"]
    words += ["--against", *(data.data_file(other) for other in others), data.data_file(split, "val")]  # type: ignore[arg-type]
    assert lit("data", "check", *map(str, words)) == 0
    assert "nothing found" in capsys.readouterr().out
    found = numbers(tmp_path / "out")
    assert (found["rows"], found["split"], found["problems"]) == (90, split, {})
    # The quickstart's: its limits, and nine image tokens of 84 x 84 pixels.
    assert found["limits"] == {"row": 8192, "response": 48 if split == "grpo" else 800, "context": 8192}
    assert {source["tokens_by_part"]["image"]["max"] for source in found["sources"].values()} == {9}
    assert (tmp_path / "out" / "problems.jsonl").read_text(encoding="ascii") == ""
    assert (tmp_path / "out" / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "report.md").read_text(encoding="utf-8").startswith("# Check of ")
    if split == "grpo":
        assert sum(kind["scored"] for kind in found["truths"].values()) == 90
    else:
        assert sum(source["traces"] for source in found["sources"].values()) == 90


@pytest.fixture(scope="module")
def damaged(data: SyntheticPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GRPO rows with an image cut off, an image gone, a truth that is none and a row that is there twice."""
    folder = tmp_path_factory.mktemp("damaged")
    rows = json.loads(data.data_file("grpo").read_text(encoding="utf-8"))
    digits = next(row for row in rows if row["verifier_type"] == "digit")
    digits["gt"] = "many"
    rows[30]["image"] = "coco/train2017/none.png"
    rows.append(next(row for row in rows[:30] if row["verifier_type"] == "mcq"))
    (folder / "cut.png").write_bytes((data.image_root / rows[50]["image"].lstrip("/")).read_bytes()[:90])
    rows[50]["image"] = "coco/train2017/cut.png"
    images = folder / "images"
    images.mkdir()
    for source in data.image_root.iterdir():
        if source.name != "coco":
            (images / source.name).mkdir()
    for path in sorted(data.image_root.rglob("*.png")):
        target = images / path.relative_to(data.image_root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (folder / "cut.png").rename(images / "coco" / "train2017" / "cut.png")
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def check(folder: Path, output: Path, *words: str) -> int:
    common = ["--data-file", str(folder / "rows.json"), "--image-root", str(folder / "images")]
    return lit("data", "check", *common, "--output-dir", str(output), *words)


def test_any_number_of_workers_finds_the_same(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(damaged, tmp_path / "one", "--workers", "1") == 1
    assert check(damaged, tmp_path / "two", "--workers", "2") == 1
    assert numbers(tmp_path / "one") == numbers(tmp_path / "two")
    first, second = ((tmp_path / name / "problems.jsonl").read_bytes() for name in ("one", "two"))
    assert first == second
    found = [(line["problem"], line["row"]) for line in map(json.loads, first.splitlines())]
    rows = json.loads((damaged / "rows.json").read_text(encoding="utf-8"))
    digit = next(place for place, row in enumerate(rows, 1) if row["gt"] == "many")
    expected = [("truth_unparsable", digit), ("image_missing", 31), ("image_broken", 51)]
    expected += [("duplicate_id", 91), ("duplicate_row", 91)]
    assert sorted(found) == sorted(expected)
    assert "2 error(s), 3 warning(s), 0 note(s): a run would stop" in capsys.readouterr().out


def test_fast_finds_all_but_what_decoding_shows(damaged: Path, tmp_path: Path) -> None:
    assert check(damaged, tmp_path, "--workers", "1", "--fast") == 1
    found = numbers(tmp_path)
    assert not found["decoded"]
    assert set(found["problems"]) == {"truth_unparsable", "image_missing", "duplicate_id", "duplicate_row"}


def test_shards_are_checked_like_the_file(data: SyntheticPaths, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    file = data.data_file("sft")
    convert.run(output_dir=shards, data_file=file, image_root=data.image_root, split="sft", shard_mb=0.01, workers=1)
    common = ["data", "check", "--split", "sft", "--workers", "1"]
    assert lit(*common, "--data-file", str(shards), "--output-dir", str(tmp_path / "a")) == 0
    words = ["--data-file", str(file), "--image-root", str(data.image_root)]
    assert lit(*common, *words, "--output-dir", str(tmp_path / "b")) == 0
    from_shards, from_file = numbers(tmp_path / "a"), numbers(tmp_path / "b")
    assert from_shards.pop("file") != from_file.pop("file")
    assert from_shards == from_file
    # The same bytes in a shard and in a folder are the same image.
    assert lit(*common, *words, "--against", str(shards), "--output-dir", str(tmp_path / "c")) == 1
    assert numbers(tmp_path / "c")["problems"]["leaked_row"]["count"] == 90


def test_shards_have_the_findings_of_their_file(damaged: Path, tmp_path: Path) -> None:
    """With the rows' numbers in the file, shard borders or not; embedded, the row without an image is left out."""
    common = {"data_file": damaged / "rows.json", "image_root": damaged / "images", "shard_mb": 0.005, "workers": 1}
    for images in ("link", "embed"):
        convert.run(output_dir=tmp_path / images, images=images, on_bad_record="skip", **common)  # type: ignore[arg-type]
    assert check(damaged, tmp_path / "file", "--workers", "1") == 1
    root = ["--image-root", str(damaged / "images")]
    for images, own in (("link", root), ("embed", [])):
        words = [
            "--data-file",
            str(tmp_path / images),
            "--output-dir",
            str(tmp_path / f"of_{images}"),
            "--split",
            "grpo",
        ]
        assert lit("data", "check", *words, *own, "--workers", "1") == 1
    file, link, embed = ((tmp_path / name / "problems.jsonl").read_bytes() for name in ("file", "of_link", "of_embed"))
    assert link == file
    assert embed.splitlines() == [line for line in file.splitlines() if b"image_missing" not in line]


def test_the_configuration_names_file_root_and_filters(data: SyntheticPaths, tmp_path: Path) -> None:
    config = yaml.safe_load((CONFIGS / "grpo.yaml").read_text(encoding="utf-8"))
    own = {"data_file": str(data.data_file("grpo")), "image_root": str(data.image_root), "kinds": ["digit", "iou"]}
    config["data"]["init_args"] |= own
    config["model"]["init_args"]["max_tokens_per_micro_batch"] = 60
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert lit("data", "check", "--config", str(file), "--workers", "1", "--output-dir", str(tmp_path / "out")) == 0
    found = numbers(tmp_path / "out")
    assert set(found["truths"]) == {"digit", "iou"}
    assert found["rows_left_out"] == 90 - sum(kind["scored"] for kind in found["truths"].values())
    # Every prompt of these has more than 12 tokens, and completions of 48 are to come.
    assert found["problems"]["over_budget"]["count"] == 90 - found["rows_left_out"]


@pytest.mark.parametrize(
    ("form", "split", "truths"), [("sft_format", "sft", 0), ("grpo_format", "grpo", 5), ("readme_records", "grpo", 5)]
)
def test_real_records(form: str, split: str, truths: int, shared_examples: Path, tmp_path: Path) -> None:
    words = ["--data-file", shared_examples / f"{form}.json", "--image-root", shared_examples / "images"]
    assert lit("data", "check", *map(str, words), "--workers", "1", "--output-dir", str(tmp_path)) == 0
    found = numbers(tmp_path)
    assert (found["rows"], found["split"], found["findings"]["error"]) == (5, split, 0)
    assert sum(kind["scored"] for kind in found["truths"].values()) == truths
    assert sum(source["rows"] for source in found["sources"].values()) == 5
    assert set(found["sources"]) == {"allava_laion", "arxivqa", "clevr_math", "geoqa170k", "synthesis"}


@pytest.mark.parametrize(
    ("workers", "number"),
    [("1", signal.SIGINT), ("2", signal.SIGINT), ("2", signal.SIGKILL)],
    ids=["ctrl_c-1", "ctrl_c-2", "killed-2"],
)
def test_a_signal_leaves_no_process(workers: str, number: signal.Signals, data: SyntheticPaths, tmp_path: Path) -> None:
    rows = json.loads(data.data_file("grpo").read_text(encoding="utf-8"))
    file = tmp_path / "many.json"
    file.write_text("\n".join([*map(json.dumps, rows)] * 2000), encoding="utf-8")
    words = ["--data-file", file, "--image-root", data.image_root, "--output-dir", tmp_path / "out"]
    log = tmp_path / "log"
    process = started(["data", "check", *map(str, words), "--workers", workers], log, cwd=tmp_path)
    try:
        part = tmp_path / "out" / ".problems.jsonl.part"
        limit = time.monotonic() + 200
        while not (part.exists() and part.stat().st_size):  # the first duplicates are written
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: to all processes
            assert process.wait() == 130
            errors = log.read_text()
            assert "lit-vlaa: interrupted: the report was not written" in errors
            assert "Traceback" not in errors
            assert list((tmp_path / "out").iterdir()) == []
        else:
            os.kill(process.pid, number)
            process.wait()
        limit = time.monotonic() + 30
        while any_left(process.pid):
            assert time.monotonic() < limit
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def any_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data-file is missing"),
        (["--data-file", "/nowhere.json"], "--data-file /nowhere.json does not exist"),
        (["--data-file", "FILE", "--image-root", "/nowhere"], "--image-root /nowhere is no folder"),
        (["--data-file", "FILE", "--against", "/nowhere"], "--against /nowhere does not exist"),
        (["--data-file", "FILE", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["--data-file", "FILE", "--max-image-pixels", "0"], "--max-image-pixels must be at least 1, got 0"),
        (["--data-file", "FILE", "--output-dir", "FILE"], "is a file; name a folder"),
        (["--data-file", "FILE", "--config", "CONFIG"], "--image-root /none is no folder, as --config has it"),
        (["--data-file", "FILE", "--split", "rl"], "--split: invalid choice: 'rl'"),
        (
            ["--data-file", "FOLDER"],
            "is a folder without manifest.json; `lit-vlaa data convert` writes that at its end",
        ),
    ],
    ids=["no file", "file", "root", "against", "workers", "pixels", "output", "config", "split", "folder"],
)
def test_errors_name_flag_and_value(
    words: list[str], message: str, data: SyntheticPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    sft = yaml.safe_load((CONFIGS / "sft.yaml").read_text(encoding="utf-8"))
    sft["data"]["init_args"]["image_root"] = "/none"
    config.write_text(yaml.safe_dump(sft), encoding="utf-8")
    places = {"FILE": str(data.data_file("sft")), "FOLDER": str(tmp_path), "CONFIG": str(config)}
    assert lit("data", "check", *(places.get(word, word) for word in words)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["problems.jsonl", "report.json"])
def test_no_report_takes_the_place_of_the_rows(
    name: str, data: SyntheticPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / name
    rows.write_bytes(data.data_file("sft").read_bytes())
    assert lit("data", "check", "--data-file", str(rows), "--output-dir", str(tmp_path)) == 2
    assert f"would overwrite {rows.resolve()}; give another folder" in capsys.readouterr().err
    assert rows.read_bytes() == data.data_file("sft").read_bytes()


def test_an_empty_file_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    file.write_text("[]", encoding="utf-8")
    assert lit("data", "check", "--data-file", str(file), "--workers", "1") == 1
    assert "error: no row that a run can use: 1 (the file)\n  it is empty\n" in capsys.readouterr().out


def test_pixels_of_the_flag_win(data: SyntheticPaths, tmp_path: Path) -> None:
    words = ["--data-file", str(data.data_file("sft")), "--image-root", str(data.image_root), "--workers", "1"]
    assert lit("data", "check", *words, "--max-image-pixels", "7055", "--output-dir", str(tmp_path)) == 1
    assert numbers(tmp_path)["problems"]["image_too_large"]["count"] == 90
