"""What stands for released models, data and files of a reader's own where documented commands are run.

A small model and small data under the released names, served as the Hub serves them, pictures and rows under the names
that pages use, servers (`stand_in_servers`), and fewer rows and steps. Everything else of a command stays as it is on
the page.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from datamodules.hub.places import OWN_SITES, REPOSITORY, SPLIT_FILES, archive_of
from datamodules.sources import SOURCES
from datamodules.synthetic import write_dataset
from helpers.benchmark_files import picture, write_benchmark
from helpers.checkpoints import as_released, tiny_qwen2_vl
from helpers.hub_server import Repo
from helpers.launch import ROOT
from helpers.reward_models import save_reward_model
from helpers.samples import tiny_backbone
from helpers.stand_in_servers import ROLLOUTS

NEW, OLD = ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"), ("Qwen/Qwen2-VL-2B-Instruct",)
"""Models of the two architectures."""
BENCHMARKS = ("mathvista", "mathvision", "mathverse", "dynamath", "wemath", "logicvista")
SFT_ROWS, GRPO_ROWS = 30, 32
_GPUS = {f"configs/trainer/{name}.yaml" for name in ("one_gpu", "eight_gpus")}
_NO_GPU = ["configs/trainer/cpu.yaml", "--trainer.devices", "1", "--trainer.strategy", "auto"]
_SFT, _GRPO = (f"data/VLAA-Thinking/{SPLIT_FILES[split]}" for split in ("sft", "grpo"))
_TRACED = "runs/traced/version_0"
_TRAINED = "runs/grpo-3b/version_0/checkpoints/last.ckpt"

NAMES: Mapping[str, str] = {
    "COCO_FOLDER": "drawn/images/coco",
    "VG_FOLDER": "drawn/images/vg",
    "ROWS.json": _GRPO,
    "CHECKPOINT": _TRAINED,
    "configs/data/build.yaml": "served/data/build.yaml",
    "runs/quickstart/grpo/version_0/checkpoints/last.ckpt": "runs/tutorial/grpo/version_0/checkpoints/last.ckpt",
    "runs/paper/sft-10k/version_0/checkpoints/last.ckpt": "runs/sft-3b/version_0/checkpoints/last.ckpt",
}
"""Words of commands that stand for something of the reader's, and what is put in their place."""

ON_PAGES: Mapping[str, Mapping[str, str]] = {
    "docs/evaluation": {"runs/grpo-3b/benchmarks": "runs/eval-grpo-3b/benchmarks", "...": ""},
    "docs/data/select": {"2000": "80", "1000": "40", "-1K.json": "-40.json"},
    "docs/paper": {"25000": "20", "10000": "10", "5000": "5", "55000": "2", "ROWS.json": _SFT},
    "docs/data/build": {"data/built/VLAA-Thinking-SFT-8K.json": "data/built/VLAA-Thinking-SFT-16.json"},
    "docs/traces": {
        "CHECKPOINT": "runs/tutorial/grpo/version_0/checkpoints/last.ckpt",
        "BASE.ckpt": "runs/tutorial/sft/version_0/checkpoints/last.ckpt",
        "STAGE.yaml": "configs/quickstart/grpo.yaml",
        "RUN": _TRACED,
        "OTHER": _TRACED,
        "RUN/responses.jsonl": f"{_TRACED}/responses.jsonl",
        "RUN/perplexity.jsonl": f"{_TRACED}/perplexity.jsonl",
        "OTHER/perplexity.jsonl": f"{_TRACED}/perplexity.jsonl",
    },
}
"""The same for single pages, ahead of `NAMES`. What begins with a hyphen ends a word; "" stands for nothing."""

_ALL = {"--data.num_workers": "0"}
_FIT = {"--trainer.max_steps": "2", "--data.batch_size": "4", "--data.val_count": "4"}
_REWARDED = {"--model.sampling.max_new_tokens": "6", "--model.reward.math_workers": "1"}


def instead(words: Sequence[str], page: str, servers: Mapping[str, str]) -> list[str]:
    """A command with stand-ins: other names, no GPU, and sizes wherever the page gives none.

    Args:
        words: After `lit-vlaa`, as on the page.
        page: Its path without suffix.
        servers: Addresses by those on pages.
    """
    names = {**servers, **NAMES, **ON_PAGES.get(page, {})}
    changed = [names.get(word, word) for word in words]
    for end, other in names.items():
        if end.startswith("-"):
            changed = [word.removesuffix(end) + other if word.endswith(end) else word for word in changed]
    changed = [part for word in changed for part in (_NO_GPU if word in _GPUS else [word])]
    added = _sizes(changed)
    if "configs/generator/vllm.yaml" in changed:
        added |= {"--model.generator.url": servers[ROLLOUTS], "--model.generator.weights_dir": "weights"}
    changed += [word for flag, value in added.items() if flag not in changed for word in (flag, value)]
    return [word for word in changed if word]


def _sizes(words: Sequence[str]) -> dict[str, str]:
    """Flags that make a command small; those of the tiny configurations are small as they are."""
    if "configs/eval/benchmarks.yaml" in words:
        return {"--trainer.callbacks.max_new_tokens": "4"}
    if "--trainer.callbacks+=callbacks.ResponseWriter" in words:
        return {"--trainer.default_root_dir": str(Path(_TRACED).parent)}
    if words[0] == "predict" and words[1][0] != "-":
        return {"--model.sampling.max_new_tokens": "6"}
    rewarded = "configs/grpo.yaml" in words
    if words[0] not in {"fit", "test", "predict"} or not (rewarded or "configs/sft.yaml" in words):
        return {}
    sizes = {} if "datamodules.NoRows" in words else dict(_ALL)
    if rewarded:
        sizes |= _REWARDED
    if words[0] == "fit":
        sizes |= _FIT | ({"--model.train_batch_size": "2"} if rewarded else {})
    return sizes


def repositories(folder: Path) -> list[Repo]:
    """The models and the data set, written below a folder; `folder / "images"` holds COCO and VisualGenome too."""
    new, old = folder / "new", folder / "old"
    backbone = tiny_backbone()
    for model in (new, old):
        backbone.save_pretrained(model)
    (old / "config.json").unlink()
    tiny_qwen2_vl(backbone.processor).save_pretrained(old)
    as_released(new)
    repos = [_repo(name, path, letter) for names, path, letter in ((NEW, new, "a"), (OLD, old, "b")) for name in names]
    scorer = _repo("Skywork/Skywork-VL-Reward-7B", save_reward_model(folder / "scorer"), "c")
    return [*repos, scorer, _data(folder)]


def _repo(name: str, folder: Path, letter: str) -> Repo:
    return Repo(name, {letter * 40: {file.name: file for file in folder.iterdir()}}, {"main": letter * 40})


def _data(folder: Path) -> Repo:
    """Drawn scenes in the layout of the released data set."""
    paths = write_dataset(folder / "drawn", sft_count=SFT_ROWS, grpo_count=GRPO_ROWS, test_count=9, progress=False)
    files: dict[str, bytes | Path] = {
        SPLIT_FILES["sft"]: paths.root / "VLAA-Thinking-SFT.json",
        SPLIT_FILES["grpo"]: paths.root / "VLAA-Thinking-GRPO.json",
    }
    for source in SOURCES:
        if source not in OWN_SITES:
            files[archive_of(source)] = _packed(paths.image_root / source)
    return Repo(REPOSITORY, {"d" * 40: files}, {"main": "d" * 40}, "datasets")


def _packed(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as out:
        out.add(folder, arcname=folder.name)
    return buffer.getvalue()


def furnish(folder: Path, pages: Mapping[str, str], servers: Mapping[str, str]) -> None:
    """Puts files where a reader of the pages has them: configurations, benchmarks, pictures, rows, archives.

    Args:
        folder: Where commands are given; `drawn` in it is the data set of `repositories`.
        pages: Files that pages show, by name.
        servers: Addresses by those on pages.
    """
    (folder / "configs").symlink_to(ROOT / "configs")
    _prepare_build(folder, servers)
    for name, content in pages.items():
        (folder / name).write_text(content, encoding="utf-8")
    benchmarks = folder / "data" / "benchmarks"
    benchmarks.mkdir(parents=True)
    for name in BENCHMARKS:
        write_benchmark(benchmarks, name, 2)
    for number, name in enumerate(("picture.jpg", "kitchen.jpg", "images/1.png", "images/2.png", "images/cats/1.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / name)
    picture(5).save(folder / "images/cats/2.png")
    (folder / "questions.jsonl").write_text(json.dumps({"question": "How many?", "image": "1.png"}) + "\n")
    near = {"image": "1.png", "question": "How many?", "gt": 2, "verifier_type": "near"}
    rows = [near | {"id": str(number), "image": f"images/{1 + number % 2}.png"} for number in range(8)]
    (folder / "data/VLAA-Thinking/images/images").mkdir(parents=True)
    for number in (1, 2):
        picture(number).save(folder / f"data/VLAA-Thinking/images/images/{number}.png")
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "downloads").mkdir()
    for name, source in (("train2017", "coco"), ("images", "vg/VG_100K"), ("images2", "vg/VG_100K_2")):
        start = folder / "drawn" / "images"
        with zipfile.ZipFile(folder / "downloads" / f"{name}.zip", "w") as out:
            for path in sorted((start / source).rglob("*.png")):
                out.write(path, path.relative_to(start).as_posix())


def _prepare_build(folder: Path, servers: Mapping[str, str]) -> None:
    """Puts the configuration of `data build`, with other addresses, at the same depth, and what it names in place."""
    text = (ROOT / "configs/data/build.yaml").read_text(encoding="utf-8")
    for address, served in servers.items():
        text = text.replace(address, served)
    shutil.copytree(ROOT / "configs/data/prompts", folder / "served/data/prompts")
    (folder / "served/data/build.yaml").write_text(text, encoding="utf-8")
    (folder / "data").mkdir()
    (folder / "data/images").symlink_to(folder / "drawn/images")
    shutil.copy(folder / "drawn/VLAA-Thinking-GRPO.json", folder / "data" / SPLIT_FILES["grpo"])
