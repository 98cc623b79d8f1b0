"""A backbone by its Hub id: the Hub's protocol on this machine, spoken by transformers' own client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.checkpoints import as_released
from helpers.hub_server import HubServer, Repo, environment, serving
from helpers.samples import mixed_samples, tiny_backbone
from lit_vlaa.backbone import Backbone, BackboneConfig, build_backbone
from lit_vlaa.prompts import DEFAULT_SYSTEM_PROMPT
from lit_vlaa.sequences import assemble

ROOT = Path(__file__).resolve().parents[2]
REPO = "lit-vlaa/tiny-test"
MAIN, TAGGED = "a" * 40, "b" * 40


def scores(backbone: Backbone) -> list[float]:
    """Log-probabilities of the mixed rows' responses."""
    rows = [
        (backbone.processor.encode(item), backbone.processor.encode_response(item.record.response or ""))
        for item in mixed_samples()
    ]
    with torch.no_grad():
        logprobs = backbone.eval()(assemble(rows, pad_token_id=backbone.processor.pad_token_id)).logprobs
    return [float(value) for value in logprobs]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two commits: `main` in our own layout, `v1` with other weights, in several files, and laid out as Qwen's are."""
    folders = {commit: tmp_path_factory.mktemp(commit[:4]) for commit in (MAIN, TAGGED)}
    backbone = tiny_backbone()
    backbone.save_pretrained(folders[MAIN])
    with torch.no_grad():
        backbone.get_parameter("model.lm_head.weight").mul_(1.5)
    backbone.save_pretrained(folders[TAGGED])
    (folders[TAGGED] / "model.safetensors").unlink()
    backbone.model.save_pretrained(folders[TAGGED], max_shard_size="600KB")
    as_released(folders[TAGGED])
    assert len(list(folders[TAGGED].glob("*.safetensors"))) > 1
    return folders


@pytest.fixture(scope="module")
def hub(folders: dict[str, Path]) -> Iterator[HubServer]:
    commits = {commit: {file.name: file for file in folder.iterdir()} for commit, folder in folders.items()}
    with serving(Repo(REPO, commits, {"main": MAIN, "v1": TAGGED})) as server:
        yield server


def remote_scores(hub: HubServer, home: Path, revisions: list[str | None]) -> list[Any]:
    """What `BackboneConfig(path=REPO)` gives in a fresh process that reaches nothing but `hub`; errors as text."""
    code = (
        "import json, sys; from test_hub_id import *\n"
        "for revision in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        config = BackboneConfig(path=REPO, revision=revision, max_pixels=84 * 84)\n"
        "        print('RESULT', json.dumps(scores(build_backbone(config))))\n"
        "    except ValueError as error: print('RESULT', json.dumps(str(error)))\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(revisions)],
        env=environment(hub.url, home, PYTHONPATH=paths),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]


def test_a_hub_id_and_its_revision_load_what_was_saved(
    hub: HubServer, folders: dict[str, Path], tmp_path: Path
) -> None:
    local = {
        commit: scores(build_backbone(BackboneConfig(path=str(folder), max_pixels=84 * 84)))
        for commit, folder in folders.items()
    }
    assert local[MAIN] != local[TAGGED]
    latest, tagged, absent = remote_scores(hub, tmp_path, [None, "v1", "v2"])
    assert latest == local[MAIN]
    assert tagged == local[TAGGED]
    assert absent.startswith(f"--model.backbone.path {REPO}: ")
    assert "v2" in absent
    assert any(line.startswith(f"GET /{REPO}/resolve/") and "00002-of-" in line for line in hub.seen)

    def weights_fetched() -> int:
        return sum(line.startswith("GET") and ".safetensors" in line for line in hub.seen)

    before = weights_fetched()
    assert before >= 3
    assert remote_scores(hub, tmp_path, [MAIN]) == [latest]
    assert weights_fetched() == before, "what is in the cache must not be fetched again"


def test_an_exported_repository_is_asked_as_in_its_training(folders: dict[str, Path], tmp_path: Path) -> None:
    """`predict` takes a repository's own settings, of the revision that is named; not its code, nor its classes."""
    config = {
        "model": {
            "class_path": "no.such.Class",
            "init_args": {"backbone": {"max_pixels": 5000, "trust_remote_code": True}},
        },
        "data": {"init_args": {"prompt": {"system_prompt": "Be brief: yes # or no."}}},
    }
    file = tmp_path / "lit_vlaa_config.yaml"
    file.write_text(yaml.safe_dump(config))
    commits = {commit: {path.name: path for path in folder.iterdir()} for commit, folder in folders.items()}
    commits[TAGGED][file.name] = file
    with serving(Repo(REPO, commits, {"main": MAIN, "v1": TAGGED})) as server:
        code = (
            "from lit_vlaa.predict.policy import read_settings\n"
            "for flags in ([], ['--model.backbone.revision=v1']):\n"
            f"    told = read_settings({REPO!r}, [], flags)\n"
            "    print('RESULT', told.prompt.system_prompt, told.backbone)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(server.url, tmp_path / "home", PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    main, tagged = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert DEFAULT_SYSTEM_PROMPT in main
    assert "max_pixels=262144" in main
    assert "Be brief: yes # or no." in tagged
    assert "max_pixels=5000" in tagged
    assert "trust_remote_code=False" in tagged
