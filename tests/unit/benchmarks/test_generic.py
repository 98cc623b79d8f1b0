from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from callbacks.benchmarks import EvalRecord, JSONLBenchmark, Score
from callbacks.benchmarks.generic import FileImage
from helpers.benchmark_files import picture


def write(folder: Path, *rows: Any, name: str = "mine.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def load(folder: Path, *rows: Any, **options: Any) -> list[EvalRecord]:
    return JSONLBenchmark(path=write(folder, *rows), **options).load(None)


def record(tmp_path: Path, **row: Any) -> EvalRecord:
    [made] = load(tmp_path, {"question": "Which?", **row})
    return made


class Script:
    """A judge that gives its replies one after the other and keeps what it was asked."""

    def __init__(self, *replies: str | None) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[str, float]] = []

    def __call__(self, prompt: str, temperature: float) -> str | None:
        self.asked.append((prompt, temperature))
        return self.replies.pop(0)


COLOURS = ["red", "dark red", "blau"]

# the row, the answer, and whether it is a hit (None: undecided)
CASES: list[tuple[dict[str, Any], str, bool | None]] = [
    ({"answer": 3}, "3", True),
    ({"answer": 3}, "3.0", True),
    ({"answer": 3}, "4", False),
    ({"answer": 3}, "$3$", True),
    ({"answer": 3}, "three or four", None),
    ({"answer": 3}, "", None),
    ({"answer": "1200"}, "1,200", True),
    ({"answer": "7/3"}, r"\frac{7}{3}", True),
    ({"answer": "7/3"}, "2.33", False),
    ({"answer": "7/3", "tolerance": 0.01}, "2.33", True),
    ({"answer": 2.5, "tolerance": 0.5}, "3", True),
    ({"answer": 2.5, "tolerance": 0.49}, "3", False),
    ({"answer": 0}, "0", True),
    ({"answer": 0}, "9**9**9", None),
    ({"answer": 0}, "(" * 100_000, None),
    ({"answer": 3}, "٣", True),
    ({"answer": "B", "choices": COLOURS}, "B", True),
    ({"answer": "B", "choices": COLOURS}, "(C)", False),
    ({"answer": "B", "choices": COLOURS}, "it is dark red", True),
    ({"answer": "blau", "choices": COLOURS}, "BLAU", True),
    ({"answer": "B", "choices": COLOURS}, "red or blau", None),
    ({"answer": "B", "choices": COLOURS}, "", None),
    ({"answer": 2, "choices": [1, 2]}, "B", True),
    ({"answer": "even"}, "Even.", True),
    ({"answer": "even"}, "  EVEN  ", True),
    ({"answer": "even"}, "odd", False),
    ({"answer": "even"}, "it is even", False),
    ({"answer": "even"}, "", False),
    ({"answer": "Straße"}, "STRASSE", True),
    ({"answer": "two words"}, "two\n words", True),
    ({"answer": "12", "kind": "text"}, "12.0", False),
    ({"answer": "!"}, "", False),
    ({"answer": "Größe"}, "Gro\u0308ße", True),
    ({"answer": "even"}, "\u202eneve", False),
    ({"answer": "even"}, "x" * 100_000, False),
]


@pytest.mark.parametrize(("row", "response", "hit"), CASES, ids=map(str, range(len(CASES))))
def test_rules(tmp_path: Path, row: dict[str, Any], response: str, hit: bool | None) -> None:
    benchmark = JSONLBenchmark(path="mine.jsonl")
    score = benchmark.score(record(tmp_path, **row), benchmark.reduce(response), None)
    assert (score.hit, score.method) == (hit, "fallback" if hit is None else "rule")


def test_the_profile_decides_how_options_are_inferred(tmp_path: Path) -> None:
    made = record(tmp_path, answer="B", choices=["a cat", "5", "a dog"])
    for profile, hit in (("paper", False), ("fixed", True)):
        benchmark = JSONLBenchmark(path="mine.jsonl", profile=profile)  # type: ignore[arg-type]
        assert benchmark.score(made, "A good answer: 5", None).hit is hit
    assert JSONLBenchmark(path="mine.jsonl").profile == "fixed"


def test_the_judge_extracts_options_and_numbers_but_not_text(tmp_path: Path) -> None:
    benchmark = JSONLBenchmark(path="mine.jsonl")
    judge = Script("hm", None, "3")
    assert benchmark.score(record(tmp_path, answer=3), "three of them", judge) == Score(True, "3", "judge", 3)
    assert "three of them" in judge.asked[0][0]
    judge = Script("B")
    score = benchmark.score(record(tmp_path, answer="C", choices=COLOURS), "the second", judge)
    assert score == Score(False, "B", "judge", 1)
    assert "(B) dark red" in judge.asked[0][0]
    judge = Script(*[None] * 2)
    assert benchmark.score(record(tmp_path, answer=3), "three of them", judge) == Score(None, None, "fallback", 2)
    assert benchmark.score(record(tmp_path, answer="even"), "not odd", Script()) == Score(False, "not odd", "rule")


def test_records_of_a_file(tmp_path: Path) -> None:
    records = load(
        tmp_path,
        {"question": "Wie viele? 何個?", "answer": 3, "tags": {"topic": "count", "level": 2}},
        "",
        {"id": "b", "question": "Which?", "choices": ["red", "blue"], "answer": "blue", "source": "ignored"},
        {"id": 7, "question": "Which?", "answer": "1.5", "kind": "float"},
        {"question": "Which?", "answer": "1.50"},
        {"question": "Name it.", "answer": "disc"},
    )
    assert [(r.id, r.kind, r.answer) for r in records] == [
        ("1", "int", "3"),
        ("b", "mc", "B"),
        ("7", "float", "1.5"),
        ("5", "float", "1.50"),
        ("6", "text", "disc"),
    ]
    assert records[0].prompt == "Wie viele? 何個?"
    assert dict(records[0].tags) == {"topic": "count", "level": "2"}
    assert records[1].prompt == "Which?\n(A) red\n(B) blue\nAnswer with the letter of the right option."
    assert records[1].question == "Which?"
    assert records[1].origin == f"{tmp_path}/mine.jsonl:3"
    assert pickle.loads(pickle.dumps(records)) == records  # noqa: S301  # our own


def test_images_lie_below_the_image_root(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    picture(1).save(tmp_path / "one.png")
    picture(2, "RGBA").save(tmp_path / "pictures" / "deep" / "two.png")
    [made] = load(tmp_path, {"question": "?", "answer": 1, "images": ["one.png", "pictures/deep/two.png"]})
    assert [image.open().tobytes() for image in made.images] == [picture(n).tobytes() for n in (1, 2)]
    row = {"question": "?", "answer": 1, "image": "deep/two.png"}
    [made] = load(tmp_path, row, image_root=tmp_path / "pictures")
    assert made.images[0].open().tobytes() == picture(2).tobytes()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../secret.png", "'..'"),
        ("link.png", "a link out of the image root"),
        ("none.png", "no such file"),
        ("/etc/passwd", "no such file"),
        ("", "no path"),
        (3, "'image' must be a path"),
    ],
)
def test_other_images_are_refused(tmp_path: Path, path: Any, message: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    picture(0).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match=f"mine.jsonl:1: .*{message}"):
        load(folder, {"question": "?", "answer": 1, "image": path})


def test_a_broken_image_fails_when_it_is_opened_and_names_its_row(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    [made] = load(tmp_path, {"question": "?", "answer": 1, "image": "broken.png"})
    with pytest.raises(ValueError, match=r"mine\.jsonl:1: broken\.png: the image"):
        made.images[0].open()
    (tmp_path / "broken.png").unlink()
    with pytest.raises(ValueError, match=r"mine\.jsonl:1: .*No such file"):
        made.images[0].open()


ROW = {"question": "?", "answer": "A"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        (["not json"], ":1: Expecting value"),
        ([ROW, "[1, 2]"], ":2: not a JSON object"),
        (["[" * 100_000], ":1: "),
        ([{"answer": "A"}], ":1: column 'question' is missing"),
        ([{"question": "?", "answer": None}], ":1: column 'answer' is empty"),
        ([{**ROW, "kind": "mc"}], ":1: 'kind' mc needs 'choices'"),
        ([{**ROW, "kind": "int"}], ":1: 'answer' is 'A', which is no number; 'kind' is int"),
        ([{**ROW, "kind": "essay"}], ":1: 'kind' is 'essay', must be one of mc, int, float, text"),
        ([{**ROW, "kind": "text", "choices": ["x"]}], ":1: 'kind' text takes no 'choices'"),
        ([{**ROW, "answer": "C", "choices": ["x", "y"]}], ":1: 'answer' is 'C', neither one of the letters A, B"),
        ([{**ROW, "answer": "x", "choices": ["x", "x"]}], ":1: 'answer' is 'x', neither"),
        ([{**ROW, "choices": list(range(27))}], ":1: 27 options"),
        ([{"question": "?", "answer": 1, "tolerance": -1}], ":1: 'tolerance' is -1, must be a number not below 0"),
        ([{"question": "?", "answer": 1, "tolerance": "1%"}], ":1: 'tolerance' is '1%'"),
        ([{"question": "?", "answer": 1, "tolerance": True}], ":1: 'tolerance' is True"),
        ([{**ROW, "tags": ["x"]}], ":1: 'tags' must be an object"),
        ([{**ROW, "images": "a.png"}], ":1: 'image' must be a path, 'images' a list"),
        ([{**ROW, "images": 5}], ":1: 'image' must be a path, 'images' a list"),
        ([{**ROW, "images": ["a.png"], "image": "a.png"}], ":1: both 'image' and 'images' are given"),
        ([{**ROW, "id": "x"}, {**ROW, "id": "x"}], ":2: id 'x' stands in .*:1 already"),
        ([{**ROW, "id": "2"}, ROW], ":2: id '2' stands in"),
        ([{"question": "x" * (1 << 20), "answer": "A"}], ":1: more than 1048576 characters"),
    ],
    ids=map(str, range(23)),
)
def test_malformed_rows_are_named(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"mine.jsonl.*{message}"):
        load(tmp_path, *rows)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"benchmark file .*none\.jsonl does not exist; seen from"):
        JSONLBenchmark(path=tmp_path / "none.jsonl").load(None)
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(ValueError, match=r"latin\.jsonl: not UTF-8"):
        JSONLBenchmark(path=tmp_path / "latin.jsonl").load(None)


@pytest.mark.parametrize("image_root", [None, "elsewhere"])
def test_a_relative_path_is_looked_for_in_the_data_folder_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_root: str | None
) -> None:
    work, data = tmp_path / "work", tmp_path / "data"
    for folder, answer in ((work, "here"), (data, "there")):
        (folder / "elsewhere").mkdir(parents=True)
        for place in (folder, folder / "elsewhere"):
            Image.new("RGB", (4, 4)).save(place / "a.png")
        line = {"question": "Where?", "answer": answer, "image": "a.png"}
        (folder / "own.jsonl").write_text(json.dumps(line))
    monkeypatch.chdir(work)
    benchmark = JSONLBenchmark(path="own.jsonl", image_root=image_root)
    (here,), (there,) = benchmark.load(None), benchmark.load(data)
    assert (here.answer, there.answer) == ("here", "there")
    # Images lie beside the file that was found, or where the user says.
    assert there.images == (FileImage((data if image_root is None else work / "elsewhere") / "a.png", there.origin),)
    assert benchmark.load(tmp_path)[0].answer == "here"
    assert benchmark.path == Path("own.jsonl")


def test_name_and_title(tmp_path: Path) -> None:
    assert (JSONLBenchmark(path="a/discs-1.jsonl").name, JSONLBenchmark(path="a/discs-1.jsonl").title) == (
        "discs-1",
    ) * 2
    named = JSONLBenchmark(path="x.jsonl", name="discs", title="Counting discs")
    assert (named.name, named.title) == ("discs", "Counting discs")
    for name in ("a/b", "..", "", "x" * 61, "ü"):
        with pytest.raises(ValueError, match="name must be of letters"):
            JSONLBenchmark(path="x.jsonl", name=name)


def test_scores_and_subsets(tmp_path: Path) -> None:
    rows = [{"question": "?", "answer": n, "tags": {"topic": "ab"[n % 2]}} for n in range(8)]
    benchmark = JSONLBenchmark(path=write(tmp_path, *rows))
    records = benchmark.load(None)
    scores = [benchmark.score(made, "3" if made.id != "8" else "?", None) for made in records]
    found = benchmark.aggregate(records, scores)
    assert found["score"] == pytest.approx(12.5)
    assert found["undecided_rate"] == pytest.approx(12.5)
    assert (found["topic/a"], found["topic/b"], found["n"]) == (0.0, 25.0, 8.0)
    chosen = benchmark.subset(records, 4, seed=0)
    assert sorted(records[place].tags["topic"] for place in chosen) == ["a", "a", "b", "b"]


def test_images_are_known_by_their_files_content(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "1.png")
    picture(1).save(tmp_path / "same.png")
    [first, second] = load(tmp_path, *({"question": "?", "answer": 1, "image": name} for name in ("1.png", "same.png")))
    before = first.images[0].fingerprint
    assert second.images[0].fingerprint == before
    picture(2).save(tmp_path / "1.png")
    assert first.images[0].fingerprint != before
    (tmp_path / "1.png").unlink()
    assert first.images[0].fingerprint == ""
