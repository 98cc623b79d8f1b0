"""`lit-vlaa data select` as a user runs it: scores, resumes, shards and ranks; what it keeps trains."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import VLAAThinkingDataModule, convert
from datamodules.dataset import open_images
from datamodules.shards import rows_of
from datamodules.synthetic import SyntheticPaths, write_dataset
from datamodules.table import RecordTable
from helpers.commands import lit, lit_in_ranks, logged
from helpers.killed import nursery
from lit_vlaa.backbone import BackboneConfig, build_backbone
from lit_vlaa.perplexity import TextRow, likelihoods
from lit_vlaa.prompts import PromptConfig
from lit_vlaa.selection.scores import ScoreFile
from lit_vlaa.traces import count_cues
from lit_vlaa.types import KINDS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "quickstart" / "sft.yaml"
ROWS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SyntheticPaths:
    root = tmp_path_factory.mktemp("data") / "set"
    return write_dataset(root, sft_count=ROWS, grpo_count=1, test_count=1, aha_fraction=0.5, progress=False)


def words(data: SyntheticPaths, out: Path, *flags: Any) -> list[str]:
    own = ["data", "select", "--data-file", data.data_file("sft"), "--image-root", data.image_root, "--output-dir", out]
    batches = ["--batch-size", "4"] if "--models" in flags else []
    return [*map(str, own), "--config", str(CONFIG), "--accelerator", "cpu", *batches, *map(str, flags)]


def select(data: SyntheticPaths, out: Path, *flags: Any) -> int:
    return lit(*words(data, out, *flags))


def scores(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "scores.jsonl").read_text(encoding="ascii").splitlines()]


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def written(out: Path) -> list[dict[str, Any]]:
    """Every line of likelihoods, whoever wrote it."""
    return [json.loads(line) for path in sorted(out.glob("scores/*/*.jsonl")) for line in lines(path)]


@pytest.fixture(scope="module")
def done(data: SyntheticPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done")
    assert select(data, out, "--models", "tiny", "--keep", 4, 9) == 0
    return out


def test_the_least_expected_responses_are_kept(data: SyntheticPaths, done: Path) -> None:
    module = VLAAThinkingDataModule(
        split="sft",
        data_file=str(data.data_file("sft")),
        test_file=str(data.data_file("sft")),
        image_root=str(data.image_root),
        eval_batch_size=ROWS,
        num_workers=0,
        prompt=PromptConfig(system_prompt="", instructions=dict.fromkeys(KINDS, "")),  # as in the configuration
    )
    backbone = build_backbone(BackboneConfig(max_pixels=7056))
    module.attach_processor(backbone.processor)
    module.prepare_data()
    module.setup("predict")
    (batch,) = module.predict_dataloader()
    rows = [TextRow(prompt, str(prompt.record.response)) for prompt in batch.prompts]
    expected = likelihoods(backbone, rows)
    found = scores(done)
    assert [row["row"] for row in found] == list(range(1, ROWS + 1))
    assert [row["models"][0]["nll"] for row in found] == pytest.approx([one.nll for one in expected], rel=1e-5)
    assert [row["perplexity"] for row in found] == pytest.approx([one.perplexity for one in expected], rel=1e-5)
    order = sorted(range(ROWS), key=lambda row: -expected[row].perplexity)
    assert [row["place"] for row in found] == [order.index(row) + 1 for row in range(ROWS)]
    source = lines(data.data_file("sft"))
    for count in (4, 9):
        kept = done / f"VLAA-Thinking-SFT-{count}.json"
        assert lines(kept) == [source[row] for row in sorted(order[:count])]
    report = json.loads((done / "report.json").read_text(encoding="utf-8"))
    assert report["kept"]["4"]["perplexity"]["min"] == pytest.approx(expected[order[3]].perplexity, rel=1e-5)
    assert sum(report["kept"]["9"]["sources"].values()) == 9
    assert sum(own["rows"] for own in report["sources"].values()) == report["eligible"] == ROWS
    assert (done / "perplexity.png").read_bytes().startswith(b"\x89PNG")


def test_two_ranks_write_what_one_does(data: SyntheticPaths, done: Path, tmp_path: Path) -> None:
    lit_in_ranks(words(data, tmp_path, "--models", "tiny", "--keep", 4, "--devices", 2), timeout=280)
    assert [path.name for path in sorted(tmp_path.glob("scores/*/*.jsonl"))] == [
        "1-of-1-rank0.jsonl",
        "1-of-1-rank1.jsonl",
    ]
    assert sorted(row["row"] for row in written(tmp_path)) == list(range(1, ROWS + 1))
    for alone, shared in zip(scores(done), scores(tmp_path), strict=True):
        assert shared["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-5)
    name = "VLAA-Thinking-SFT-4.json"
    assert (tmp_path / name).read_bytes() == (done / name).read_bytes()


def test_nothing_written_is_scored_again(data: SyntheticPaths, done: Path, tmp_path: Path) -> None:
    flags = words(data, tmp_path, "--models", "tiny", "--keep", 4)
    with nursery("lit_vlaa.selection.run") as children:
        # Ahead of the third of five batches, and of the end of the choice.
        assert children.run(*flags, die=("lit_vlaa.selection.scores:ScoreFile.append", 3)) == -9
        first = written(tmp_path)
        assert [row["row"] for row in first] == list(range(1, 9))
        assert children.run(*flags, die=("lit_vlaa.selection.run:write", 1)) == -9
        assert [row["row"] for row in written(tmp_path)] == list(range(1, ROWS + 1))
        assert written(tmp_path)[:8] == first
        # All is scored: no model is built.
        assert children.run(*flags, die=("lit_vlaa.backbone.model:build_backbone", 1)) == 0
    assert [row["row"] for row in written(tmp_path)] == list(range(1, ROWS + 1))
    assert [row["place"] for row in scores(tmp_path)] == [row["place"] for row in scores(done)]


def test_shards_then_the_choice(
    data: SyntheticPaths, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert select(data, tmp_path, "--models", "tiny", "--keep", 4, "--shard", "2/2") == 0
    assert "shard 2/2 is scored; without --shard the command chooses" in capsys.readouterr().out
    assert [row["row"] for row in written(tmp_path)] == list(range(2, ROWS + 1, 2))
    assert not (tmp_path / "scores.jsonl").exists()
    assert select(data, tmp_path, "--models", "tiny", "--keep", 4, "--order", "lowest") == 0
    assert sorted(row["row"] for row in written(tmp_path)) == list(range(1, ROWS + 1))
    assert [row["place"] for row in scores(tmp_path)] == [ROWS + 1 - row["place"] for row in scores(done)]


def test_shards_give_shards(
    data: SyntheticPaths, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scored like their file, from the images inside; what is kept is read like the rows kept of the file."""
    folder, out = tmp_path / "rows-20", tmp_path / "out"
    root = data.image_root
    convert.run(output_dir=folder, data_file=data.data_file("sft"), image_root=root, shard_mb=0.005, workers=1)
    common = ["data", "select", "--data-file", folder, "--output-dir", out, "--config", CONFIG, "--accelerator", "cpu"]
    flags = ["--models", "tiny", "--batch-size", "4", "--keep", "4", "9"]
    assert lit(*map(str, [*common, *flags])) == 0
    assert "4 rows in rows-4, perplexity" in capsys.readouterr().out
    for ours, theirs in zip(scores(out), scores(done), strict=True):
        assert (ours["row"], ours["place"], ours["source"]) == (theirs["row"], theirs["place"], theirs["source"])
        assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-6)
    for count in (4, 9):
        found = [at.value for at in rows_of(out / f"rows-{count}")]
        assert found == [json.loads(line) for line in lines(done / f"VLAA-Thinking-SFT-{count}.json")]
    # The images inside are all that a run needs.
    table = RecordTable.prepare(
        out / "rows-4", split="sft", image_root=tmp_path, on_bad_record="error", cache_dir=tmp_path / "cache"
    )
    assert all(open_images(row, image_root=tmp_path, max_pixels=10**6) for row in table)
    # A choice among the kept, where the name of a folder of another kind is taken.
    (tmp_path / "of" / "rows-2").mkdir(parents=True)
    of = ["--data-file", out / "rows-9", "--output-dir", tmp_path / "of", "--random", "--keep", "2"]
    assert lit(*map(str, ["data", "select", *of])) == 2
    assert "rows-2 is there and holds no shards; remove it" in capsys.readouterr().err
    (tmp_path / "of" / "rows-2").rmdir()
    assert lit(*map(str, ["data", "select", *of])) == 0
    assert {at.number for at in rows_of(tmp_path / "of" / "rows-2")} < {at.number for at in rows_of(out / "rows-9")}


def test_linked_shards_need_their_images(
    data: SyntheticPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "linked"
    convert.run(output_dir=folder, data_file=data.data_file("sft"), images="link", workers=1)
    common = ["data", "select", "--data-file", str(folder), "--output-dir", str(tmp_path / "out"), "--random"]
    assert lit(*common, "--keep", "3") == 2
    assert "--image-root is missing: the folder that image paths start from" in capsys.readouterr().err
    assert lit(*common, "--keep", "3", "--image-root", str(data.image_root)) == 0
    assert len(list(rows_of(tmp_path / "out" / "linked-3"))) == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl_c", "sigterm"])
def test_a_signal_ends_it_and_loses_nothing(
    number: signal.Signals,
    code: int,
    data: SyntheticPaths,
    done: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    append = ScoreFile.append

    def append_and_signal(file: ScoreFile, rows: Any) -> None:
        append(file, rows)
        os.kill(os.getpid(), number)

    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        with monkeypatch.context() as patch:
            patch.setattr(ScoreFile, "append", append_and_signal)
            assert select(data, tmp_path, "--models", "tiny", "--keep", 4) == code
    finally:
        for one, handler in handlers.items():  # Lightning leaves Ctrl-C switched off
            signal.signal(one, handler)
    assert "lit-vlaa: interrupted: nothing was chosen; the same command goes on" in capsys.readouterr().err
    assert [row["row"] for row in written(tmp_path)] == [1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores"]
    assert select(data, tmp_path, "--models", "tiny", "--keep", 4) == 0
    assert sorted(row["row"] for row in written(tmp_path)) == list(range(1, ROWS + 1))
    name = "VLAA-Thinking-SFT-4.json"
    assert (tmp_path / name).read_bytes() == (done / name).read_bytes()


def test_a_row_beyond_the_context(data: SyntheticPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in lines(data.data_file("sft"))[:3]]
    rows[1]["question"] = "x" * 10_000  # the tiny model knows 8192 positions
    rows[2]["question"] = "x" * 2**20  # not even counted
    file = tmp_path / "rows.json"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    common = ["data", "select", "--data-file", file, "--image-root", data.image_root, "--output-dir", tmp_path / "out"]
    common += ["--config", CONFIG, "--models", "tiny", "--data.init_args.num_workers", "0"]
    assert lit(*map(str, common)) == 2
    message = capsys.readouterr().err
    assert f"{file}:2: " in message
    assert "tokens, it is longer than the model's context of 8192; shorten the row, or leave such rows out" in message
    assert lit(*map(str, common), "--keep", "1", "--data.init_args.on_bad_record=skip") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["unscored"] == {"it is longer than the model's context": 2}
    assert lines(tmp_path / "out" / "rows-1.json") == lines(file)[:1]


def test_what_is_kept_trains_and_scores(data: SyntheticPaths, done: Path, tmp_path: Path) -> None:
    """SFT on rows with aha cues; the checkpoint and the first model then score together."""
    assert select(data, tmp_path / "aha", "--aha", "with", "--name", "aha") == 0
    (kept,) = (tmp_path / "aha").glob("aha-*.json")
    source = lines(data.data_file("sft"))
    assert lines(kept) == [row for row in source if "Wait, let me check again" in row]
    assert select(data, tmp_path / "plain", "--aha", "without", "--random", "--seed", 3, "--keep", 2, 5) == 0
    two, five = (lines(tmp_path / "plain" / f"VLAA-Thinking-SFT-{count}.json") for count in (2, 5))
    assert set(two) < set(five) < set(source) - set(lines(kept))
    flags = {
        "data.init_args.data_file": kept,
        "data.init_args.image_root": data.image_root,
        "data.init_args.val_file": "null",
        "data.init_args.batch_size": 1,
        "trainer.default_root_dir": tmp_path / "run",
        "trainer.max_steps": 1,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": False,
    }
    assert lit("fit", f"--config={CONFIG}", *(f"--{name}={value}" for name, value in flags.items())) == 0
    assert any("train/loss" in row for row in logged(tmp_path / "run"))
    (trained,) = (tmp_path / "run").rglob("*.ckpt")

    both = ["--models", "tiny", trained, "--aha", "with"]
    assert select(data, tmp_path / "two", *both) == 0
    found = scores(tmp_path / "two")
    assert len(found) == len(lines(kept))
    first = {row["row"]: row["perplexity"] for row in scores(done)}
    mean = []
    for row in found:
        own = [torch.tensor(one["nll"] / one["tokens"]).exp().item() for one in row["models"]]
        assert own[0] == pytest.approx(first[row["row"]], rel=1e-5)
        assert own[1] != pytest.approx(own[0], rel=1e-3)
        assert row["perplexity"] == pytest.approx(sum(own) / 2, rel=1e-5)
        mean.append((own[0] * own[1]) ** 0.5)
    assert select(data, tmp_path / "two", *both, "--mean", "log-perplexity") == 0
    assert [row["perplexity"] for row in scores(tmp_path / "two")] == pytest.approx(mean, rel=1e-5)


def test_cues_as_words(tmp_path: Path, data: SyntheticPaths) -> None:
    row = json.loads(lines(data.data_file("sft"))[0])
    file = tmp_path / "rows-2.json"
    texts = ("It leans against it.", "Wait.")
    answers = [{**row, "answer": f"<think>{text}</think><answer>1</answer>"} for text in texts]
    file.write_text("".join(json.dumps(answer) + "\n" for answer in answers), encoding="utf-8")
    assert sum(count_cues(texts[0]).values()) == 1

    def counted(*flags: str) -> dict[str, Any]:
        common = ["--data-file", str(file), "--image-root", str(data.image_root), "--output-dir", str(tmp_path / "out")]
        assert lit("data", "select", *common, "--aha", "with", *flags) == 0
        found: dict[str, Any] = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
        return found

    assert list(counted()["kept"]) == ["2"]
    assert list(counted("--matching", "words")["kept"]) == ["1"]


def test_a_broken_image(data: SyntheticPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in lines(data.data_file("sft"))[:3]]
    images = tmp_path / "images"
    for row in rows:
        (images / row["image"]).parent.mkdir(parents=True, exist_ok=True)
        (images / row["image"]).write_bytes((data.image_root / row["image"]).read_bytes())
    (images / rows[1]["image"]).write_bytes(b"\x89PNG and no more")
    rows[2]["answer"] = "<answer>4</answer>"  # without a thought
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    common = ["data", "select", "--data-file", file, "--image-root", images, "--output-dir", tmp_path / "out"]
    common += ["--config", CONFIG, "--models", "tiny", "--part", "thinking", "--keep"]

    def run(*flags: Any) -> tuple[int, str]:
        code = lit(*map(str, [*common, *flags]))
        return code, capsys.readouterr().err

    code, message = run(1)
    assert code == 2
    assert f"lit-vlaa: error: {file}:2: image: cannot be read" in message
    skip = "--data.init_args.on_bad_record=skip"
    assert run(3, skip) == (2, "lit-vlaa: error: --keep 3 is more than the 1 rows that could be scored\n")
    code, _ = run(1, skip)
    assert code == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["unscored"] == {"its image cannot be read": 1, "it has no token of the thinking": 1}
    (kept,) = json.loads((tmp_path / "out" / "rows-1.json").read_text(encoding="utf-8"))
    assert kept == rows[0]
    # Where no row may be left out, one that was is looked at again.
    assert run(1)[0] == 2
    assert run(4, skip) == (2, "lit-vlaa: error: --keep 4 is more than the 3 rows to choose from\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "none.ckpt"], "--models none.ckpt does not exist; seen from"),
        (["--models", "{folder}/no_model"], "no_model: "),
        (["--random", "--output-dir", "{folder}/set-20.json"], "set-20.json is a file; name a folder"),
        (["--models", "tiny", "--trainer.precision=16-mixed"], "--trainer.precision 16-mixed does not work"),
        (["--random", "--name", "{stem}", "--output-dir", "{folder}"], "would overwrite --data-file; give others"),
    ],
    ids=["checkpoint", "folder", "output", "precision", "overwrites"],
)
def test_one_line_names_the_remedy(
    flags: Sequence[str],
    message: str,
    data: SyntheticPaths,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / f"set-{ROWS}.json"
    file.write_bytes(data.data_file("sft").read_bytes())
    (tmp_path / "no_model").mkdir()
    given = [flag.format(stem="set", folder=tmp_path) for flag in flags]
    common = ["data", "select", "--data-file", file, "--image-root", data.image_root, "--output-dir", tmp_path / "out"]
    assert lit(*map(str, common), *given) == 2
    assert message in capsys.readouterr().err
    assert file.read_bytes() == data.data_file("sft").read_bytes()
