from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from callbacks.benchmarks.dynamath import DynaMath
from callbacks.benchmarks.logicvista import LogicVista
from callbacks.benchmarks.source import load_records
from callbacks.benchmarks.wemath import WeMath
from helpers.benchmark_files import picture


class Plain(LogicVista):
    """LogicVista, whose Hub data set each test sets."""


def pixels(image: Image.Image) -> bytes:
    assert image.mode == "RGB"
    return image.tobytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `datasets.load_dataset` reads as it reads a data set on the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    return folder


def publish(folder: Path, split: str, image_column: str, **columns: list[Any]) -> None:
    features = {name: datasets.Value("string") for name in columns}
    features[image_column] = datasets.Image()
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def test_hub_rows_of_logicvista(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(
        hub,
        "test",
        "image",
        id=["v1", None],
        question=["Which?", "Wie viele?"],
        answer=["B", "A, C"],
        skill=["spatial", "numerical"],
        image=[picture(1, "RGBA"), picture(2)],
    )
    monkeypatch.setattr(Plain, "hub", (str(hub), None, "test"))
    records = load_records(Plain(), tmp_path)
    assert [(r.id, r.question, r.answer) for r in records] == [("v1", "Which?", "B"), ("2", "Wie viele?", "A, C")]
    assert records[1].origin == f"{hub}[test]:2"
    again = pickle.loads(pickle.dumps(records))  # noqa: S301  # our own
    for number, record in enumerate(again, 1):
        assert pixels(record.images[0].open()) == pixels(picture(number))


def test_hub_rows_of_dynamath_come_from_a_split_per_variant(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variant in (1, 2):
        publish(
            hub,
            f"sample_variant{variant}",
            "decoded_image",
            id=["1", "2"],
            question=[f"v{variant}", "Q"],
            image=["images/1.png", "images/2.png"],
            decoded_image=[picture(variant), picture(5)],
            ground_truth=["1.5", "A"],
            answer_type=["float", "multiple choice"],
            subject=["algebra", "algebra"],
            knowledge_level=["high school", "high school"],
        )
    monkeypatch.setattr(DynaMath, "hub", (str(hub), None, "sample_variant1+sample_variant2"))
    records = DynaMath().load(None)
    assert [record.group for record in records] == [("1", "1"), ("2", "1"), ("1", "2"), ("2", "2")]
    assert [record.id for record in records] == ["1-1", "2-1", "1-2", "2-2"]
    assert records[2].question == "v2"
    assert pixels(records[2].images[0].open()) == pixels(picture(2))


def test_hub_rows_of_wemath_split_their_options(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(
        hub,
        "testmini",
        "image_path",
        ID=["3steps_7"],
        question=["How long?"],
        option=["A. 3 cm; B. 4.5 cm; C. 1; 2; D. No correct answer"],
        answer=["D"],
        key=["3steps_multi"],
        image_path=[picture(4)],
    )
    monkeypatch.setattr(WeMath, "hub", (str(hub), None, "testmini"))
    [record] = WeMath().load(None)
    assert record.choices == ("3 cm", "4.5 cm", "1; 2", "No correct answer")
    assert record.group == ("3steps 3steps_7", "multi")
    assert pixels(record.images[0].open()) == pixels(picture(4))


def test_hub_rows_can_be_left_out(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(
        hub,
        "test",
        "image",
        id=["1", "2", "3"],
        question=["a", "b", "c"],
        answer=["A", "B", "C"],
        skill=["spatial"] * 3,
        image=[picture(n) for n in range(3)],
    )
    monkeypatch.setattr(Plain, "hub", (str(hub), None, "test"))
    monkeypatch.setattr(Plain, "keeps_hub_row", lambda _, given: given["question"] != "b")
    assert [record.id for record in load_records(Plain(), None)] == ["1", "3"]


def test_faults_of_a_data_set_are_named(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub, "test", "image", id=["1"], question=[""], answer=["A"], skill=["spatial"], image=[None])
    monkeypatch.setattr(Plain, "hub", (str(hub), None, "test"))
    with pytest.raises(ValueError, match=r"hub\[test\]:1: column 'question' is empty"):
        load_records(Plain(), None)
    monkeypatch.setattr(Plain, "hub", (str(hub), None, "train"))
    with pytest.raises(ValueError, match=rf"no file {tmp_path}/LogicVista.tsv, and the Hub data set .*split train"):
        load_records(Plain(), tmp_path)
    monkeypatch.setattr(WeMath, "hub", (str(hub), None, "test"))
    with pytest.raises(ValueError, match=r"hub\[test\]:1: column 'ID' is missing"):
        load_records(WeMath(), None)


def test_images_are_known_by_their_bytes(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(
        hub,
        "test",
        "image",
        id=["1", "2", "3", "4"],
        question=["?"] * 4,
        answer=["A"] * 4,
        skill=["spatial"] * 4,
        image=[picture(1), picture(2), picture(1), None],
    )
    monkeypatch.setattr(Plain, "hub", (str(hub), None, "test"))
    one, two, same, none = (record.images[0].fingerprint for record in load_records(Plain(), None))
    assert one == same != two
    assert none == ""


def test_an_image_without_bytes_fails_when_it_is_opened(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub, "test", "image", id=["1"], question=["?"], answer=["A"], skill=["spatial"], image=[None])
    monkeypatch.setattr(Plain, "hub", (str(hub), None, "test"))
    [record] = load_records(Plain(), None)
    with pytest.raises(ValueError, match=r"hub\[test\]:1: the data set holds no bytes"):
        record.images[0].open()


def test_an_image_outside_the_data_set_is_not_read(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(0).save(tmp_path / "private.png")
    features = datasets.Features({name: datasets.Value("string") for name in ("id", "question", "answer", "skill")})
    features["image"] = datasets.Image()
    cell = {"bytes": None, "path": str(tmp_path / "private.png")}
    columns = {"id": ["1"], "question": ["?"], "answer": ["A"], "skill": ["spatial"], "image": [cell]}
    data = datasets.Dataset.from_dict(columns, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: data)
    monkeypatch.setattr(Plain, "hub", (str(hub), None, "test"))
    [record] = load_records(Plain(), None)
    with pytest.raises(ValueError, match="the data set holds no bytes"):
        record.images[0].open()


def test_a_list_of_images_in_a_data_set(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features({name: datasets.Value("string") for name in ("id", "question", "answer", "skill")})
    features["image"] = datasets.List(datasets.Image())
    columns = {"id": ["1"], "question": ["?"], "answer": ["A"], "skill": ["x"], "image": [[picture(1), picture(2)]]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(hub / "data" / "test-00000-of-00001.parquet")
    monkeypatch.setattr(Plain, "hub", (str(hub), None, "test"))
    [record] = load_records(Plain(), None)
    assert [pixels(image.open()) for image in record.images] == [pixels(picture(1)), pixels(picture(2))]
