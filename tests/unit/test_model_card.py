"""The model card: valid for the Hub, without anything of this machine, whatever the run's files say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from lit_vlaa.export.chat_template import with_system_prompt
from lit_vlaa.export.model_card import Exported, without_folders, write_card
from lit_vlaa.export.run_files import Score

HOSTILE = "a|b\n---\n# c\n```\n<script>d()</script> [e](javascript:f) `g` <think>"


def exported(**changed: Any) -> Exported:
    values: dict[str, Any] = {
        "name": "my-model",
        "config": {"model": {"init_args": {"backbone": {"path": "Qwen/Qwen2.5-VL-3B-Instruct"}}}},
        "module": "GRPOModule",
        "steps": 1200,
        "adapters": False,
        "parameters": 3_754_622_976,
        "dtype": "bfloat16",
        "system_prompt": "",
        "scores": (),
        "data": {},
        "command": "lit-vlaa export last.ckpt --output-dir my-model",
        "version": "0.1.0",
    }
    return Exported(**values | changed)


def test_the_metadata_is_what_the_hub_reads() -> None:
    card = ModelCard(write_card(exported(data={"repository": "UCSC-VLAA/VLAA-Thinking"})))
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": "Qwen/Qwen2.5-VL-3B-Instruct",
        "datasets": ["UCSC-VLAA/VLAA-Thinking"],
        "tags": ["lit-vlaa", "grpo"],
    }


def test_a_folder_with_one_slash_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    config = {"model": {"init_args": {"backbone": {"path": "runs/mine"}}}}
    assert "base_model" not in ModelCard(write_card(exported(config=config))).data.to_dict()


def test_nothing_in_it_is_markup_but_its_own() -> None:
    markdown = pytest.importorskip("markdown", reason="the docs' extra is not installed")
    settings = {
        "backbone": {"path": HOSTILE, "freeze": [HOSTILE]},
        "init_from": HOSTILE,
        "optim": {"schedule": HOSTILE},
    }
    data = {"init_args": {"data_file": HOSTILE, "prompt": {"instructions": {HOSTILE: HOSTILE}}}}
    text = write_card(
        exported(
            name=HOSTILE,
            config={"model": {"init_args": settings}, "data": data},
            module=HOSTILE,
            system_prompt=HOSTILE,
            scores=[Score(HOSTILE, 1.0, note=HOSTILE)],
            data={"sha256": "0", "repository": HOSTILE},
            command=f"lit-vlaa export {HOSTILE}",
        )
    )
    _, head, body = text.split("---\n", 2)
    assert set(yaml.safe_load(head)) == {"library_name", "pipeline_tag", "tags"}
    html = markdown.markdown(body, extensions=["fenced_code", "tables"])
    outside = re.sub(r"(?s)<pre>.*?</pre>", "", html)
    assert re.findall(r"<h1>", outside) == ["<h1>"]
    assert not re.findall(r"<(?:script|think|a |hr)", html)
    # Of the two tables, each row has as many cells as its head.
    assert {row.count("<td") for row in re.findall(r"(?s)<tr>.*?</tr>", html)} == {0, 2, 5}
    blocks = re.findall(r"(?s)<pre><code[^>]*>(.*?)</code></pre>", html)
    assert len(blocks) == 3
    assert "&lt;script&gt;d()&lt;/script&gt;" in blocks[0]


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/home/me/runs/a/last.ckpt", "last.ckpt"),
        ("/home/me/here/runs/last.ckpt", "runs/last.ckpt"),
        ("runs/last.ckpt", "runs/last.ckpt"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("/data/base.ckpt::/data/lora.ckpt", "base.ckpt::lora.ckpt"),
    ],
)
def test_folders_of_this_machine_are_left_out(path: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/home/me/here"))
    assert without_folders(path) == shown
    settings = {"backbone": {"path": path}, "init_from": path}
    card = write_card(exported(config={"model": {"init_args": settings}}))
    assert "/home/me" not in card
    assert f"started from the weights of {shown}." in card


def test_a_template_is_given_a_prompt_once() -> None:
    once = with_system_prompt("{{ messages }}", "Think.")
    assert once != "{{ messages }}"
    assert with_system_prompt(once, "Think.") == once
