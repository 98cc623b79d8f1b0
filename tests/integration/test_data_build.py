"""`lit-vlaa data build` as users run it: counts by step, resume after a kill at every step, shards, training."""

from __future__ import annotations

import json
import logging
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.builds import ASKING, completion, endpoints, make_config, make_source, questions, read_lines, split
from helpers.commands import lit
from helpers.killed import Nursery, nursery
from helpers.scripted_http import Reply, closed_port
from helpers.tiny_chat_server import MODEL, REASONING_MODEL, tiny_chat_server

RESULTS = ("report.json", "rejects.jsonl", "README.md", "funnel.png")
IMPORTED = ("lit_vlaa.pipeline.build", "lit_vlaa.pipeline.metadata", "lit_vlaa.pipeline.pictures", "matplotlib.figure")


def build(config: Path, output: Path, *more: str) -> int:
    return lit("data", "build", f"--config={config}", f"--output-dir={output}", *more)


def results(output: Path) -> dict[str, bytes]:
    """Everything that a build made but for what it keeps to go on."""
    names = [*RESULTS, *(path.name for path in output.glob("VLAA-Thinking-*.json"))]
    return {name: (output / name).read_bytes() for name in names}


def funnel(output: Path) -> list[tuple[int, int]]:
    report = json.loads((output / "report.json").read_text())
    return [(step["rows_in"], step["rows_out"]) for step in report["steps"]]


def number_of(text: str) -> int:
    """The number in the question that a request holds."""
    return int(re.findall(r"are in picture (\d+)\?", text)[-1])


def hostile_answers() -> dict[str, Any]:
    """One row in ten fails each filter; see `test_counts_by_step`."""

    def distil(text: str, answer: str) -> Any:
        number = number_of(text)
        thinking = "<think>I count the dots of the caption.</think>"
        return {
            2: Reply(completion(answer, finish="length")),
            3: f"no thinking at all, {number}",
            4: f"{thinking}<answer>4</answer><answer>5</answer>",
            5: Reply({"error": "filtered"}, status=400),
            6: Reply(completion({"content": str(number), "reasoning_content": "I count the dots of the caption."})),
        }.get(number, answer)

    def rewrite(text: str, answer: str) -> str:
        number = number_of(text)
        return {
            7: answer.replace("</reasoning>", f"{' so' * 16}</reasoning>"),
            8: answer.replace("</reasoning>", f"{' so' * 15}</reasoning>"),
            9: answer.replace("image shows", "description says"),
            10: "I will not.",
        }.get(number, answer.replace("of the caption", "of the picture"))

    def verify(text: str, _: str) -> str:
        number = number_of(text)
        return {11: "No", 12: "Yes and no", 13: "<think>hm</think>\nYes."}.get(number, "Yes")

    return {"distil": distil, "rewrite": rewrite, "verify": verify}


def test_counts_by_step(tmp_path: Path) -> None:
    make_source(tmp_path, [*questions(15), {"question": "How many dots are in picture 0?", "answer": 0, "image": "x"}])
    with endpoints(hostile_answers()) as (server, script):
        config = make_config(tmp_path, server.url)
        assert build(config, tmp_path / "out") == 0
    out = tmp_path / "out"
    # 16 rows, one without its image; 2 3 4 5 fail in distil, 7 9 10 in rewrite, 11 12 in verify: 15 - 4 - 3 - 2 = 6.
    assert funnel(out) == [(16, 15), (15, 15), (15, 11), (11, 8), (8, 6), (6, 6)]
    rejects = [(row["step"], row["id"], row["reason"]) for row in read_lines(out / "rejects.jsonl")]
    assert rejects == [
        ("metadata", "r15", "image: no such file below the image root"),
        ("distil", "r2", "the trace was cut off"),
        ("distil", "r3", "no thinking"),
        ("distil", "r4", "the answer holds tags"),
        ("distil", "r5", "the endpoint refused the request"),
        ("rewrite", "r7", "the length changed too much"),
        ("rewrite", "r9", "mentions of the caption are left"),
        ("rewrite", "r10", "the rewriter's reply cannot be read"),
        ("verify", "r11", "the verifier says No"),
        ("verify", "r12", "the verifier says neither Yes nor No"),
    ]
    # The default script doubts odd rows.
    assert [row["id"] for row in split(out, "GRPO")] == ["r1", "r13"]
    assert [row["id"] for row in split(out, "SFT")] == ["r0", "r6", "r8", "r14"]
    assert split(out, "SFT")[1]["answer"] == "<think>I count the dots of the picture.</think><answer>6</answer>"
    # The rewriter has 2 tries and the verifier 3; of the others each row is asked about once.
    assert script.by_step == {"caption": 15, "distil": 15, "rewrite": 11 + 1, "verify": 8 + 2}
    report = json.loads((out / "report.json").read_text())
    assert report["table"] == [{"source": "dots", "verifier": "digit", "sft": 4, "grpo": 2}]
    # 11 tokens in and 7 out for each reply; the refusal is none.
    tokens = {step["step"]: (step["replies"], step["tokens_in"], step["tokens_out"]) for step in report["steps"][1:5]}
    assert tokens == {
        "caption": (15, 165, 105),
        "distil": (14, 154, 98),
        "rewrite": (12, 132, 84),
        "verify": (10, 110, 70),
    }
    assert "| 3 distil | 15 | 11 |" in (out / "README.md").read_text()
    assert (out / "funnel.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "sft", "rejected"),
    [
        ({"rewrite__max_word_change": 16}, 1, {}),
        ({"rewrite__max_word_change": 15}, 0, {"the length changed too much": 1}),
        ({"rewrite__max_word_change": 16, "rewrite__mentions": ["so"]}, 0, {"mentions of the caption are left": 1}),
        ({"rewrite__max_word_change": 16, "distil__max_words": 10}, 0, {"the trace is too long": 1}),
        ({"rewrite__max_word_change": 16, "caption__max_words": 4}, 0, {"the caption is too long": 1}),
        ({"rewrite__max_word_change": 16, "curate__cues": ["so so"]}, 0, {}),
    ],
    ids=["16 words", "15 words", "mentions", "trace", "caption", "cues"],
)
def test_options_change_what_passes(
    tmp_path: Path, changes: dict[str, Any], sft: int, rejected: dict[str, int]
) -> None:
    # The trace has 11 words, the caption 5; the rewriter adds 16.
    make_source(tmp_path, questions(1))
    rewrite = lambda _, answer: answer.replace("</reasoning>", f"{' so' * 16}</reasoning>")  # noqa: E731
    with endpoints({"rewrite": rewrite}) as (server, _):
        code = build(make_config(tmp_path, server.url, **changes), tmp_path / "out")
    assert code == (1 if rejected else 0)
    if rejected:
        found = [
            row["reason"] for path in (tmp_path / "out" / "steps").glob("*.rejects.jsonl") for row in read_lines(path)
        ]
        assert Counter(found) == rejected
    else:
        assert len(split(tmp_path / "out", "SFT")) == sft


def test_rules_save_requests(tmp_path: Path) -> None:
    make_source(tmp_path, questions(3))
    wrong = lambda _, answer: answer.replace("</think>1", "</think>7")  # noqa: E731
    with endpoints({"distil": wrong}) as (server, script):
        assert build(make_config(tmp_path, server.url, verify__rules_first=True), tmp_path / "out") == 0
        assert script.by_step["verify"] == 1  # only about the row that no rule finds right
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["steps"][4]["notes"] == {"right by model": 1, "right by rule": 2}


@pytest.fixture(scope="module")
def children() -> Iterator[Nursery]:
    with nursery(*IMPORTED) as found:
        yield found


def test_killed_at_every_step_it_asks_nothing_twice(tmp_path: Path, children: Nursery) -> None:
    make_source(tmp_path, questions(5))
    out = tmp_path / "out"
    with endpoints() as (server, script):
        # One request at a time: what the server answered has arrived when the next one is sent.
        one = {f"{step}__endpoint__concurrency": 1 for step in ASKING}
        config = make_config(tmp_path, server.url, **one)
        words = ("data", "build", f"--config={config}", f"--output-dir={out}")
        whole = tmp_path / "whole"
        assert children.run(*words[:3], f"--output-dir={whole}") == 0
        first, script.asked = script.asked, Counter()
        assert set(first.values()) == {1}
        send, keep = "lit_vlaa.rewards.scorers.client:exchange", "lit_vlaa.pipeline.rows:StepWriter.keep"
        rename = "lit_vlaa.whole_files:put_in_place"
        deaths = [
            (keep, 3),  # in the middle of the rows of metadata
            (send, 3),  # after two captions
            (send, 1),
            (keep, 5),  # in the middle of the rows of caption: metadata is done before
            (rename, 1),  # caption's files written, none in place
            (rename, 2),  # its rows in place, not its rejects
            (rename, 3),  # both in place, not the sign that it is done
            (send, 4),  # in distil
            (keep, 2),
            (send, 2),  # in distil, after the one that is left
            (send, 9),  # beyond it: in rewrite
            (send, 5),  # in rewrite or verify
            (send, 2),
            (rename, 1),
            (rename, 6),  # in curation
        ]
        codes = [children.run(*words, die=death) for death in deaths]
        while (code := children.run(*words)) != 0:
            codes.append(code)
        assert codes.count(-9) >= 12, codes
        assert set(codes) <= {0, -9}
        assert script.asked == first
    assert results(out) == results(whole)
    assert not list(out.rglob(".*.part"))


def test_killed_before_a_reply_is_kept_only_that_one_is_asked_again(tmp_path: Path, children: Nursery) -> None:
    make_source(tmp_path, questions(4))
    with endpoints() as (server, script):
        config = make_config(tmp_path, server.url, caption__endpoint__concurrency=1)
        words = ("data", "build", f"--config={config}", f"--output-dir={tmp_path / 'out'}")
        assert children.run(*words, die=("lit_vlaa.endpoints.reply_cache:ReplyCache.put", 3)) == -9
        # In the midst of writing: the temporary file is there, its name is not yet.
        assert children.run(*words, die=("lit_vlaa.endpoints.reply_cache:os.fdopen", 1)) == -9
        assert children.run(*words) == 0
        captions = [count for body, count in script.asked.items() if '"caption-model"' in body]
        # Each kill costs the one request whose reply was not kept yet, of the same row or of another.
        assert (len(captions), sum(captions)) == (4, 4 + 2)


def test_a_second_run_asks_only_for_what_changed(tmp_path: Path) -> None:
    make_source(tmp_path, questions(4))
    out = tmp_path / "out"
    with endpoints() as (server, script):
        config = make_config(tmp_path, server.url)
        assert build(config, out) == 0
        before, script.by_step = results(out), Counter()
        assert build(config, out) == 0
        assert build(config, out, "--only", "rewrite") == 0
        assert not script.by_step
        assert results(out) == before
        # Another prompt for the verifier changes its requests alone.
        prompt = tmp_path / "verify.txt"
        prompt.write_text("[user]\n${data}\nThe same? Yes or No.\n")
        assert build(make_config(tmp_path, server.url, verify__prompt="verify.txt"), out) == 0
        assert script.by_step == {"verify": 4}
        script.by_step.clear()
        # The price and the address change nothing but the report.
        assert build(make_config(tmp_path, server.url, caption__endpoint__price_in=1.0), out) == 0
        assert not script.by_step
        # Other curation asks nothing, and the files of other names go.
        assert build(make_config(tmp_path, server.url, curate__cues=["nothing"]), out) == 0
        assert not script.by_step
        assert len(split(out, "SFT")) == 4
        assert split(out, "GRPO") == []
        # A new row changes every step, but only it is asked about; it has the last picture.
        make_source(tmp_path, questions(5))
        assert build(make_config(tmp_path, server.url), out) == 0
        assert script.by_step == dict.fromkeys(ASKING, 1)
        # Another folder of replies knows nothing.
        script.by_step.clear()
        assert build(make_config(tmp_path, server.url, cache_dir="elsewhere"), tmp_path / "new", "--limit=2") == 0
        assert script.by_step == dict.fromkeys(ASKING, 2)
        assert (tmp_path / "elsewhere").is_dir()


def test_shards_merge_to_what_one_run_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_source(tmp_path, questions(12))
    with endpoints(hostile_answers()) as (server, script):
        config = make_config(tmp_path, server.url)
        assert build(config, tmp_path / "whole") == 0
        first, script.asked = script.asked, Counter()
        out = tmp_path / "out"
        for index in (1, 2, 3):
            assert build(config, out, f"--shard={index}/3") == 0
            if index == 2:
                assert build(config, out, "--merge") == 2
                assert "--merge needs all shards of one N in" in capsys.readouterr().err
        assert build(config, out, "--merge") == 0
        assert script.asked == first
        assert results(out) == results(tmp_path / "whole")
        # The merged build is one that a run without shards finds done.
        assert build(config, out) == 0
        assert script.asked == first
        other = make_config(tmp_path, server.url, rewrite__tries=1)
        assert build(other, out, "--merge") == 2
        said = capsys.readouterr().err
        assert "shard 1/3: step rewrite is of another configuration, source or --limit; run --shard 1/3 again" in said


def test_replies_that_do_not_come_stop_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_source(tmp_path, questions(4))
    out = tmp_path / "out"
    broken = lambda text, answer: Reply({"error": "busy"}, status=503) if number_of(text) == 2 else answer  # noqa: E731
    with endpoints({"distil": broken}) as (server, script):
        config = make_config(tmp_path, server.url)
        assert build(config, out) == 1
        said = capsys.readouterr().err
        assert (
            "stopped: step distil: no reply for 1 of 4 rows (first: r2: HTTP 503: busy); run the same command again"
            in said
        )
        assert script.by_step == {"caption": 4, "distil": 3 + 2}  # the broken one was repeated once
        assert build(make_config(tmp_path, server.url, distil__max_unanswered=0.25), out) == 0
        assert [row["reason"] for row in read_lines(out / "rejects.jsonl")] == ["no reply came"]
        script.answers.clear()
        script.by_step.clear()
        assert build(make_config(tmp_path, server.url), out) == 0
        assert script.by_step == {"distil": 1, "rewrite": 1, "verify": 1}
        assert len(split(out, "SFT")) + len(split(out, "GRPO")) == 4


def test_wrong_use_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(tmp_path, questions(2))
    out = tmp_path / "out"
    with closed_port() as port:
        url = f"http://127.0.0.1:{port}/v1"
        config = make_config(tmp_path, url)
        gone = make_config(tmp_path / "images", url)
        for words, code, said in (
            (("--shard=0/2",), 2, "--shard must be I/N with I from 1 to N"),
            (("--shard=1/2", "--merge"), 2, "--shard does not go with --merge"),
            (("--shard=1/2", "--only=curate"), 2, "--shard does not go with --only curate"),
            (("--merge", "--only=curate"), 2, "--merge does not go with --only"),
            (("--limit=0",), 2, "--limit must be at least 1"),
            (("--only=rest",), 2, "--only: invalid choice: 'rest'"),
            (("--dry-rum",), 2, "unrecognized arguments: --dry-rum; did you mean --dry-run?"),
            (("--only=rewrite",), 2, "step rewrite needs step distil, which is not done in"),
            (("--merge",), 2, "there: none; run those that are missing"),
            (("--dry-run", "--merge"), 2, "--dry-run does not go with --merge"),
            (("--dry-run", "--only=rewrite"), 2, "--dry-run does not go with --only"),
            ((), 1, "stopped: step caption: caption.endpoint.base_url"),
        ):
            assert build(config, out, *words) == code
            lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-vlaa: ")]
            assert len(lines) == 1
            assert said in lines[0]
        assert build(gone, tmp_path / "other") == 2
        assert "rows.jsonl does not exist; seen from" in capsys.readouterr().err
        keyed = make_config(tmp_path, url, distil__endpoint__api_key_env="BUILD_TEST_NO_KEY")
        monkeypatch.delenv("BUILD_TEST_NO_KEY", raising=False)
        assert build(keyed, out) == 2
        assert "distil.endpoint.api_key_env BUILD_TEST_NO_KEY: this environment variable is not set" in (
            capsys.readouterr().err
        )


def test_the_jobs_of_a_cluster_are_valid_shell() -> None:
    script = Path(__file__).resolve().parents[2] / "configs" / "data" / "build.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)  # noqa: S607
    words = script.read_text().rpartition("srun lit-vlaa data build ")[2].replace("\\\n", " ").split()
    assert words[::2] == ["--config", "--output-dir", "--shard"]


def test_another_build_in_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_source(tmp_path, questions(1))
    out = tmp_path / "out"

    def second(_: str, answer: str) -> str:
        assert build(config, out) == 2
        return answer

    with endpoints({"caption": second}) as (server, _):
        config = make_config(tmp_path, server.url)
        assert build(config, out) == 0
    assert "another build is at work in" in capsys.readouterr().err


def test_a_dry_run_asks_nothing_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_source(tmp_path, [*questions(3), {"question": "q", "answer": 1, "image": "x"}])
    with endpoints() as (server, script):
        prices = {f"{step}__endpoint__price_in": 1.0 for step in ASKING}
        prices |= {f"{step}__endpoint__price_out": 1e6 for step in ASKING}
        assert build(make_config(tmp_path, server.url, **prices), tmp_path / "out", "--dry-run", "--limit=2") == 0
        assert not script.by_step
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["2 rows would go into step 2", "  2 dots digit"]
    # A caption is taken for 200 words of 5.5 characters, 4 a token: 275; a trace of 600 words for 825.
    assert said[2] == "estimated for captions of 200 and traces of 600 words, no row rejected later:"
    outs = [line.partition(" tokens in, ")[2].split(" out")[0] for line in said[3:7]]
    assert outs == ["550", "1,650", "1,650", "8"]
    # 550 + 1650 + 1650 + 8 at a unit each; what is sent costs next to nothing.
    assert said[7:] == ["cost about 3,858.00"]
    # 550 and 8 tokens have a price of a unit each; without any there is no cost to tell.
    for step in ("distil", "rewrite"):
        del prices[f"{step}__endpoint__price_in"]
    for given, told in (
        (prices, "cost about 558.00, without distil, rewrite, which have no price"),
        ({}, "no cost is told: no endpoint has price_in and price_out"),
    ):
        assert (
            build(make_config(tmp_path, "http://127.0.0.1:9/v1", **given), tmp_path / "out", "--dry-run", "--limit=2")
            == 0
        )
        assert capsys.readouterr().out.splitlines()[7:] == [told]
    assert not (tmp_path / "out").exists()


def test_no_key_is_written_or_logged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = "sk-secret-0123456789"
    monkeypatch.setenv("BUILD_TEST_KEY", key)
    make_source(tmp_path, questions(3))

    def repeats(text: str, answer: str) -> Any:
        number = number_of(text)
        return {0: f"<think>{key}</think>{key}", 1: Reply({"error": f"bad key {key}"}, status=400)}.get(number, answer)

    with caplog.at_level(logging.DEBUG), endpoints({"distil": repeats}) as (server, _):
        keys = {f"{step}__endpoint__api_key_env": "BUILD_TEST_KEY" for step in ASKING}
        assert build(make_config(tmp_path, server.url, **keys), tmp_path / "out") == 0
        assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {key}"}
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if key.encode() in path.read_bytes()]
    said = capsys.readouterr()
    assert key not in caplog.text + said.out + said.err


def test_a_real_server_and_then_training(tmp_path: Path) -> None:
    """Captions and traces by the tiny model; it is no judge, so a script rewrites and decides."""
    make_source(tmp_path, questions(8))

    def doubt(text: str, answer: str) -> str:
        cue = "Wait, " if number_of(text) % 2 else ""
        return answer.replace("<reasoning>", f"<reasoning>{cue}")

    with tiny_chat_server() as (url, chat), endpoints({"rewrite": doubt}) as (server, _):
        config = make_config(
            tmp_path,
            server.url,
            caption__endpoint__base_url=url,
            caption__endpoint__model=MODEL,
            distil__endpoint__base_url=url,
            distil__endpoint__model=REASONING_MODEL,
            distil__endpoint__temperature=0.7,
            curate__cues=["wait, "],
            rewrite__mentions=["caption"],
        )
        assert build(config, tmp_path / "out") == 0
        assert Counter(chat.asked) == {(MODEL, 1): 8, (REASONING_MODEL, 0): 8}
    out = tmp_path / "out"
    assert [len(split(out, name)) for name in ("SFT", "GRPO")] == [4, 4]
    report = json.loads((out / "report.json").read_text())
    assert report["steps"][1]["replies_with_estimated_tokens"] == 0
    assert report["steps"][1]["tokens_out"] > 0
    for stage in ("sft", "grpo"):
        (file,) = out.glob(f"VLAA-Thinking-{stage.upper()}-*.json")
        flags: dict[str, Any] = {
            "trainer.accelerator": "cpu",
            "trainer.max_steps": 2,
            "trainer.default_root_dir": tmp_path / stage,
            "trainer.enable_progress_bar": False,
            "trainer.enable_model_summary": False,
            "trainer.limit_val_batches": 0,
            "trainer.log_every_n_steps": 1,
            "model.backbone.max_pixels": 84 * 84,
            "model.sampling.max_new_tokens": 8,
            "data.split": stage,
            "data.data_file": file,
            "data.image_root": tmp_path / "images",
            "data.batch_size": 2,
            "data.num_workers": 0,
        }
        if stage == "grpo":
            flags |= {"model.train_batch_size": 2, "model.reward.math_workers": 1}
        classes = ["--model", f"lit_vlaa.{stage}.{stage.upper()}Module", "--data", "datamodules.VLAAThinkingDataModule"]
        assert lit("fit", *classes, *(f"--{name}={value}" for name, value in flags.items())) == 0
        assert list((tmp_path / stage).rglob("metrics.csv"))
