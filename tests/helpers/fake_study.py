"""A study of commands that are looked up and made up instead of parsed and run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_vlaa.study.config import StudyFile, read
from lit_vlaa.study.launching import Interrupted

CALLBACKS = [{"class_path": "callbacks.Preemption"}]
BACKBONE = {"path": "tiny", "revision": None, "min_pixels": 1, "max_pixels": 7056}
DATA = {
    "class_path": "datamodules.VLAAThinkingDataModule",
    "init_args": {
        "val_file": None,
        "test_file": None,
        "image_root": "images",
        "seed": 42,
        "prompt": {"system_prompt": ""},
    },
}
MODEL = {"backbone": BACKBONE, "optim": {"lr": 1e-3}, "init_from": None, "seed": None}
CLASSES: Mapping[str, Mapping[str, Any]] = {
    "sft": {"class_path": "m.SFT", "init_args": MODEL},
    "rl": {
        "class_path": "m.GRPO",
        "init_args": {**MODEL, "group_size": 8, "reward": {"format_weight": 0.0}, "scorer": None},
    },
}

FILE: Mapping[str, Any] = {
    "name": "small",
    "output_dir": "out",
    "seeds": [1, 2],
    "prepare": [["data", "make", "here"]],
    "start": {"config": "start.yaml", "seed": 5},
    "stages": {"sft": {"config": "sft.yaml"}, "rl": {"config": ["rl.yaml"]}},
    "stages_differ": {
        "model.class_path": "what is compared",
        "data.data_file": "two splits",
        "data.split": "two splits",
    },
    "evaluation": {"config": "evaluation.yaml"},
    "arms": {
        "base": {"steps": []},
        "sft": {"title": "SFT alone", "steps": ["sft"]},
        "rl": {"steps": ["rl"]},
        "sft+rl": {"steps": ["sft", "rl"]},
    },
}


def write(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda _: None) -> Path:
    """Writes a study file with its configs into a folder."""
    content = copy.deepcopy(dict(FILE))
    content["output_dir"] = str(folder / "out")
    change(content)
    for name, split in (("start", "sft"), ("sft", "sft"), ("rl", "rl"), ("evaluation", "rl")):
        config = {
            "trainer": {"accelerator": "cpu", "devices": "auto", "strategy": "auto", "logger": None, "num_nodes": 1},
            "model": copy.deepcopy(dict(CLASSES[split])),
            "data": copy.deepcopy(DATA),
        }
        config["trainer"]["callbacks"] = copy.deepcopy(CALLBACKS)
        config["data"]["init_args"] |= {"split": split, "data_file": str(folder / f"{split}.json")}
        if name == "evaluation":
            config["data"]["init_args"]["test_file"] = str(folder / "test.json")
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def load(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda _: None) -> StudyFile:
    """Writes a study file and reads it."""
    return read(write(folder, change))


def resolve(words: Sequence[str]) -> dict[str, Any]:
    """Puts the files and flags of a command on top of each other, as the parser would."""
    config: dict[str, Any] = {"seed_everything": 42, "ckpt_path": None}
    for word in words[1:]:
        key, _, value = word[2:].partition("=")
        if key == "config":
            _merge(config, yaml.safe_load(Path(value).read_text()))
        elif key.endswith("+"):
            config["trainer"]["callbacks"].append({"class_path": value, "init_args": {"path": None}})
        else:
            *parents, last = key.split(".")
            place = config
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = yaml.safe_load(value)
    return config


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


class FakeLaunch:
    """Leaves what a command would leave, and notes the commands.

    Args:
        folder: Where `prepare` makes the data.
        fail: Id of a job that fails.
        interrupt: Id of a job during which the runner is told to stop, once.
    """

    def __init__(self, folder: Path, *, fail: str = "", interrupt: str = "") -> None:
        self.folder, self.fail, self.interrupt = folder, fail, interrupt
        self.ran: list[str] = []
        self.words: list[tuple[str, ...]] = []

    def __call__(self, words: Sequence[str], *, log: Path, lock: Path | None, handle: int | None) -> int:  # noqa: ARG002
        self.words.append(tuple(words))
        if words[0] == "data":
            for name in ("sft", "rl", "test"):
                (self.folder / f"{name}.json").write_text('{"row": 1}\n\n{"row": 2}\n')
            return 0
        place = log.parent
        self.ran.append(place.name)
        log.write_text("one\n10%\r20%\rit broke\n")
        if place.name == self.fail:
            return 3
        version = place / f"version_{len(list(place.glob('version_*')))}"
        version.mkdir(parents=True)
        (version / "metrics.csv").write_text("step,reward/mean\n1,0.5\n4,0.75\n")
        if words[0] in {"fit", "test"}:
            # Flags of the last callback are its arguments.
            plain = [word for word in words if not word.startswith("--trainer.callbacks.")]
            (version / "config.yaml").write_text(yaml.safe_dump(resolve(plain)))
        interrupted = place.name == self.interrupt
        if words[0] == "fit":
            stored: dict[str, Any] = {"optimizer_states": [{}], "loops": {}, "global_step": 1 if interrupted else 4}
            (version / "checkpoints").mkdir()
            torch.save(stored, version / "checkpoints" / "last.ckpt")
        if interrupted:
            self.interrupt = ""
            raise Interrupted(15)
        if words[0] == "test":
            (place / "responses.jsonl").write_text("{}\n")
        return 0


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a study below a folder."""
    content: dict[str, Any] = json.loads((folder / "out" / "manifest.json").read_text())
    return content
