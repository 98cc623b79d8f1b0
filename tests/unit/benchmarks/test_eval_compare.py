from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from callbacks.benchmarks.interface import EvalRecord, Score
from callbacks.benchmarks.registry import load_benchmark
from callbacks.evaluation.compare import compare
from callbacks.evaluation.comparison_chart import BETTER, MAX_LINES, UNCLEAR, WORSE, chart, shown
from callbacks.evaluation.comparison_text import as_json, markdown, short_names
from callbacks.evaluation.responses import Answer
from callbacks.evaluation.scoring import ScoredRow
from callbacks.evaluation.verdict_files import MAX_LINE_BYTES, read_verdicts
from lit_vlaa.cli import main


def row(benchmark: str, name: str, hit: bool | None, **more: Any) -> dict[str, Any]:
    return {"benchmark": benchmark, "id": name, "hit": hit, "tags": {}, "group": None, "response": "..."} | more


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def side(hits: str, **more: Any) -> list[dict[str, Any]]:
    """Rows 0, 1, ... of `maths`: `1` right, `0` wrong, `?` undecided."""
    return [row("maths", str(place), {"1": True, "0": False, "?": None}[hit], **more) for place, hit in enumerate(hits)]


def test_rows_are_paired_by_benchmark_and_id(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [*side("1100110?"), row("other", "0", True)])
    b = write(tmp_path / "b.jsonl", [*reversed(side("11011111")), row("maths", "99", True), row("maths", "98", True)])
    report = compare(read_verdicts(a), read_verdicts(b))
    assert (report.common, report.only_in_base, report.only_in_new) == (8, 1, 2)
    assert (report.undecided_base, report.undecided_new) == (1, 0)
    (only,) = report.comparisons
    assert (only.benchmark, only.part, only.n, only.clusters) == ("maths", "all rows", 8, 8)
    # 4 of 8 and 7 of 8, among them the same four. Three discordant rows, all for the second: p = 2 / 2^3.
    assert (only.base, only.new, only.difference) == (50.0, 87.5, 37.5)
    assert (only.both, only.only_base, only.only_new, only.neither) == (4, 0, 3, 1)
    assert only.p == pytest.approx(0.25)
    assert only.low < 37.5 < only.high
    assert only.design_effect == 1


def test_categories_are_compared_by_the_first_files_tags(tmp_path: Path) -> None:
    def tagged(hits: str, tags: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [one | {"tags": tag} for one, tag in zip(side(hits), tags, strict=True)]

    tags: list[dict[str, Any]] = [
        {"subject": "algebra", "level": 1},
        {"subject": "algebra", "level": 2},
        {"subject": "sets"},
    ]
    a = write(tmp_path / "a.jsonl", tagged("100", tags))
    b = write(tmp_path / "b.jsonl", tagged("011", [{}, {}, {}]))
    report = compare(read_verdicts(a), read_verdicts(b))
    assert [(one.part, one.n, one.base, one.new) for one in report.comparisons] == [
        ("all rows", 3, pytest.approx(100 / 3), pytest.approx(200 / 3)),
        ("level: 1", 1, 100, 0),
        ("level: 2", 1, 0, 100),
        ("subject: algebra", 2, 50, 50),
        ("subject: sets", 1, 0, 100),
    ]


@pytest.mark.parametrize(("name", "tag"), [("mathvista", "skills"), ("logicvista", "skill")])
def test_a_row_of_several_skills_counts_under_each_as_in_the_score(name: str, tag: str, tmp_path: Path) -> None:
    benchmark = load_benchmark(name)
    skills = ("spatial, numerical", "spatial", "numerical, deductive")

    def evaluated(hits: tuple[bool, ...]) -> tuple[list[dict[str, Any]], dict[str, float]]:
        records = [
            EvalRecord(
                id=str(place),
                images=(),
                prompt="?",
                question="?",
                kind="free",
                choices=(),
                answer="",
                tags={tag: text, "origin": "one, whole"},
            )
            for place, text in enumerate(skills)
        ]
        scores = [Score(hit, None, "judge") for hit in hits]
        rows = [
            ScoredRow(place, record, Answer("", record.id, "", "stop", 1), "", score).line(name, benchmark.plural_tags)
            for place, (record, score) in enumerate(zip(records, scores, strict=True))
        ]
        return rows, benchmark.aggregate(records, scores)

    before, numbers = evaluated((True, False, False))
    after, _ = evaluated((True, True, False))
    assert [row["tags"][tag] for row in before] == [["spatial", "numerical"], ["spatial"], ["numerical", "deductive"]]
    a, b = write(tmp_path / "a.jsonl", before), write(tmp_path / "b.jsonl", after)
    found = {one.part: one for one in compare(read_verdicts(a), read_verdicts(b)).comparisons}
    assert {part: (one.n, one.base, one.new) for part, one in found.items() if part.startswith(tag)} == {
        f"{tag}: deductive": (1, 0, 0),
        f"{tag}: numerical": (2, 50, 50),
        f"{tag}: spatial": (2, 50, 100),
    }
    assert found["origin: one, whole"].n == 3
    for skill in ("deductive", "numerical", "spatial"):
        assert numbers[f"{tag}/{skill}"] == found[f"{tag}: {skill}"].base


def test_a_value_that_stands_twice_counts_once(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", side("10", tags={"topic": ["sets", "sets", 3]}))
    _, *topics = compare(read_verdicts(a), read_verdicts(a)).comparisons
    assert [(one.part, one.n) for one in topics] == [("topic: 3", 2), ("topic: sets", 2)]


def test_rows_of_a_problem_count_together(tmp_path: Path) -> None:
    def variants(hits: str) -> list[dict[str, Any]]:
        return [one | {"group": [f"seed{place // 2}", str(place % 2)]} for place, one in enumerate(side(hits))]

    a = write(tmp_path / "a.jsonl", [*variants("110010"), row("maths", "seed0", True)])
    b = write(tmp_path / "b.jsonl", [*variants("111110"), row("maths", "seed0", False)])
    rows, whole = compare(read_verdicts(a), read_verdicts(b)).comparisons
    # The row that stands alone is no part of the problem of the same name.
    assert (rows.n, rows.clusters, rows.only_base, rows.only_new) == (7, 4, 1, 2)
    # Differences 0 0 | 1 1 | 0 0 | -1 with mean 1/7. Clusters: totals 0 2 0 -1 less 2 2 2 1 sevenths,
    # (4 + 144 + 4 + 64) / 49 * 4 / 3 = 288 / 49; rows: (3 - 1/7) 7 / 6 = 10 / 3.
    assert rows.design_effect == pytest.approx(288 / 49 / (10 / 3))
    assert (whole.part, whole.n, whole.clusters) == ("whole problems", 4, 4)
    assert (whole.both, whole.only_base, whole.only_new, whole.neither) == (1, 1, 1, 1)


def test_the_average_is_that_of_the_benchmarks(tmp_path: Path) -> None:
    more = [row("logic", str(place), place < 4) for place in range(8)]
    a = write(tmp_path / "a.jsonl", side("10") + more)
    b = write(tmp_path / "b.jsonl", side("11") + more)
    logic, maths, average = compare(read_verdicts(a), read_verdicts(b)).comparisons
    assert [one.benchmark for one in (logic, maths, average)] == ["logic", "maths", "average"]
    # 50 and 50 before, 50 and 100 after: benchmarks weigh the same, however many rows they have.
    assert (average.base, average.new, average.difference) == (50, 75, 25)
    assert (average.n, average.clusters, average.p) == (10, 10, None)
    down = ((logic.difference - logic.low) ** 2 + (maths.difference - maths.low) ** 2) ** 0.5 / 2
    assert average.low == pytest.approx(25 - down)


def test_a_folder_is_all_of_its_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "a" / "maths.jsonl", side("10")).parent
    write(folder / "logic.jsonl", [row("logic", "0", True)])
    (folder / "summary.json").write_text("{}")
    assert list(read_verdicts(folder)) == [("logic", "0"), ("maths", "0"), ("maths", "1")]


def test_of_an_evaluations_folder_one_evaluation_is_read(tmp_path: Path) -> None:
    for name, hit in (("test", True), ("step_10", False)):
        write(tmp_path / "maths" / f"{name}.jsonl", [row("maths", "0", hit)])
        assert len(read_verdicts(tmp_path)) == 1 if name == "test" else True
        assert read_verdicts(tmp_path, name)["maths", "0"].hit is hit
    with pytest.raises(ValueError, match=r"several evaluations; choose one by --name: step_10, test"):
        read_verdicts(tmp_path)
    with pytest.raises(ValueError, match=r"there is no final\.jsonl here or one level below; there are step_10, test"):
        read_verdicts(tmp_path, "final")


def test_of_a_benchmarks_folder_one_evaluation_is_read(tmp_path: Path) -> None:
    # Also where the evaluations' verdicts agree, or their rows are different ones.
    for hits in ("10", "01", "1"):
        write(tmp_path / "step_10.jsonl", side("10"))
        write(tmp_path / "test.jsonl", [*side(hits), row("maths", "more", True)][1:])
        with pytest.raises(ValueError, match=r"several evaluations; choose one by --name: step_10, test$"):
            read_verdicts(tmp_path)
    assert list(read_verdicts(tmp_path, "step_10")) == [("maths", "0"), ("maths", "1")]
    assert list(read_verdicts(tmp_path, "test")) == [("maths", "more")]


def test_one_benchmark_in_two_folders_is_no_evaluation(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(tmp_path / folder / "test.jsonl", side("10"))
    for name in (None, "test"):
        with pytest.raises(ValueError, match=r"one/test\.jsonl and .*two/test\.jsonl both hold maths; give a file, or"):
            read_verdicts(tmp_path, name)


def test_a_row_may_stand_twice_if_it_says_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", side("10") + side("10"))
    assert len(read_verdicts(path)) == 2
    with path.open("a") as file:
        file.write("\n" + json.dumps(row("maths", "1", None)) + "\n")
    message = r"a\.jsonl:6: row 1 of maths has another verdict than in .*a\.jsonl:2; a row has one verdict"
    with pytest.raises(ValueError, match=message):
        read_verdicts(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there is no row"),
        (b'{"benchmark": "m", "id": "1", "hit": true}\n{"bench', r'a\.jsonl:2: not a JSON object: {"bench$'),
        (b"[1]\n", r"a\.jsonl:1: not a JSON object: \[1\]"),
        (b"[" * 100_000, r"a\.jsonl:1: not a JSON object: \[{80}\.\.\.$"),
        (b"\xff\xfe\x00\n", r"a\.jsonl:1: not a JSON object"),
        (b"id,hit\n1,1\n", r"a\.jsonl:1: not a JSON object: id,hit"),
        (b'{"id": "1", "response": "x"}\n', r"a\.jsonl:1: no 'benchmark' and no 'hit'; give the files that an evaluat"),
        (b'{"benchmark": "m", "id": "1", "hit": 1}\n', r"a\.jsonl:1: 'hit' must be true, false or null, got 1"),
        (b'{"benchmark": "m", "id": "1", "hit": "\x1b[31m"}\n', r"not a JSON object: .*\"hit\": \" \[31m\"}$"),
        (b'{"benchmark": "m", "id": "1", "hit": true, "tags": [1]}\n', r"'tags' must be an object, got \[1\]"),
        (
            b'{"benchmark": "m", "id": "1", "hit": true, "tags": {"t": ["a", {}]}}\n',
            r"1: tag t must be a text or a list",
        ),
        (b'{"benchmark": "m", "id": "1", "hit": true, "tags": {"t": null}}\n', r"or a list of texts, got NoneType"),
        (b'{"benchmark": "m", "id": "1", "hit": true, "group": "x"}\n', r"'group' must be \[problem, role\] or null"),
        (b" " * (MAX_LINE_BYTES + 1), r"a\.jsonl:1: the line is longer than 16777216 bytes"),
    ],
    ids=[
        "empty",
        "cut",
        "list",
        "nested",
        "binary",
        "csv",
        "keys",
        "hit",
        "control",
        "tags",
        "tag",
        "null",
        "group",
        "long",
    ],
)
def test_what_is_no_file_of_verdicts(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_verdicts(path)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["eval", "compare", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("lit-vlaa: error: ").strip()


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a.jsonl", side("10"))
    b = write(tmp_path / "b.jsonl", [row("other", "0", True)])
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").write_text("")
    assert refused(capsys, str(a), str(b)).startswith("no row (benchmark and id) is in both files; compare evaluations")
    assert refused(capsys, str(a), str(tmp_path / "no.jsonl")).startswith(f"{tmp_path}/no.jsonl does not exist; seen")
    assert refused(capsys, str(a), str(tmp_path / "empty")).endswith("one level below; give what an evaluation wrote")
    assert refused(capsys, str(a)) == "needed: NEW"
    shown = "; lit-vlaa eval compare --help shows its flags"
    assert refused(capsys, str(a), str(a), "--bogus") == f"unrecognized arguments: --bogus{shown}"
    assert "taken is a file; name a folder" in refused(capsys, str(a), str(a), "--output-dir", str(tmp_path / "taken"))
    written = tmp_path / "run" / "benchmarks"
    written.mkdir(parents=True)
    (tmp_path / "run" / "version_0").mkdir()
    for place in (written.parent, written.parent / "version_0"):
        hint = f"one level below; give {written}, which callbacks.BenchmarkEvaluation writes"
        assert refused(capsys, str(a), str(place)).endswith(hint)


@pytest.mark.parametrize("flag", ["--output-dir", "--output_dir"])
def test_the_command_writes_table_numbers_and_picture(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a.jsonl", side("1" * 20 + "0" * 30 + "?"))
    b = write(tmp_path / "b.jsonl", side("1" * 40 + "0" * 10 + "1"))
    folder = tmp_path / "deep" / "out"
    assert main(["eval", "compare", str(a), str(b), flag, str(folder)]) == 0
    printed = capsys.readouterr().out
    assert (folder / "comparison.md").read_text() in printed
    numbers = json.loads((folder / "comparison.json").read_text())
    assert (numbers["base"], numbers["new"], numbers["common"], numbers["undecided_base"]) == (str(a), str(b), 51, 1)
    (only,) = numbers["comparisons"]
    assert (only["only_base"], only["only_new"]) == (0, 21)
    assert only["p"] == pytest.approx(2 / 2**21)
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    head, _, line = (line for line in printed.splitlines() if line.startswith("|"))
    names, cells = ([cell.strip() for cell in row.strip("|").split("|")] for row in (head, line))
    assert names[3:6] == ["a %", "b %", "difference"]
    assert names[7:9] == ["only a", "only b"]
    ends = f"{only['low']:+.1f} to {only['high']:+.1f}"
    assert cells == ["maths", "all rows", "51", "39.2", "80.4", "+41.2", ends, "0", "21", "< 0.0001"]


def test_without_a_folder_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a.jsonl", side("10"))
    before = sorted(tmp_path.rglob("*"))
    assert main(["eval", "compare", str(a), str(a)]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "2 rows in both\n" in capsys.readouterr().out


def test_help_names_what_it_writes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "compare", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "comparison.json" in printed
    assert " BASE NEW" in printed
    assert "NEW less BASE; above 0 NEW is better" in printed


def test_the_table_says_what_was_left_out_and_what_p_is_worth(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [*side("10?", group=["p", "1"]), row("maths", "x", True)])
    b = write(tmp_path / "b.jsonl", side("110", group=["p", "1"]))
    report = compare(read_verdicts(a), read_verdicts(b))
    text = markdown(report, Path("runs/base-3b/benchmarks"), Path("runs/trained/benchmarks"))
    assert text.startswith(
        "base-3b (baseline): runs/base-3b/benchmarks\ntrained: runs/trained/benchmarks\n"
        "3 rows in both, 1 only in base-3b\n"
    )
    assert "trained less base-3b, in percentage points; above 0 trained is better.\n" in text
    assert " 3 (1) |" in text
    assert "p does not. Trust p of whole problems there." in text
    assert text.endswith("Undecided, counted as wrong: 1 of base-3b, 0 of trained.")
    alone = write(tmp_path / "c.jsonl", side("10"))
    plain = markdown(compare(read_verdicts(alone), read_verdicts(alone)), alone, alone)
    assert "whole problems" not in plain
    assert "Undecided" not in plain


def test_hostile_text_stays_in_its_cell(tmp_path: Path) -> None:
    tags = {"s|t": "<img src=x>\n| 99 |\x1b[2J `" + "y" * 100}
    a = write(tmp_path / "a.jsonl", side("10", tags=tags))
    report = compare(read_verdicts(a), read_verdicts(a))
    text = markdown(report, Path("a|\x1b[2J"), Path("b"))
    assert [line.count("|") for line in text.splitlines() if line.startswith("|")] == [11] * 4
    assert "<img" not in text
    assert "\x1b" not in text
    json.dumps(as_json(report, a, a))


@pytest.mark.parametrize(
    ("base", "new", "names"),
    [
        ("runs/qwen2.5-3b/benchmarks", "runs/trained/benchmarks", ("qwen2.5-3b", "trained")),
        ("x/mathvista/step_10.jsonl", "x/mathvista/test.jsonl", ("step_10", "test")),
        ("x/one", "y/two", ("one", "two")),
        ("benchmarks", "trained/benchmarks", None),
        ("a", "a", ("base", "new")),
        ("a", "a.jsonl", ("base", "new")),
        ("/benchmarks", "/trained/benchmarks", ("base", "new")),
        (f"x/{'o' * 90}", "y/two", ("o" * 24, "two")),
        (f"x/{'o' * 90}", f"x/p{'o' * 90}", ("base", "new")),
    ],
)
def test_paths_are_called_by_what_tells_them_apart(
    base: str, new: str, names: tuple[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert short_names(Path(base), Path(new)) == (names or ("here", "trained"))


def test_colours_tell_what_an_interval_leaves_out(tmp_path: Path) -> None:
    rows = {"better": ("0" * 40, "1" * 40), "same": ("1" * 40, "1" * 40), "worse": ("1" * 40, "0" * 40)}
    sides = [
        [one | {"benchmark": name} for name, hits in rows.items() for one in side(hits[place])] for place in (0, 1)
    ]
    a, b = (write(tmp_path / f"{place}.jsonl", sides[place]) for place in (0, 1))
    report = compare(read_verdicts(a), read_verdicts(b))
    axes = chart(report.comparisons, "old", "young").axes[0]
    assert axes.get_title("left") == "young less old (right of 0: better)"
    assert [label.get_text().split()[0] for label in axes.get_yticklabels()] == ["better", "same", "worse", "average"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_color() for dot in dots] == [BETTER, UNCLEAR, WORSE, UNCLEAR]
    assert [dot.get_xdata()[0] for dot in dots] == pytest.approx([100, 0, -100, 0])


def test_a_picture_has_an_end_and_takes_any_label(tmp_path: Path) -> None:
    rows = [one | {"tags": {"t": f"$x^{place}$ {place}"}} for place, one in enumerate(side("1" * 200))]
    a = write(tmp_path / "a.jsonl", rows)
    report = compare(read_verdicts(a), read_verdicts(a))
    assert len(report.comparisons) == 201
    drawn = shown(report.comparisons)
    assert len(drawn) == MAX_LINES
    assert drawn[0].part == "all rows"
    chart(report.comparisons, "$\\bad{", "b" * 500).savefig(tmp_path / "x.png")


def test_neither_comparison_nor_arithmetic_needs_the_model() -> None:
    code = (
        "import sys, types; sys.modules['callbacks'] = package = types.ModuleType('callbacks'); "
        "package.__path__ = ['callbacks']; import callbacks.evaluation.compare; "
        "assert not {'torch', 'lightning', 'lit_vlaa', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[3], check=True)
