"""Measures rollouts and training steps of the tiny model and writes a table; `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_vlaa.backbone import Backbone, BackboneConfig, build_backbone
from lit_vlaa.generation import CachedGenerator, Generator, RolloutKey, TransformersGenerator
from lit_vlaa.grpo import GRPOModule
from lit_vlaa.prompts import PromptConfig, build_messages
from lit_vlaa.sft import SFTModule
from lit_vlaa.types import Completion, Prompt, PromptBatch, Record, Sample, SamplingParams, SFTBatch

PROMPTS = 8
GROUP_SIZE = 4
NEW_TOKENS = 64
IMAGE_SIDE = 168
CONFIG = BackboneConfig(max_pixels=IMAGE_SIDE**2)
SAMPLING = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=0.8)
ENGINES: dict[str, Generator] = {"ours": CachedGenerator(), "transformers": TransformersGenerator()}
END_BONUS = {"fixed": -1e4, "geometric": 2.5}
"""Added to the logits of the tokens that end a completion, which random weights draw only once in 400 times. The bonus
gives lengths with a long tail, the malus ends no completion ahead of the limit."""

_ENGINE_PHASES = ("time/generate", "time/step")

Values = dict[str, list[float]]


class BiasedHead(nn.Module):
    """A language-model head with another taste for the tokens that end a completion; every engine sees the same."""

    def __init__(self, head: nn.Module, token_ids: Sequence[int], bonus: float) -> None:
        """Wraps `head`; `bonus` goes to every one of `token_ids`."""
        super().__init__()
        self.head, self.token_ids, self.bonus = head, list(token_ids), bonus

    @property
    def weight(self) -> Tensor:
        """The wrapped head's matrix, which transformers looks for."""
        return self.head.weight  # type: ignore[return-value]

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., V]` logits."""
        logits: Tensor = self.head(hidden)
        bonus = torch.zeros(logits.shape[-1], dtype=logits.dtype)
        bonus[self.token_ids] = self.bonus
        return logits + bonus


class Turns:
    """Lets the engines take turns, a rollout each (implements `Generator`)."""

    def __init__(self) -> None:
        """Starts with the first engine."""
        self.calls = 0

    def generate(self, *args: Any, **kwargs: Any) -> list[list[Completion]]:
        """Passes on to the engine whose turn it is."""
        self.calls += 1
        return self.current.generate(*args, **kwargs)

    @property
    def current(self) -> Generator:
        """The engine of the latest rollout."""
        return list(ENGINES.values())[(self.calls - 1) % len(ENGINES)]

    @property
    def name(self) -> str:
        """Name of the engine of the latest rollout."""
        return list(ENGINES)[(self.calls - 1) % len(ENGINES)]


class Rows(LightningDataModule):
    """The same rows in every batch, so that all repeats do the same work."""

    def __init__(self, batch: PromptBatch | SFTBatch, repeats: int) -> None:
        """Serves `batch` `repeats` times."""
        super().__init__()
        self.batch = batch
        self.batch_size = len(batch)
        self.batches_per_epoch = repeats

    def train_dataloader(self) -> DataLoader[Any]:
        """The batches."""
        return DataLoader(range(self.batches_per_epoch), collate_fn=lambda _: self.batch)  # type: ignore[arg-type]


class Times(Callback):
    """Collects the `time/*` that a module logs, one dictionary a batch."""

    def __init__(self, module: SFTModule | GRPOModule) -> None:
        """Listens to `module`."""
        super().__init__()
        self.seen: list[tuple[str, dict[str, float]]] = []
        self.module = module

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Keeps the latest numbers."""
        name = self.module.engine.name if isinstance(self.module.engine, Turns) else ""
        values = {key: float(value) for key, value in trainer.callback_metrics.items()}
        self.seen.append((name, {key: value for key, value in values.items() if key.startswith("time/")}))


def main() -> int:
    """Runs everything; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="repeats of everything that is timed (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default 2)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    arguments = parser.parse_args()
    if arguments.repeats < 5:
        parser.error(f"--repeats must be at least 5, got {arguments.repeats}")
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    values: Values = {}
    notes = [measure(values, arguments.repeats) for measure in (rollouts, sft_steps, grpo_steps)]
    write(values, notes, arguments, load)
    return 0


def rollouts(values: Values, repeats: int) -> str:
    """Tokens a second of both engines, for two kinds of completion lengths."""
    backbone = build_backbone(CONFIG).eval()
    head = backbone.lm_head
    prompts = [backbone.processor.encode(row) for row in samples()]
    spans = []
    for lengths, bonus in END_BONUS.items():
        backbone.model.lm_head = BiasedHead(head, backbone.processor.stop_token_ids, bonus)
        tokens = {name: _flat(_roll(engine, backbone, prompts)) for name, engine in ENGINES.items()}
        _require_equal(tokens["ours"], tokens["transformers"], lengths)
        sizes = sorted(map(len, tokens["ours"]))
        spans.append(f"{lengths}: {sizes[0]} to {sizes[-1]}, median {sizes[len(sizes) // 2]}")
        for _ in range(repeats):
            for name, engine in ENGINES.items():
                seconds = _seconds(lambda engine=engine: _roll(engine, backbone, prompts))  # type: ignore[misc]
                values.setdefault(f"rollout, {lengths} lengths, {name} [tokens/s]", []).append(sum(sizes) / seconds)
    return f"Both engines wrote the same {PROMPTS * GROUP_SIZE} completions; tokens a completion: {'; '.join(spans)}."


def sft_steps(values: Values, repeats: int) -> str:
    """Whole optimiser steps of SFT."""
    module = SFTModule(backbone=CONFIG)
    rows = samples()
    prompts = tuple(module.processor.encode(row) for row in rows)
    responses = tuple(module.processor.encode_response(row.record.response or "") for row in rows)
    tokens = sum(len(p.input_ids) + len(r) for p, r in zip(prompts, responses, strict=True))
    for _, times in _train(module, SFTBatch(prompts, responses), repeats):
        values.setdefault("SFT step [s]", []).append(times["time/step"])
        values.setdefault("SFT step [tokens/s]", []).append(tokens / times["time/step"])
    return f"SFT: {len(rows)} rows, {tokens} tokens a step."


def grpo_steps(values: Values, repeats: int) -> str:
    """Whole GRPO steps by phase, with either engine."""
    module = GRPOModule(
        backbone=CONFIG,
        sampling=SAMPLING,
        group_size=GROUP_SIZE,
        train_batch_size=PROMPTS // 2,
        generator=Turns(),
    )
    prompts = PromptBatch(tuple(module.processor.encode(row) for row in samples()))
    for engine, times in _train(module, prompts, repeats * len(ENGINES), warm_up=len(ENGINES)):
        for phase, seconds in times.items():
            name = f"GRPO {phase.removeprefix('time/')}"
            # The other phases do not know which engine wrote the completions.
            name += f", {engine} [s]" if phase in _ENGINE_PHASES else " [s]"
            values.setdefault(name, []).append(seconds)
    return f"GRPO: {PROMPTS} prompts, {GROUP_SIZE} completions of at most {NEW_TOKENS} tokens, 2 optimiser steps."


def samples() -> list[Sample]:
    """Rows with one image each, of uneven lengths."""
    rng = random.Random(0)
    rows = []
    for index in range(PROMPTS):
        picture = Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), "white")
        draw = ImageDraw.Draw(picture)
        for _ in range(6):
            x, y = rng.randrange(IMAGE_SIDE - 40), rng.randrange(IMAGE_SIDE - 40)
            draw.ellipse([x, y, x + 36, y + 36], fill=rng.choice(["red", "green", "blue"]))
        thoughts = " ".join(f"circle {number} is red, wait, check again." for number in range(rng.randrange(2, 16)))
        record = Record(
            id=str(index),
            source="clevr_math",
            kind="digit",
            images=(f"{index}.png",),
            question="How many red circles are there?" + " Look closely." * rng.randrange(4),
            truth=str(index % 7),
            response=f"<think> {thoughts} </think><answer>{index % 7}</answer>",
            origin=f"benchmark:{index}",
        )
        rows.append(Sample(record, tuple(build_messages(record, PromptConfig())), (picture,), "normalized"))
    return rows


def write(values: Values, notes: Sequence[str], arguments: argparse.Namespace, load: float) -> None:
    """Prints the table and writes it beside the single values; `load` is the machine's before the start."""
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    machine = f"{processor_name()}, {arguments.threads} threads, {platform.system()} {platform.machine()}"
    machine += f", load {load:.1f} of {os.cpu_count()} at the start"
    packages = ("torch", "lightning", "transformers")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    lines = [
        f"Command: `{command}`. Machine: {machine}.",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".",
        *notes,
        "",
        f"| measured {arguments.repeats} times | median | lowest | highest | ours against transformers |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, numbers in values.items():
        cells = [statistics.median(numbers), min(numbers), max(numbers)]
        lines.append(f"| {name} | {' | '.join(f'{cell:.4g}' for cell in cells)} | {_ratio(name, values)} |")
    table = "\n".join(lines) + "\n"
    print(table)
    arguments.output.mkdir(parents=True, exist_ok=True)
    stem = arguments.output / f"cpu-{arguments.threads}-threads"
    stem.with_suffix(".md").write_text(table, encoding="utf-8")
    content = {"command": command, "machine": machine, "versions": versions, "notes": list(notes), "values": values}
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _ratio(name: str, values: Values) -> str:
    """How many times faster ours is, from the medians; empty where there is nothing to compare."""
    other = name.replace(", ours", ", transformers")
    if other == name or other not in values:
        return ""
    ratio = statistics.median(values[name]) / statistics.median(values[other])
    return f"{ratio if name.endswith('/s]') else 1 / ratio:.2f}x"


def _roll(engine: Generator, backbone: Backbone, prompts: Sequence[Prompt]) -> list[list[Completion]]:
    key = RolloutKey(seed=0, step=0)
    return engine.generate(backbone, prompts, group_size=GROUP_SIZE, params=SAMPLING, key=key)


def _flat(groups: list[list[Completion]]) -> list[list[int]]:
    return [completion.token_ids.tolist() for group in groups for completion in group]


def _require_equal(ours: list[list[int]], theirs: list[list[int]], lengths: str) -> None:
    different = [index for index, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    if different:
        raise SystemExit(
            f"{len(different)} of {len(ours)} completions differ between the engines ({lengths} lengths, first: "
            f"{different[0]}); no speed is worth reporting before that is understood"
        )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _train(
    module: SFTModule | GRPOModule, batch: PromptBatch | SFTBatch, repeats: int, *, warm_up: int = 1
) -> Iterator[tuple[str, dict[str, float]]]:
    times = Times(module)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[times],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
    )
    trainer.fit(module, Rows(batch, warm_up + repeats))
    yield from times.seen[warm_up:]


def processor_name() -> str:
    """The processor's name without anything that names this one machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
