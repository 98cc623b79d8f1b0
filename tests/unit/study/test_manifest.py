from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.fake_study import FakeLaunch, load, manifest, resolve
from lit_vlaa.checks import UsageError
from lit_vlaa.study import circumstances, inputs, job_files
from lit_vlaa.study import runner as runners
from lit_vlaa.study.runner import Runner, look

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "_report", lambda _: None)


def nothing(_: Any) -> None:
    pass


def run(folder: Path, change: Change = nothing, **options: Any) -> FakeLaunch:
    launch = FakeLaunch(folder)
    Runner(look(load(folder, change), resolve), launch=launch, command=["study", "run"], **options).all()
    return launch


def test_contents(tmp_path: Path) -> None:
    run(
        tmp_path,
        lambda c: c["arms"]["sft"].update(differs={"sft": {"model.optim.lr": {"value": 2.0, "reason": "more"}}}),
    )
    found = manifest(tmp_path)
    assert (found["format"], found["name"], found["seeds"]) == (1, "small", [1, 2])
    assert found["config"]["arms"]["sft+rl"] == {"steps": ["sft", "rl"]}
    assert found["arms"]["sft"] == {
        "steps": ["sft"],
        "title": "SFT alone",
        "differs": {"sft.model.init_args.optim.lr": "more"},
    }
    assert found["matched"]["arms"]["sft"]["sft"]["differs"][0]["arm"] == 2.0
    job = next(job for job in found["jobs"] if job["id"] == "seed1-sft-sft")
    assert (job["kind"], job["stage"], job["arms"], job["seed"], job["after"]) == (
        "train",
        "sft",
        ["sft"],
        1,
        ["start"],
    )
    assert job["command"][0] == "fit"
    assert {"arm": "rl", "seed": 2, "job": "seed2-rl-test"} in found["evaluations"]
    text = b'{"row": 1}\n\n{"row": 2}\n'
    expected = {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text), "rows": 2}
    assert found["data"] == {str(tmp_path / f"{name}.json"): expected for name in ("sft", "rl", "test")}
    assert set(found["code"]) == {"version", "git_commit", "git_dirty", "sources_sha256"}
    assert "torch" in found["packages"]
    assert found["machine"]["processors"] >= 1
    resolved = yaml.safe_load((tmp_path / "out" / "resolved" / "sft@sft.yaml").read_text())
    assert resolved["model"]["init_args"]["optim"]["lr"] == 2.0


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('[{"a": 1}, {"a": [2]}]', 2),
        (' \n[\n{"a": 1}\n,\n{"b": 2}]', 2),
        ("﻿{}\n{}\n\n{}", 3),
        ("", 0),
        ("[{", None),
        ("x", None),
    ],
    ids=["array", "array over lines", "lines with a mark", "nothing", "broken", "neither"],
)
def test_rows_are_counted_in_every_form(text: str, rows: int | None, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    found = inputs.hash_file(path)
    assert found["rows"] == rows
    assert found["bytes"] == len(text.encode())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda c: c["stages"]["rl"].update(flags={"model.optim.lr": 0.002}, config=["rl.yaml"]),
            "stages.rl.flags.model.optim.lr was absent, is 0.002",
        ),
        (lambda c: c["start"].update(seed=6), "start.seed was 5, is 6"),
        (lambda c: c["arms"].pop("sft+rl"), "jobs are gone: seed1-sft+rl-rl"),
        (lambda c: c.update(seeds=[2]), "jobs are gone: seed1-base-test"),
    ],
    ids=["setting", "start", "arm", "seed"],
)
def test_a_folder_of_another_study_is_refused(change: Change, expected: str, tmp_path: Path) -> None:
    run(tmp_path)
    before = manifest(tmp_path)

    def all_of_it(content: dict[str, Any]) -> None:
        change(content)
        content["stages_differ"] |= {"model.optim.lr": "x"} if "flags" in content["stages"]["rl"] else {}

    with pytest.raises(UsageError) as caught:
        run(tmp_path, all_of_it)
    assert any(expected in problem for problem in caught.value.problems), caught.value.problems
    assert all("was begun with another study" in problem for problem in caught.value.problems[:1])
    assert "give another --output_dir than" in caught.value.problems[0]
    assert manifest(tmp_path) == before


def test_a_config_file_that_changed_is_refused_with_its_key(tmp_path: Path) -> None:
    run(tmp_path)
    study = load(tmp_path)
    for name in ("sft", "rl", "evaluation"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(path.read_text().replace("max_pixels: 7056", "max_pixels: 8000"))
    with pytest.raises(UsageError, match=r"sft: model\.init_args\.backbone\.max_pixels was 7056, is 8000"):
        Runner(look(study, resolve), launch=FakeLaunch(tmp_path)).all()


def test_changed_data_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "rl.json").write_text('{"row": 1}\n{"row": 3}\n')
    with pytest.raises(UsageError, match=r"the content of .*rl\.json has changed"):
        run(tmp_path)


def test_changed_commands_that_make_the_data_are_run(tmp_path: Path) -> None:
    run(tmp_path)
    launch = run(tmp_path, lambda c: c.update(prepare=[["data", "make", "there"]]))
    # They make the same data, so that all that was done stays.
    assert launch.words == [("data", "make", "there")]
    assert manifest(tmp_path)["config"]["prepare"] == [["data", "make", "there"]]

    class Other(FakeLaunch):
        def __call__(self, words: Any, **options: Any) -> int:
            code = super().__call__(words, **options)
            (tmp_path / "rl.json").write_text('{"row": 3}\n')
            return code

    study = load(tmp_path, lambda c: c.update(prepare=[["data", "make", "elsewhere"]]))
    with pytest.raises(UsageError, match=r"the content of .*rl\.json has changed"):
        Runner(look(study, resolve), launch=Other(tmp_path)).all()


def pictures(folder: Path, content: dict[str, Any]) -> None:
    """Gives a study a folder of pictures, and one of benchmarks to its evaluation."""
    for name in ("images", "benchmarks"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "one").write_text("1")
    content["common"] = {"flags": {"data.image_root": str(folder / "images")}}
    callback = {"class_path": "callbacks.BenchmarkEvaluation", "init_args": {"data_dir": str(folder / "benchmarks")}}
    content["evaluation"]["flags"] = {"trainer.callbacks": json.dumps([callback])}


@pytest.mark.parametrize("name", ["images", "benchmarks"])
def test_folders_that_jobs_read_are_held_to_what_they_were(name: str, tmp_path: Path) -> None:
    run(tmp_path, lambda c: pictures(tmp_path, c))
    entry = manifest(tmp_path)["data"][str(tmp_path / name)]
    assert (entry["files"], entry["bytes"], entry["rows"]) == (1, 1, None)
    prepared = look(load(tmp_path, lambda c: pictures(tmp_path, c)), resolve)
    (tmp_path / name / "one").write_text("2")
    with pytest.raises(UsageError, match=rf"the content of .*{name} has changed"):
        Runner(prepared, launch=FakeLaunch(tmp_path)).all()


def test_folders_are_told_by_names_sizes_and_the_ends_of_few_files(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "weights").write_bytes(b"0" * 200_000)
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / ".cache").write_text("hidden")

    def seen() -> str:
        return str(inputs.hash_folder(tmp_path / "a")["sha256"])

    first = seen()
    assert inputs.hash_folder(tmp_path / "a")["files"] == 1
    (tmp_path / "a" / "b" / "weights").write_bytes(b"0" * 199_999 + b"1")
    second = seen()
    (tmp_path / "a" / "b" / "weights").rename(tmp_path / "a" / "b" / "other")
    assert len({first, second, seen()}) == 3
    for number in range(200):
        (tmp_path / "a" / str(number)).write_text("0")
    many = seen()
    (tmp_path / "a" / "7").write_text("1")
    assert seen() == many
    (tmp_path / "a" / "7").write_text("10")
    assert seen() != many


def test_more_arms_seeds_and_other_words_are_welcome(tmp_path: Path) -> None:
    first = run(tmp_path)

    def change(content: dict[str, Any]) -> None:
        content |= {"seeds": [1, 2, 3], "description": "longer", "claims": {"arms": {"rl": "rl"}}}
        content["arms"]["rl"]["title"] = "RL alone"
        content["arms"]["two"] = {"steps": ["rl", "rl"]}

    second = run(tmp_path, change)
    assert first.ran[:2] == ["start", "seed1-base-test"]
    assert second.ran[:2] == ["seed1-two-rl-2", "seed1-two-test"]
    assert not set(first.ran) & set(second.ran)
    found = manifest(tmp_path)
    assert (found["description"], found["arms"]["rl"]["title"], found["seeds"]) == ("longer", "RL alone", [1, 2, 3])


@pytest.mark.parametrize("what", ["code", "packages"])
def test_other_code_is_refused_unless_accepted(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = FakeLaunch(tmp_path)
    prepared = look(load(tmp_path), resolve)
    Runner(prepared, launch=launch).all(seeds=[1])
    known = {"code": circumstances.code(), "packages": circumstances.packages()}
    changed = {**known["code"], "sources_sha256": "0"} if what == "code" else {**known["packages"], "torch": "9.9"}
    monkeypatch.setattr(circumstances, what, lambda: changed)
    expected = "its sources" if what == "code" else r"torch \S+ -> 9\.9"
    with pytest.raises(UsageError, match=rf"this program has changed \({expected}\).*accept it with --other_code"):
        Runner(prepared, launch=launch).all()
    Runner(prepared, launch=launch, other_code=True).all()
    (entry,) = manifest(tmp_path)["other_code"]
    assert entry[what] == changed
    assert entry["first_job"] == "seed2-base-test"
    assert manifest(tmp_path)[what] == known[what]
    # Nothing is left to run: the report may be made by any version.
    monkeypatch.setattr(circumstances, what, lambda: {**changed, "torch": "10", "sources_sha256": "1"})
    Runner(prepared, launch=launch).all()


def test_code_is_told_by_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circumstances, "_ROOT", tmp_path)
    for name in (
        "lit_vlaa/a.py",
        "lit_vlaa/study/b.py",
        "lit_vlaa/study/responses.py",
        "callbacks/c.py",
        "datamodules/d.py",
        "docs/e.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")

    def changed_by(name: str) -> bool:
        before = circumstances.code()["sources_sha256"]
        (tmp_path / name).write_text("2")
        return bool(circumstances.code()["sources_sha256"] != before)

    assert [changed_by(n) for n in ("lit_vlaa/a.py", "callbacks/c.py", "datamodules/d.py")] == [True, True, True]
    assert [changed_by(n) for n in ("lit_vlaa/study/b.py", "docs/e.py")] == [False, False]
    assert changed_by("lit_vlaa/study/responses.py")  # jobs write by it
    assert circumstances.code()["git_commit"] is None


@pytest.mark.parametrize("text", ["[]", "{", '{"format": 2, "jobs": []}', '{"format": 1}'])
def test_other_manifests_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(text)
    with pytest.raises(UsageError, match=r"manifest\.json .*give another --output_dir"):
        run(tmp_path)


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"holds thesis\.tex but no study"):
        run(tmp_path)


def test_files_are_written_whole_and_only_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.json"
    job_files.write_json(path, {"a": 1})
    stamp = path.stat().st_mtime_ns
    job_files.write_json(path, {"a": 1})
    assert path.stat().st_mtime_ns == stamp
    job_files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


def test_the_reserved_ids_are_no_jobs() -> None:
    # Jobs of arms begin with `seed`, so that no arm can take these names.
    assert {runners.PREPARE, runners.REPORT} == {"prepare", "report"}
