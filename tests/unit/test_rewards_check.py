from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from datamodules import convert
from datamodules.synthetic import write_dataset
from lit_vlaa.cli import main
from lit_vlaa.rewards.config import RewardConfig
from lit_vlaa.rewards.mixed import MixedReward
from lit_vlaa.rewards.wrong_answers import wrong_answer
from lit_vlaa.rewards_check import Finding, check, read, report, run

EXAMPLES = Path("/work/shared/data/vlaa_examples")

IMAGES = {
    "digit": "clevr_math/a.png",
    "mcq": "geoqa170k/a.png",
    "math": "synthesis/a.png",
    "iou": "coco/train2017/a.jpg",
    "open_ended": "docvqa/a.png",
}
QUESTION = "Which?\nA: 1\nB: 2\nC: 3"


def write(folder: Path, *rows: tuple[str, Any], question: str = QUESTION) -> Path:
    """A file of (kind, ground truth) rows."""
    file = folder / "rows.json"
    lines = [
        {"image": IMAGES.get(kind, "x/a.png"), "question": question, "gt": truth, "verifier_type": kind}
        for kind, truth in rows
    ]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def reward() -> Iterator[MixedReward]:
    shared = MixedReward()
    yield shared
    shared.close()


def found(file: Path, reward: MixedReward) -> list[tuple[str, int]]:
    records, unreadable = read(file, kinds=None, sources=None, max_rows=None)
    return [(finding.problem, finding.row) for finding in [*unreadable, *check(records, reward)]]


SOUND: Mapping[str, list[Any]] = {
    "digit": [3, "3.0", "1,200", "twelve", "-4", 9, 2.5],
    "mcq": ["C", "(c)", "C.", "2", r"\boxed{B}"],
    "math": [
        "y = -5 * sin(-5 * x)",
        "y=|x+9|",
        "5 cm",
        "50%",
        r"\frac{1}{2}",
        "3x-y+13=0",
        "x<y",
        "(a,b)",
        r"\{1,2\}",
        r"\pm 2",
        r"\pi",
        "x^2+y^2=25",
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        "Step 1: 2 > 1\nStep 2: 4\n† Answer: f(x)=2*cos(3*x)",
    ],
    "iou": [[0.1, 0.2, 0.3, 0.4], "[0.1, 0.2, 0.3, 0.4]", [0, 0, 1, 1], [1e-7, 0, 1, 1]],
    "open_ended": ["A red bus.", "yes", "7", ["a house", "a hut"]],
}


@pytest.mark.parametrize("kind", SOUND)
def test_sound_truths_earn_and_their_mutants_do_not(tmp_path: Path, reward: MixedReward, kind: str) -> None:
    assert found(write(tmp_path, *((kind, truth) for truth in SOUND[kind])), reward) == []


@pytest.mark.parametrize(
    ("kind", "truth", "problem"),
    [
        ("digit", "3 or 4", "unparsable_truth"),
        ("digit", "9" * 5000, "unparsable_truth"),  # longer than any answer that is read
        ("digit", "", "unreadable_row"),
        ("mcq", "none of these", "unparsable_truth"),
        ("math", "$", "unparsable_truth"),
        ("math", "<answer>4</answer>", "truth_earns_less"),  # a second answer block in the response
        ("iou", [10, 20, 30, 40], "unparsable_truth"),
        ("iou", [0.3, 0.2, 0.1, 0.4], "unparsable_truth"),
        ("iou", [0.1, 0.2, 0.3], "unreadable_row"),
        ("open_ended", "</answer>", "truth_earns_less"),
    ],
)
def test_broken_truths_are_found(tmp_path: Path, reward: MixedReward, kind: str, truth: Any, problem: str) -> None:
    assert found(write(tmp_path, (kind, SOUND[kind][0]), (kind, truth)), reward) == [(problem, 2)]


def test_mutants_that_are_paid_are_found(tmp_path: Path) -> None:
    file = write(tmp_path, ("digit", 3), ("digit", 5), ("mcq", "C"))
    careless = MixedReward(verifiers={"digit": lambda answer, _: float(answer in {"3", "4", "5"})})
    records, _ = read(file, kinds=None, sources=None, max_rows=None)
    (finding,) = check(records, careless)
    assert finding == Finding(
        problem="mutant_paid",
        row=1,
        detail="ok",
        id="rows.json:1",
        source="clevr_math",
        kind="digit",
        truth="3",
        answer="4",
        value=1.0,
    )


@pytest.mark.parametrize(("pay", "problems"), [(0.4, []), (0.45, ["mutant_paid"])])
def test_half_of_what_the_truth_earns_is_too_much(tmp_path: Path, pay: float, problems: list[str]) -> None:
    graded = MixedReward(verifiers={"open_ended": lambda answer, request: 0.9 if answer == request.truth else pay})
    assert [name for name, _ in found(write(tmp_path, ("open_ended", "a bus")), graded)] == problems


def test_kinds_of_the_user(tmp_path: Path, reward: MixedReward) -> None:
    file = write(tmp_path, ("chart", "x"), ("chart", "y"))
    records, _ = read(file, kinds=None, sources=None, max_rows=None)
    assert check(records, reward) == []
    lines = report(records, [], reward.kinds)
    assert any("chart, 2 row(s)" in line for line in lines)
    assert lines[-1] == "nothing found in the others"
    assert report(records, [], (*reward.kinds, "chart"))[-1] == "nothing found"
    own = MixedReward(verifiers={"chart": lambda answer, _: 0.3 if answer == "x" else 0.0})
    (finding,) = check(records, own)
    assert (finding.problem, finding.row) == ("truth_earns_less", 2)


@pytest.mark.parametrize(
    ("kind", "truth", "wrong"),
    [
        ("digit", "1,200", "1201"),
        ("digit", "twelve", "13"),
        ("digit", "9" * 30, f"1{'0' * 30}"),
        ("digit", "3 or 4", None),
        ("mcq", "(b)", "C"),
        ("mcq", "3", "A"),
        ("math", "y = -5 * sin(-5 * x)", "y = -5 * sin(-6 * x)"),
        ("math", "so it is $1.05$", "2.05"),
        ("math", "x<y", "x<y+1"),
        ("math", "(a,b)", "(a,b+1)"),
        ("math", f"1{'0' * 30}", f"1{'0' * 15}1"),
        ("iou", "[0.1, 0.2, 0.3, 0.4]", "[0.3, 0, 1, 1]"),
        ("iou", "[0.1, 0.2, 1.0, 0.9]", "[0, 0, 1, 0.2]"),
        ("iou", "[0.0, 0.0, 1.0, 1.0]", "[0, 0, 0.1, 0.1]"),
        ("iou", "[0.0, 0.0, 2.0, 1.0]", None),
        ("chart", "x", None),
    ],
)
def test_wrong_answers(kind: str, truth: str, wrong: str | None) -> None:
    assert wrong_answer(kind, truth, QUESTION) == wrong


def test_options_of_the_question_are_taken() -> None:
    assert wrong_answer("mcq", "B", "Is it?\nA: yes\nB: no") == "A"
    assert wrong_answer("mcq", "B") == "C"


@pytest.mark.parametrize("name", ["grpo_format.json", "readme_records.json"])
def test_released_rows_are_sound(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not EXAMPLES.is_dir():
        pytest.skip(f"{EXAMPLES} is not here")
    assert main(["rewards", "check", "--data", str(EXAMPLES / name)]) == 0
    shown = capsys.readouterr().out
    assert "nothing found" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith("synthesis")] == [
        ["synthesis", "math", "1", "0", "0", "0"]
    ]


def test_generated_rows_are_sound(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", sft_count=0, grpo_count=90, test_count=0, seed=0, progress=False)
    assert run(data=data.data_file("grpo")) == 0


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, *[("iou", [0, 0, 2, 2])] * 12, ("mcq", "A"), ("digit", "3\x1b or 4"), ("digit", None))
    assert main(["rewards", "check", "--data", str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["clevr_math", "digit", "1", "1", "0", "0"],
        ["coco", "iou", "12", "12", "0", "0"],
        ["geoqa170k", "mcq", "1", "0", "0", "0"],
    ]
    assert "rows that cannot be read: 1" in lines
    assert "    row 14: truth '3\\x1b or 4'" in lines
    assert sum("truth '[0.0, 0.0, 2.0, 2.0]'" in line for line in lines) == 10
    assert "    and 2 more" in lines
    assert "rows with something wrong: 14" in lines
    assert "--output FILE writes all of them" in lines


def test_the_output_holds_every_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, *[("iou", [0, 0, 2, 2])] * 12)
    output = tmp_path / "new" / "findings.jsonl"
    assert main(["rewards", "check", f"--data={file}", f"--output={output}"]) == 1
    findings = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [finding["row"] for finding in findings] == list(range(1, 13))
    assert findings[0]["problem"] == "unparsable_truth"
    assert findings[0]["truth"] == "[0.0, 0.0, 2.0, 2.0]"
    assert list(output.parent.iterdir()) == [output]
    assert str(output) in capsys.readouterr().out


@pytest.mark.parametrize("images", ["link", "embed"])
def test_shards_have_the_rows_of_their_file(images: Any, tmp_path: Path, reward: MixedReward) -> None:
    file = write(tmp_path, *([("digit", 1)] * 9), ("digit", "many"), ("iou", [0.1]), ("digit", "few"))
    for path in {row["image"] for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"no image, which does not matter here")
    shards = tmp_path / "shards"
    convert.run(output_dir=shards, data_file=file, image_root=tmp_path, images=images, shard_mb=0.0005, workers=1)
    assert len(list(shards.glob("*.parquet"))) > 2
    expected = [("unreadable_row", 11), ("unparsable_truth", 10), ("unparsable_truth", 12)]
    assert found(file, reward) == found(shards, reward) == expected
    first, second = (read(path, kinds=None, sources=None, max_rows=10)[0] for path in (file, shards))
    assert [record.id for record in first] == [record.id for record in second]


def test_filters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, ("digit", 3), ("mcq", "A"), ("mcq", "B"), ("iou", [0, 0, 2, 2]))

    def checked(*flags: str) -> list[str]:
        assert main(["rewards", "check", f"--data={file}", *flags]) == int("--kinds=[iou]" in flags)
        return capsys.readouterr().out.splitlines()[1].split()[1:3]

    assert checked("--kinds=[mcq]") == checked("--sources=[geoqa170k]") == ["mcq", "2"]
    assert checked("--kinds=[mcq]", "--max-rows=1") == ["mcq", "1"]
    assert checked("--max-rows=1") == ["digit", "1"]
    assert checked("--kinds=[iou]") == ["iou", "1"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-rows=0"], "--max-rows"),
        (["--workers=0"], "--workers"),
        (["--sources=[imagenet]"], "imagenet"),
        (["--kinds=[chart]"], "no row"),
    ],
)
def test_errors_name_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str) -> None:
    file = write(tmp_path, ("digit", 3))
    assert main(["rewards", "check", f"--data={file}", *flags]) == 2
    assert words in capsys.readouterr().err
    assert main(["rewards", "check", f"--data={file}x"]) == 2
    assert "rows.jsonx does not exist" in capsys.readouterr().err
    assert main(["rewards", "check", f"--data={file}", f"--output={file}"]) == 2
    assert "overwrite" in capsys.readouterr().err


def test_workers_is_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Noted(MixedReward):
        def __init__(self, config: RewardConfig, **options: Any) -> None:
            made.append(config.math_workers)
            super().__init__(config, **options)

    monkeypatch.setattr("lit_vlaa.rewards_check.MixedReward", Noted)
    assert main(["rewards", "check", f"--data={write(tmp_path, ('digit', 3))}", "--workers=3"]) == 0
    assert made == [3]


def test_a_kind_that_no_row_has_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, ("digit", 3), ("iou", "no box"))
    assert main(["rewards", "check", f"--data={file}", "--kinds=[digt]"]) == 2
    assert "digt" in capsys.readouterr().err


def test_rows_that_nothing_scores_do_not_pass(tmp_path: Path) -> None:
    assert main(["rewards", "check", f"--data={write(tmp_path, ('chart', 'x'))}"]) == 1
