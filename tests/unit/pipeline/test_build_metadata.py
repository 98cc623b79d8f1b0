"""Adapters and step 1."""

from __future__ import annotations

import io
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.builds import PROMPTS, make_config, make_source, questions
from lit_vlaa.checks import UsageError
from lit_vlaa.pipeline.config import load
from lit_vlaa.pipeline.metadata import in_shard, read_metadata, source_state
from lit_vlaa.pipeline.rows import Row, StepFiles

EXAMPLES = Path("/work/shared/data/vlaa_examples")


def read(file: Path, *, shard: tuple[int, int] = (1, 1), limit: int | None = None) -> tuple[list[Row], list[str]]:
    files = StepFiles(file.parent / "steps", "metadata")
    with files.writing("f") as writer:
        read_metadata(load(file), writer, base=file.parent, shard=shard, limit=limit, tick=lambda: None)
    reasons = [json.loads(line)["reason"] for line in files.rejects.read_text().splitlines()]
    return list(files.read()), reasons


def one_source(root: Path, source: dict[str, Any], **changes: Any) -> Path:
    return make_config(root, "http://127.0.0.1:1/v1", sources=[source], **changes)


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a.png", "clevr_math/c.png", "synthesis/s.png", "allava_laion/l.png", "arxivqa/x.png"):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png())
    return tmp_path


def test_released_rows_keep_their_verifier_and_their_own_context(images: Path) -> None:
    rows = [
        {"id": "clevr_math-1", "image": "clevr_math/c.png", "question": "How many?", "gt": 3,
         "caption": "old", "meta": "{'rationale': 'There are 3 balls.', 'ds_answer': 'no'}"},
        {"id": "synthesis-1", "image": "/synthesis/s.png", "question": "Slope?", "gt": "2", "caption": "",
         "meta": {"text_question": "y = 2x"}, "verifier_type": "math"},
        {"id": "allava-allava_laion_1", "image": "allava_laion/l.png", "question": "What is it?", "gt": "A map.",
         "caption": "A map of roads."},
        {"id": "arxivqa-1", "image": "arxivqa/x.png", "question": "A) up\nB) down", "gt": "B",
         "meta": {"rationale": "It goes down."}},
    ]  # fmt: skip
    (images / "rows.json").write_text(json.dumps(rows))
    found, rejects = read(one_source(images, {"adapter": "vlaa", "path": "rows.json"}))
    assert rejects == []
    assert [(row.source, row.kind, row.truth, row.context) for row in found] == [
        ("clevr_math", "digit", "3", {"scene": "There are 3 balls."}),
        ("synthesis", "math", "2", {"text question": "y = 2x"}),
        ("allava_laion", "open_ended", "A map.", {"caption": "A map of roads."}),
        ("arxivqa", "mcq", "B", {}),
    ]
    assert [row.number for row in found] == [0, 1, 2, 3]
    assert found[1].images == ("synthesis/s.png",)


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the shared examples are not on this machine")
@pytest.mark.parametrize("name", ["grpo_format.json", "readme_records.json"])
def test_the_real_examples(tmp_path: Path, name: str) -> None:
    file = one_source(tmp_path, {"adapter": "vlaa", "path": str(EXAMPLES / name)}, image_root=str(EXAMPLES / "images"))
    found, rejects = read(file)
    assert rejects == []
    assert [row.kind for row in found] == ["digit", "mcq", "math", "mcq", "open_ended"]
    assert [sorted(row.context) for row in found] == [["scene"], [], ["text question"], [], ["caption"]]


def test_conversations(images: Path) -> None:
    turns = [
        {"from": "human", "value": "<image>\nHow many?"},
        {"from": "gpt", "value": "4"},
        {"from": "human", "value": "Which colour?"},
        {"from": "gpt", "value": "Red it is."},
    ]
    rows = [
        {"id": "x", "image": "a.png", "conversations": turns},
        {"id": "y", "image": "a.png", "conversations": turns[1:]},
        {"id": "z", "image": "a.png", "conversations": "?"},
    ]
    (images / "l.json").write_text(json.dumps(rows))
    source = {"adapter": "llava", "path": "l.json", "name": "mine"}
    found, rejects = read(one_source(images, source))
    assert [(row.id, row.question, row.truth, row.kind, row.source) for row in found] == [
        ("x", "How many?", "4", "digit", "mine")
    ]
    assert rejects == [
        "conversations: expected turns of human and gpt by turns, with text",
        "conversations: expected a list of turns",
    ]
    # A system turn ahead of them is no question; images of the paper's sources do not make it the paper's question.
    (images / "images" / "coco" / "train2017").mkdir(parents=True)
    (images / "images" / "coco" / "train2017" / "1.png").write_bytes(png())
    opened = [{"from": "system", "value": "Be kind."}, turns[2], turns[3]]
    coco = {"id": "w", "image": "coco/train2017/1.png", "conversations": opened}
    (images / "c.json").write_text(json.dumps([coco]))
    found, rejects = read(one_source(images, {"adapter": "llava", "path": "c.json"}))
    assert rejects == []
    assert [(row.question, row.kind, row.source) for row in found] == [("Which colour?", "open_ended", "coco")]
    found, _ = read(one_source(images, {**source, "turns": "all"}))
    assert [(row.id, row.question, row.kind) for row in found] == [
        ("x", "How many?", "digit"),
        ("x#2", "Which colour?", "open_ended"),
    ]


def test_columns_choices_and_context(images: Path) -> None:
    rows = [
        {"pic": "a.png", "q": "Which?", "label": 1, "opts": ["red", "blue"], "alt": "a thing", "meta": {"k": "deep"}},
        {"pic": "a.png", "q": "And which?", "label": "blue", "opts": ["red", "blue"]},
        {"pic": "a.png", "q": "Which now?", "label": "(A)", "opts": ["red", "blue"]},
        {"pic": "a.png", "q": "Which then?", "label": 2, "opts": ["red", "blue"]},
        {"pic": "a.png", "q": "Say A or not\nA) x\nB) y", "label": "B.", "opts": None},
        {"pic": "a.png", "q": "As text?", "label": "A", "opts": "['red', 'blue']"},
    ]
    (images / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"image": "pic", "question": "q", "answer": "label", "choices": "opts"}
    source = {"adapter": "jsonl", "path": "r.jsonl", "columns": columns, "context": ["alt", "meta.k"]}
    found, rejects = read(one_source(images, source))
    assert [(row.question, row.truth, row.kind) for row in found] == [
        ("Which?\nChoices:\nA: red\nB: blue", "B", "mcq"),
        ("And which?\nChoices:\nA: red\nB: blue", "B", "mcq"),
        ("Which now?\nChoices:\nA: red\nB: blue", "A", "mcq"),
        ("Say A or not\nA) x\nB) y", "B.", "mcq"),
    ]
    assert rejects == ["answer: names none of the choices", "choices: expected a list of texts"]
    assert found[0].context == {"alt": "a thing", "k": "deep"}
    found, _ = read(one_source(images, {**source, "kind": "open_ended"}))
    assert {row.kind for row in found} == {"open_ended"}


def test_a_set_of_the_hubs_form(images: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "answers": datasets.List(datasets.Value("string")),
        }
    )
    rows = {
        "image": [{"bytes": png("blue"), "path": None}, {"bytes": b"not one", "path": None}],
        "question": ["What?", "And?"],
        "answers": [["a dog", "dog"], ["x"]],
    }
    folder = images / "hub"
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train-00000.parquet"))
    source = {"adapter": "hub", "path": "hub", "name": "pets", "columns": {"answer": "answers"}}
    found, rejects = read(one_source(images, source))
    assert [(row.question, row.truth, row.kind, row.source) for row in found] == [
        ("What?", "a dog; dog", "open_ended", "pets")
    ]
    assert rejects == ["image: an embedded image that cannot be read"]
    assert (images / "images" / found[0].images[0]).read_bytes() == png("blue")
    config = load(one_source(images, source))
    before = source_state(config.sources[0], images)
    assert before == source_state(config.sources[0], images)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train-00001.parquet"))
    assert before != source_state(config.sources[0], images)
    with pytest.raises(
        ValueError, match=r"has no column 'label'; map it by columns: \{answer: \.\.\.\}; there are image"
    ):
        read(one_source(images, {**source, "columns": {"answer": "label"}}))
    with pytest.raises(ValueError, match=r"the hub set .*split nowhere, cannot be read"):
        read(one_source(images, {**source, "split": "nowhere"}))


def test_rows_that_go_no_further(images: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "image": "a.png", "question": "How many?", "answer": 1},
        {"id": "a", "image": "a.png", "question": "Which?", "answer": 1},
        {"id": "c", "image": "a.png", "question": " How  many? ", "answer": 2},
        {"id": "d", "image": "gone.png", "question": "q", "answer": 2},
        {"id": "e", "image": "../a.png", "question": "q", "answer": 2},
        {"id": "f", "image": "a.png", "question": "p", "answer": ""},
    ]
    (images / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    file = one_source(images, {"adapter": "jsonl", "path": "r.jsonl"})
    found, rejects = read(file)
    assert [row.id for row in found] == ["a", "a#1"]
    assert found[0].origin == "r.jsonl:1"
    assert str(images) not in (file.parent / "steps" / "1_metadata.rejects.jsonl").read_text()
    assert sorted(rejects) == [
        "gt: missing or empty; the grpo split needs a ground truth",
        "image: a path with '..' or a backslash",
        "image: no such file below the image root",
        "row: no valid JSON",
        "the same question about the same image again",
    ]
    _, rejects = read(make_config(images, "http://x/v1", sources=[{"adapter": "jsonl", "path": "r.jsonl"}],
                                  max_image_pixels=63))  # fmt: skip
    assert "image: more pixels than max_image_pixels" in rejects


def test_shards_part_the_rows_and_a_limit_holds_over_all(tmp_path: Path) -> None:
    make_source(tmp_path, questions(30), images=5)
    file = make_config(tmp_path, "http://x/v1")
    whole, _ = read(file)
    parts = [read(file, shard=(index, 3))[0] for index in (1, 2, 3)]
    assert sorted((row for part in parts for row in part), key=lambda row: row.number) == whole
    assert all(parts)
    limited, _ = read(file, limit=7)
    assert limited == whole[:7]
    assert sum(len(read(file, shard=(index, 3), limit=7)[0]) for index in (1, 2, 3)) == 7
    assert in_shard("r0", (1, 1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": []}, "sources is empty"),
        ({"sources": [{"adapter": "csv", "path": "x"}]}, "sources.adapter: expected one of vlaa, llava, jsonl, hub"),
        ({"sources": [{"adapter": "vlaa"}]}, "required: path"),
        ({"sources": [{"adapter": "vlaa", "path": "x", "columns": {"image": "i"}}]}, "no meaning for adapter vlaa"),
        ({"sources": [{"adapter": "hub", "path": "x", "columns": {"imgae": "i"}}]}, "columns names ['imgae']"),
        ({"sources": [{"adapter": "hub", "path": "x", "name": "a|b"}]}, "a source's name"),
        ({"name": "a/b"}, "name may hold"),
        ({"max_image_pixels": 0}, "max_image_pixels must be at least 1"),
        ({"caption__max_pixels": 0}, "caption.max_pixels must be at least 1, got 0"),
        ({"distil__max_words": 0}, "distil.max_words must be at least 1"),
        ({"rewrite__max_word_change": -1}, "max_word_change must be 0 or positive"),
        ({"rewrite__mentions": [" "]}, "mentions must not hold an empty text"),
        ({"verify__tries": 0}, "verify.tries must be at least 1"),
        ({"verify__min_iou": 0.0}, "min_iou must be in (0, 1]"),
        ({"verify__max_unanswered": 2.0}, "max_unanswered must be in [0, 1]"),
        ({"curate__cues": [""]}, "cues must not hold an empty text"),
        ({"curate__matching": "regex"}, "curate.matching: expected one of substring, words"),
        ({"distil__endpoint__max_tokens": 0}, "endpoint.max_tokens must be at least 1, or null"),
        ({"distil__endpoint__temperature": "hot"}, "distil.endpoint.temperature"),
        ({"distil__endpoint__model": " "}, "endpoint.model must be the name"),
        ({"distil__endpoint__requests_per_minute": 0}, "endpoint.requests_per_minute must be positive"),
        ({"distil__endpoint__price_in": -1.0}, "endpoint.price_in must be 0 or positive"),
        ({"distil__endpoint__extra_body": {"stream": True}}, "endpoint.extra_body must not hold stream"),
        ({"distil__endpoint__extra_body": {"x": date(2026, 1, 1)}}, "extra_body must hold what JSON can write"),
        ({"distil__endpoint__max_refusals": 0}, "endpoint.max_refusals must be at least 1"),
        ({"distil__stop_after": 0}, "stop_after must be at least 1, or null"),
        ({"distil__typo": 1}, "distil.typo"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_wrong_in_the_configuration_is_said_in_one_line(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    file = make_config(tmp_path, "http://x/v1", **changes)
    with pytest.raises(UsageError) as caught:
        load(file)
    (line,) = caught.value.problems
    assert str(file) in line
    assert said in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "is no YAML"), ("- a", "must hold keys"), (None, "does not exist; seen from")]
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "b.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=said):
        load(file)


def test_the_configuration_that_comes_with_the_project() -> None:
    config = load(PROMPTS.parent / "build.yaml")
    assert config.verify.rules_first
    assert config.rewrite.endpoint == config.verify.endpoint
