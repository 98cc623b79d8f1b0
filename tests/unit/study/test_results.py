from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.studies import ARMS, edit_manifest, edit_rows, only, write_json, write_lines, write_study
from lit_vlaa.study.contrasts import Absent, Contrasts
from lit_vlaa.study.results import read_study

TWO = {"base": ARMS["base"], "sft+rl": ARMS["sft+rl"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two arms, two seeds, eight rows; `sft+rl` has two train jobs a seed."""
    return write_study(tmp_path / "study", arms=TWO, seeds=(1, 2), rows=8, perplexity=True)


def manifest(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return content


def test_reads_everything(folder: Path) -> None:
    study = read_study(folder)
    assert study.name == "made-up"
    assert [arm.name for arm in study.arms] == ["base", "sft+rl"]
    assert study.arms[1].steps == ("sft", "rl")
    assert study.seeds == (1, 2)
    assert study.missing == ()
    assert set(study.evaluations) == {("base", 1), ("base", 2), ("sft+rl", 1), ("sft+rl", 2)}
    found = study.evaluations["sft+rl", 2]
    assert list(found.rows) == [("test", f"row{place}", 0) for place in range(8)]
    assert found.rows["test", "row3", 0].kind == "open_ended"
    assert found.image_root == folder / "data" / "images"
    tokens = found.rows["test", "row0", 0].tokens
    assert tokens is not None
    assert found.nll["test", "row0"] == (0.5 * tokens, tokens)
    job = study.training(study.arms[1], "rl", 2)
    assert job is not None
    assert job.seconds == 12.5
    assert len(study.curves[job.id]["reward/mean"].steps) == 40
    assert study.training(study.arms[0], "rl", 2) is None


def test_jobs_without_done_json_are_missing(folder: Path) -> None:
    (folder / "jobs" / "seed2-base-test" / "done.json").unlink()
    (folder / "jobs" / "seed1-sft+rl-rl" / "done.json").unlink()
    study = read_study(folder)
    assert [line.partition(" (")[0] for line in study.missing] == ["job seed1-sft+rl-rl", "job seed2-base-test"]
    assert study.seeds_of("base") == (1,)
    assert study.seeds_of("base", "sft+rl") == (1,)
    assert study.seeds_of("sft+rl") == (1, 2)


def test_what_another_configuration_left_is_missing(folder: Path) -> None:
    jobs = manifest(folder)["jobs"]
    assert isinstance(jobs, list)
    edit_manifest(folder, jobs=[job | {"config_sha256": "ef" * 32} for job in jobs])
    study = read_study(folder)
    assert len(study.missing) == len(jobs)
    assert not study.evaluations
    edit_manifest(folder, jobs=[job | {"config_sha256": "cd" * 32} for job in jobs])
    assert read_study(folder).missing == ()


def test_rows_with_one_id_are_told_apart_by_their_order(folder: Path) -> None:
    for path in folder.glob("jobs/seed*-test/responses.jsonl"):
        edit_rows(path, id="same")
    rows = read_study(folder).evaluations["base", 1].rows
    assert list(rows) == [("test", "same", place) for place in range(8)]
    assert rows["test", "same", 3].kind == "open_ended"


def test_benchmarks_beside_the_rows(folder: Path) -> None:
    for job in folder.glob("jobs/seed*-test"):
        lines = [{"benchmark": "maths", "id": str(n), "response": "7", "hit": n == 1, "tags": {}} for n in range(3)]
        write_lines(job / "benchmarks" / "maths" / "test.jsonl", lines)
    contrasts = Contrasts(read_study(folder))
    assert contrasts.sets == ("test",)
    assert Contrasts(contrasts.study, "benchmarks").mean("base", "score").found.value == pytest.approx(1 / 3)
    assert Contrasts(contrasts.study, "maths").mean("base", "score").found.rows == 3
    with pytest.raises(ValueError, match="names 'chess'; there are rows of maths, test"):
        Contrasts(contrasts.study, "chess")


def test_benchmarks_alone_have_equal_weight(folder: Path) -> None:
    for job in folder.glob("jobs/seed*-test"):
        (job / "responses.jsonl").unlink()
        for name, rows, hits in (("few", 2, 2), ("many", 8, 4)):
            row = {"benchmark": name, "response": "", "tags": {}}
            lines = [row | {"id": str(n), "hit": n < hits} for n in range(rows)]
            write_lines(job / "benchmarks" / name / "test.jsonl", lines)
    contrasts = Contrasts(read_study(folder))
    # Hits are 2 of 2 and 4 of 8: the mean of the shares, not of all ten rows.
    assert contrasts.mean("base", "score").found.value == pytest.approx(0.75)
    assert contrasts.by_seed("base", "score") == pytest.approx({1: 0.75, 2: 0.75})


def test_undecided_hits_are_wrong_and_undecided_rewards_left_out(folder: Path) -> None:
    for job in folder.glob("jobs/seed*-test"):
        path = job / "responses.jsonl"
        edit_rows(path, score=1.0)
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        write_lines(path, [line | ({"score": None} if line["id"] == "row0" else {}) for line in lines])
        row: dict[str, Any] = {"benchmark": "maths", "response": "", "tags": {}}
        lines = [row | {"id": "0", "hit": None}, row | {"id": "1", "hit": True}]
        write_lines(job / "benchmarks" / "maths" / "test.jsonl", lines)
    study = read_study(folder)
    rewards = Contrasts(study).mean("base", "score")
    assert (rewards.found.value, rewards.found.rows, rewards.left_out) == (1.0, 7, 1)
    hits = Contrasts(study, "maths").mean("base", "score")
    assert (hits.found.value, hits.found.rows, hits.left_out) == (0.5, 2, 0)


def test_a_row_without_a_verdict_in_one_arm_is_left_out_of_both(folder: Path) -> None:
    path = folder / "jobs" / "seed1-base-test" / "responses.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    write_lines(path, [row | ({"score": None} if row["id"] == "row5" else {}) for row in rows])
    contrasts = Contrasts(read_study(folder))
    assert contrasts.difference({"sft+rl": 1.0, "base": -1.0}, "score").left_out == 1
    assert contrasts.mean("sft+rl", "score").left_out == 0


def test_rows_about_one_picture_are_one_cluster(folder: Path) -> None:
    for path in folder.glob("jobs/seed*-test/responses.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        write_lines(path, [row | {"image": f"{place // 2}.png"} for place, row in enumerate(rows)])
    assert Contrasts(read_study(folder)).mean("base", "score").found.clusters == 4


def test_tokens_that_are_unknown(folder: Path) -> None:
    edit_rows(folder / "jobs" / "seed1-base-test" / "responses.jsonl", tokens=None)
    with pytest.raises(Absent, match="token counts are missing"):
        Contrasts(read_study(folder)).mean("base", "tokens")


def test_arms_that_answered_other_rows_are_refused(folder: Path) -> None:
    path = folder / "jobs" / "seed2-sft+rl-test" / "responses.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[1:]) + "\n", encoding="utf-8")
    message = r"seed1-base-test.* and seed2-sft\+rl-test.* 1 are only in the first .'test/row0"
    with pytest.raises(ValueError, match=message):
        read_study(folder)


@pytest.mark.parametrize("name", ["truth", "question", "image", "kind", "source"])
def test_arms_that_were_asked_something_else_are_refused(folder: Path, name: str) -> None:
    edit_rows(folder / "jobs" / "seed2-sft+rl-test" / "responses.jsonl", **{name: "another"})
    words = "pictures" if name == "image" else f"{name}s"
    with pytest.raises(ValueError, match=rf"different {words} of the row 'row0'.*remove the done\.json"):
        read_study(folder)


def test_arms_that_began_from_different_weights_are_refused(folder: Path) -> None:
    jobs = {job["id"]: job["after"] for job in json.loads((folder / "manifest.json").read_text())["jobs"]}
    job, (before,) = next((job, after) for job, after in jobs.items() if after and "sft+rl" in job)
    for name, changes in ((before, {"weights_sha256": "a"}), (job, {"from": {before: "b"}})):
        path = folder / "jobs" / name / "done.json"
        write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)
    with pytest.raises(ValueError, match=r"began from other weights of .* than are there now") as caught:
        read_study(folder)
    assert str(caught.value).startswith(f"job {job} began from other weights of {before} than")


def test_logs_of_an_interrupted_job_are_joined(folder: Path) -> None:
    version = folder / "jobs" / "seed1-sft+rl-rl" / "version_10"
    version.mkdir()
    (version / "metrics.csv").write_text("step,reward/mean,x\n40,0.25,\n41,0.5,nan\n,9,9\n", encoding="utf-8")
    curve = read_study(folder).curves["seed1-sft+rl-rl"]["reward/mean"]
    assert curve.steps == tuple(range(1, 42))
    assert curve.values[-2:] == (0.25, 0.5)
    assert "x" not in read_study(folder).curves["seed1-sft+rl-rl"]


def test_the_image_root_of_a_saved_configuration(folder: Path) -> None:
    jobs = manifest(folder)["jobs"]
    assert isinstance(jobs, list)
    edit_manifest(folder, jobs=[job | {"command": ["test"]} for job in jobs])
    assert read_study(folder).evaluations["base", 1].image_root is None
    version = folder / "jobs" / "seed1-base-test" / "version_0"
    version.mkdir()
    text = "data: {init_args: {image_root: some/images}}\nmodel: {init_args: {backbone: {path: tiny}}}\n"
    (version / "config.yaml").write_text(text, encoding="utf-8")
    found = read_study(folder).evaluations["base", 1]
    assert (found.image_root, found.model) == (Path("some/images"), "tiny")
    (version / "config.yaml").write_text("a: !!python/object/apply:os.getcwd []", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.yaml: cannot be read: could not determine a constructor"):
        read_study(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "'format' is 2, this version reads 1"),
        ({"arms": {}}, "'arms' is empty"),
        ({"arms": []}, "'arms' has the wrong type list"),
        ({"seeds": None}, "'seeds' has the wrong type NoneType"),
        ({"jobs": ["x"]}, "an object with 'id' is expected, got str"),
        ({"evaluations": [{"arm": "base", "seed": 1, "job": "none"}]}, "names the unknown job 'none'"),
        ({"jobs": [{"id": "../../etc", "kind": "train"}]}, "job id '../../etc' is no folder below"),
        ({"jobs": [{"id": "", "kind": "train"}]}, "job id '' is no folder below"),
    ],
    ids=["format", "no-arms", "arms", "seeds", "job", "evaluation", "outside", "empty-id"],
)
def test_a_broken_manifest_is_named(folder: Path, changes: dict[str, object], message: str) -> None:
    edit_manifest(folder, **changes)
    with pytest.raises(ValueError, match=r"manifest\.json: ") as refused:
        read_study(folder)
    assert message in str(refused.value)


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000], ids=["empty", "list", "cut", "deep"])
def test_a_manifest_that_is_no_object(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"manifest\.json: (cannot be read|a JSON object is expected)"):
        read_study(folder)


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the folder holds no study; give the output_dir of `lit-vlaa study run`"):
        read_study(tmp_path)


def test_an_evaluation_that_left_nothing(folder: Path) -> None:
    (folder / "jobs" / "seed1-base-test" / "responses.jsonl").unlink()
    (folder / "jobs" / "seed1-base-test" / "perplexity.jsonl").unlink()
    with pytest.raises(ValueError, match="seed1-base-test: there is neither"):
        read_study(folder)


def test_seconds_must_be_a_number(folder: Path) -> None:
    write_json(folder / "jobs" / "seed1-base-test" / "done.json", {"seconds": "long"})
    with pytest.raises(ValueError, match=r"done\.json: 'seconds' has the wrong type str"):
        read_study(folder)


def test_a_stage_that_arms_share(tmp_path: Path) -> None:
    arms = {"sft": only("sft"), "sft+rl": only("sft+rl")}
    study = read_study(write_study(tmp_path / "study", arms=arms, seeds=(4,), rows=4))
    first, second = (study.training(arm, "sft", 4) for arm in study.arms)
    assert first is not None
    assert first is second
    assert first.arms == ("sft", "sft+rl")
