"""Keys and tokens reach no file and no terminal, whatever command runs and whatever a server says.

Commands run with secrets in the environment against servers that repeat every key they are sent, in replies, in errors
and in headers; then each byte that was written or printed is searched, also of what is compressed or in base64.
"""

from __future__ import annotations

import base64
import gzip
import json
import logging
import traceback
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import evaluated
from helpers.benchmark_files import write_benchmark
from helpers.builds import ASKING, make_config, make_source, questions
from helpers.commands import checkpoint, command, lit, version
from helpers.hub_server import serving
from helpers.released import connect, repo
from helpers.scripted_http import Reply, Seen, scripted

SECRETS = {
    "ZQX_JUDGE": "sk-ZQXjudgeAAAAbbbbCCCC01",
    "ZQX_REMOTE": "ZQX+remote/DDDDeeeeFFFF==02",
    "ZQX_BUILD": "sk-ZQXbuildGGGGhhhhIIII03",
    "ZQX_EVAL": "sk-ZQXevalJJJJkkkkLLLL04",
    "HF_TOKEN": "hf_ZQXhubMMMMnnnnOOOO05",
    "LIT_VLAA_SCORER_TOKEN": "ZQXscorerPPPPqqqqRRRR06",
    "OPENAI_API_KEY": "sk-ZQXunusedSSSSttttUUUU07",
    "LIT_VLAA_MY_GRADER": "ZQXgraderVVVVwwwwXXXX08",
}


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


Searched = Callable[[Path], None]


@pytest.fixture
def searched(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[Searched]:
    """Searches a folder and all that was printed, or logged at the level of a talkative run."""

    def search(folder: Path, *texts: str) -> None:
        said = capfd.readouterr()
        places = {"stdout": said.out.encode(), "stderr": said.err.encode(), "log": caplog.text.encode()}
        places |= {str(number): text.encode() for number, text in enumerate(texts)}
        places |= dict(contents(folder))
        leaks = [(name, place) for name, value in SECRETS.items() for place in places if leaked(value, places[place])]
        assert not leaks

    with caplog.at_level(logging.INFO):
        yield search


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The bytes of each file and of each member of an archive; names count too."""
    for path in sorted(folder.rglob("*")):
        yield f"name of {path}", str(path.relative_to(folder)).encode()
        if not path.is_file():
            continue
        content = path.read_bytes()
        yield str(path), content
        if content[:2] == b"\x1f\x8b":
            yield f"{path} unpacked", gzip.decompress(content)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    yield f"{path}:{name}", archive.read(name)


def leaked(secret: str, content: bytes) -> bool:
    """Whether a secret, or all but its ends, stands in some bytes, plainly or as files and addresses would write it."""
    core = secret[4:-4]
    forms = {
        core,
        core[::-1],
        urllib.parse.quote(core, safe=""),
        json.dumps(core)[1:-1],
        core.encode().hex(),
        # Of base64 the part that no neighbouring byte can change, at each of the three places it can begin.
        *(base64.b64encode(b"\0" * shift + core.encode()).decode()[4:-4] for shift in range(3)),
    }
    return any(form.encode() in content for form in forms)


def test_the_search_finds_what_is_hidden(tmp_path: Path) -> None:
    secret = SECRETS["ZQX_REMOTE"]
    forms = {
        "plain": secret.encode(),
        "zip": gzip.compress(secret.encode()),
        "address": urllib.parse.quote(secret, safe="").encode(),
        "base64": base64.b64encode(b"Bearer " + secret.encode()),
    }
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
    found = {place for place, content in contents(tmp_path) if leaked(secret, content)}
    assert {Path(place.split()[0]).name for place in found} == forms.keys()
    assert not leaked(secret, b"nothing to see")


def key_of(seen: Seen) -> str:
    return seen.headers.get("authorization", "").removeprefix("Bearer ")


def echo(seen: Seen, *, status: int = 200, text: str = "", error: str = "") -> Reply:
    """A chat completion, or an error, that repeats the key wherever a server could."""
    key = key_of(seen)
    message = {"role": "assistant", "content": text, "reasoning_content": f"my key is {key}", "refusal": key}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": "stop",
        "stop_reason": key,
        "logprobs": {"content": [key]},
    }
    found: dict[str, Any] = {"id": key, "model": key, "choices": [choice], "usage": {"prompt_tokens": 1, key: 2}}
    if status != 200:
        found = {
            "error": {"message": f"{error} Incorrect API key provided: {key}.", "code": key, "param": seen.headers}
        }
    return Reply(found, status=status, headers={"X-Request-Id": key, "X-Key": key, "Set-Cookie": f"key={key}"})


JUDGED = ["--model.scorer=lit_vlaa.rewards.scorers.ChatJudge", "--model.scorer.model=m", "--model.scorer.retries=0"]
SAVED = [
    "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks+=callbacks.RolloutLogger",
    "--trainer.callbacks.every_n_rollouts=1",
    "--trainer.callbacks+=callbacks.TraceDiagnostics",
]
SHORT: dict[str, Any] = {"data__kinds": "[open_ended]", "data__batch_size": 8, "trainer__max_steps": 2}


def training(dataset: Path, root: Path, *words: str, **options: Any) -> list[str]:
    named = [*command("fit", "grpo", dataset, root, **{**SHORT, **options}), *words]
    return [word for word in named if "val_file" not in word]


def test_training_with_a_judge_and_what_is_made_of_it(
    dataset: Path, sft_checkpoint: Path, tmp_path: Path, searched: Searched
) -> None:
    """One reply in three is an error; export and its card follow, and what a study notes of its jobs."""
    replies = iter(range(10**6))

    def script(seen: Seen) -> Reply:
        if next(replies) % 3 == 2:
            return echo(seen, status=400, error="row")
        return echo(seen, text=json.dumps({"score": 7}))

    with scripted(script) as server:
        judge = [*JUDGED, f"--model.scorer.base_url={server.url}/v1", "--model.scorer.api_key_env=ZQX_JUDGE"]
        run = training(dataset, tmp_path / "runs", *judge, *SAVED, model__init_from=sft_checkpoint)
        assert lit(*run, "--model.reward.max_failed=1.0") == 0
        assert {key_of(seen) for seen in server.posts()} == {SECRETS["ZQX_JUDGE"]}
    path = checkpoint(tmp_path / "runs")
    assert lit("export", str(path), "--output-dir", str(tmp_path / "model")) == 0
    assert (tmp_path / "model" / "README.md").is_file()
    from lit_vlaa.study import circumstances  # noqa: PLC0415

    (tmp_path / "here.json").write_text(json.dumps(circumstances.here()))
    files = {path.name.split(".")[0] for path in tmp_path.rglob("*")}
    assert {"config", "hparams", "metrics", "events", "rollouts"} <= files
    searched(tmp_path)


def test_training_that_stops_for_its_scorer(
    dataset: Path, sft_checkpoint: Path, tmp_path: Path, searched: Searched
) -> None:
    """The server is there when the run begins, and then refuses with the key in its words."""

    def script(seen: Seen) -> Reply:
        if seen.method == "GET":
            return Reply({"scorer": f"S {key_of(seen)}", "version": 1, "status": "ok"})
        return Reply(f"<html>{key_of(seen)} {seen.headers}</html>".encode(), status=401)

    with scripted(script) as server:
        scorer = ["--model.scorer=lit_vlaa.rewards.scorers.RemoteScorer", f"--model.scorer.url={server.url}"]
        words = training(dataset, tmp_path, *scorer, "--model.scorer.api_key_env=ZQX_REMOTE", *SAVED)
        strict = ("--model.reward.max_failed=0.0", "--model.reward.failed_window=1", "--model.scorer.retries=0")
        assert lit(*words, f"--model.init_from={sft_checkpoint}", *strict) == 1
        assert {key_of(seen) for seen in server.seen} == {SECRETS["ZQX_REMOTE"]}
    assert (version(tmp_path) / "checkpoints" / "stopped.ckpt").is_file()
    searched(tmp_path)


@pytest.mark.parametrize("debug", [False, True])
def test_errors(
    debug: bool, dataset: Path, tmp_path: Path, searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the user's own code while a judge is at work, and of a key that is refused, with tracebacks and without."""
    if debug:
        monkeypatch.setenv("LIT_VLAA_DEBUG", "1")
    traces: list[str] = []

    def run(*words: str) -> None:
        try:
            assert lit(*words) in {1, 2}
        except Exception:  # noqa: BLE001  # its traceback is what is looked at
            traces.append(traceback.format_exc())

    with scripted(lambda seen: echo(seen, text='{"score": 3}')) as server:
        judge = [*JUDGED, f"--model.scorer.base_url={server.url}/v1", "--model.scorer.api_key_env=ZQX_JUDGE"]
        own = ["--trainer.callbacks=helpers.commands.StopAt", "--trainer.callbacks.step=1"]
        run(*training(dataset, tmp_path, *judge, *own, "--trainer.callbacks.error=true"))
    with scripted(lambda seen: echo(seen, status=401)) as server:
        run(*training(dataset, tmp_path, *JUDGED, f"--model.scorer.base_url={server.url}/v1", *judge[-1:]))
        assert server.seen
    if not debug:  # which shows all values as they were typed
        # A key where the name of its variable belongs, and one in an address.
        run(*training(dataset, tmp_path, *judge[:-1], f"--model.scorer.api_key_env={SECRETS['ZQX_JUDGE']}"))
        address = f"http://user:{SECRETS['ZQX_JUDGE']}@127.0.0.1:1/v1"
        run(*training(dataset, tmp_path, *JUDGED, f"--model.scorer.base_url={address}"))
    assert len(traces) == (2 if debug else 1)
    searched(tmp_path, *traces)


def test_an_evaluation(tmp_path: Path, searched: Searched) -> None:
    """A judge that repeats the key in one verdict and refuses the next."""
    (tmp_path / "data").mkdir()
    write_benchmark(tmp_path / "data", "logicvista", broken=False)
    replies = iter(range(10**6))

    def script(seen: Seen) -> Reply:
        number = next(replies)
        return echo(seen, text=f"1 {key_of(seen)}") if number < 5 else echo(seen, status=500, error="oops")

    with scripted(script) as server:
        options = {
            "eval__benchmarks": '["logicvista"]',
            "eval__data_dir": tmp_path / "data",
            "eval__custom": "null",
            "eval__judge": "callbacks.benchmarks.judge.EndpointJudge",
            "eval__judge.base_url": f"{server.url}/v1",
            "eval__judge.model": "m",
            "eval__judge.retries": 0,
            "eval__judge.api_key_env": "ZQX_EVAL",
            "eval__judge.cache_dir": tmp_path / "cache",
        }
        assert lit(*evaluated.command("test", tmp_path / "runs", [], **options)) == 0
        assert {key_of(seen) for seen in server.posts()} == {SECRETS["ZQX_EVAL"]}
    assert list((tmp_path / "cache").rglob("*.json"))
    searched(tmp_path)


def test_a_build_of_data(tmp_path: Path, searched: Searched) -> None:
    make_source(tmp_path, questions(4))
    replies = iter(range(10**6))

    def script(seen: Seen) -> Reply:
        number = next(replies)
        text = f"<think>It is {key_of(seen)}. Wait, no.</think>{number}" if number % 2 else "Yes"
        return echo(seen, status=422, error="no") if number % 5 == 4 else echo(seen, text=text)

    with scripted(script) as server:
        keys = {f"{step}__endpoint__api_key_env": "ZQX_BUILD" for step in ASKING}
        config = make_config(tmp_path, f"{server.url}/v1", **keys)
        assert lit("data", "build", "--config", str(config), "--output-dir", str(tmp_path / "out")) in {0, 1}
        assert {key_of(seen) for seen in server.seen} == {SECRETS["ZQX_BUILD"]}
    searched(tmp_path)


def test_a_hub_that_refuses(tmp_path: Path, searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(repo()) as hub:
        connect(hub, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
        hub.token = "another"  # noqa: S105
        assert lit("data", "download", "--output-dir", str(tmp_path / "data")) in {1, 2}
        assert any(SECRETS["HF_TOKEN"] in asked.headers.get("authorization", "") for asked in hub.asked)
    searched(tmp_path)
