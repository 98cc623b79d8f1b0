"""Folders of studies as `lit-vlaa study run` leaves them, with made-up responses of known rates."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw


@dataclass(frozen=True)
class Made:
    """What the responses of one arm are like."""

    steps: tuple[str, ...] = ()
    right: float = 0.5
    """Share of rows answered right."""
    cue: float = 0.1
    """Share of responses with an aha cue."""
    tokens: int = 40
    start: float = 0.1
    """Reward of the first rollouts."""
    end: float = 0.5


ARMS: Mapping[str, Made] = {
    "base": Made(right=0.25, cue=0.02, tokens=12),
    "sft": Made(("sft",), right=0.12, cue=0.55, tokens=70),
    "rl": Made(("rl",), right=0.6, cue=0.02, tokens=14, start=0.25, end=0.62),
    "sft+rl": Made(("sft", "rl"), right=0.42, cue=0.5, tokens=60, start=0.35, end=0.45),
    "sft-aha": Made(("sft-aha",), right=0.1, cue=0.95, tokens=80),
    "sft-plain": Made(("sft-plain",), right=0.11, cue=0.03, tokens=55),
}
"""Like the paper's findings, but for claim 9, which is left open."""

KINDS = (("digit", "clevr_math"), ("mcq", "geoqa170k"), ("math", "synthesis"), ("open_ended", "docvqa"))
CUES = ("Wait, that is not right.", "Let me double-check this.", "Hmm, alternatively it is one less.")


def write_study(
    folder: Path,
    *,
    arms: Mapping[str, Made] = ARMS,
    seeds: Sequence[int] = (1, 2, 3),
    rows: int = 60,
    config: Mapping[str, Any] | None = None,
    perplexity: bool = False,
) -> Path:
    """Writes a study that has ended; the same arguments give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    images = folder / "data" / "images"
    images.mkdir(parents=True)
    questions = _questions(images, rows)
    jobs: list[dict[str, Any]] = []
    evaluations: list[dict[str, Any]] = []
    for seed in seeds:
        _seed_jobs(folder, arms, seed, questions, images, jobs, evaluations, perplexity=perplexity)
    manifest = {
        "format": 1,
        "name": "made-up",
        "description": "A made-up study for tests.",
        "config": dict(config or {}),
        "code": {"version": "0.1.0", "git_commit": "0123abc", "git_dirty": False},
        "packages": {"torch": "2.13.0"},
        "machine": {"cpu": "2 cores", "gpu": None},
        "data": {"data/test.json": {"sha256": "ab" * 32, "bytes": 1234, "rows": rows}},
        "seeds": list(seeds),
        "arms": {
            name: {"title": f"the arm {name}", "steps": list(made.steps), "differs": {}} for name, made in arms.items()
        },
        "matched": _matched(arms),
        "jobs": jobs,
        "evaluations": evaluations,
    }
    write_json(folder / "manifest.json", manifest)
    return folder


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Replaces keys of a manifest."""
    path = folder / "manifest.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def edit_rows(path: Path, **changes: Any) -> None:
    """Replaces keys in every line of a JSON Lines file."""
    lines = [json.loads(line) | changes for line in path.read_text(encoding="utf-8").splitlines()]
    write_lines(path, lines)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def only(name: str, **changes: Any) -> Made:
    """One of `ARMS`, changed."""
    return replace(ARMS[name], **changes)


def _questions(images: Path, rows: int) -> list[dict[str, Any]]:
    generator = random.Random(7)
    found = []
    for place in range(rows):
        kind, source = KINDS[place % len(KINDS)]
        picture = Image.new("RGB", (84, 84), "white")
        draw = ImageDraw.Draw(picture)
        count = generator.randint(1, 6)
        for index in range(count):
            left, top = 4 + 26 * (index % 3), 4 + 40 * (index // 3)
            draw.ellipse((left, top, left + 20, top + 20), fill=("crimson", "steelblue", "seagreen")[index % 3])
        picture.save(images / f"{place}.png")
        question = f"How many circles are there? (question {place})"
        found.append(
            {"id": f"row{place}", "kind": kind, "source": source, "question": question, "truth": str(count)}
            | {"image": f"{place}.png"}
        )
    return found


def _matched(arms: Mapping[str, Made]) -> dict[str, Any]:
    """As `lit_vlaa.study.matching.check` gives it."""
    file = {
        "key": "data.init_args.data_file",
        "stage": "sft.json",
        "arm": "aha.json",
        "reason": "traces with cues only",
    }
    lr = {"key": "model.init_args.optim.lr", "sft": 0.001, "rl": 0.0003, "reason": "each stage's own"}
    return {
        "set_by_the_runner": ["seed_everything", "trainer.default_root_dir"],
        "arms": {
            name: {stage: {"equal": 120, "differs": [file] if name == "sft-aha" else []} for stage in made.steps}
            for name, made in arms.items()
        },
        "stages": [
            {"stages": ["sft", "rl"], "equal": 80, "differs": [lr], "only": {"sft": [], "rl": ["model.init_args.kl"]}}
        ],
        "evaluation": {"same_for_all_arms": 130, "with_stages": {"rl": {"equal": 20, "differs": []}}},
    }


def _seed_jobs(
    folder: Path,
    arms: Mapping[str, Made],
    seed: int,
    questions: Sequence[Mapping[str, Any]],
    images: Path,
    jobs: list[dict[str, Any]],
    evaluations: list[dict[str, Any]],
    *,
    perplexity: bool,
) -> None:
    made_jobs: dict[tuple[str, ...], str] = {}
    for name, made in arms.items():
        before: list[str] = []
        for length, stage in enumerate(made.steps, 1):
            chain = made.steps[:length]
            sharing = [other for other, its in arms.items() if its.steps[:length] == chain]
            job = f"seed{seed}-{sharing[0]}-{stage}"
            if chain not in made_jobs:
                made_jobs[chain] = job
                entry = {"id": job, "kind": "train", "stage": stage, "arms": sharing, "seed": seed, "after": before}
                jobs.append(entry | {"command": ["fit", f"--config=configs/{stage}.yaml", f"--seed_everything={seed}"]})
                _train(folder / "jobs" / job, stage, arms[sharing[-1]] if stage == "rl" else made, seed)
            before = [made_jobs[chain]]
        job = f"seed{seed}-{name}-test"
        words = ["test", "--config=configs/rl.yaml", f"--data.init_args.image_root={images}"]
        entry = {"id": job, "kind": "evaluate", "stage": "evaluation", "arms": [name], "seed": seed, "after": before}
        jobs.append(entry | {"command": words})
        evaluations.append({"arm": name, "seed": seed, "job": job})
        place = folder / "jobs" / job
        answers = [_answer(question, made, name, seed) for question in questions]
        write_lines(place / "responses.jsonl", answers)
        _done(place, 3.25)
        if perplexity:
            lines = [
                {"set": "test", "id": row["id"], "nll": 0.5 * row["tokens"], "tokens": row["tokens"]} for row in answers
            ]
            write_lines(place / "perplexity.jsonl", lines)


def _answer(question: Mapping[str, Any], made: Made, arm: str, seed: int) -> dict[str, Any]:
    generator = random.Random(f"{arm} {seed} {question['id']}")
    # Half of the luck is the row's own, so that arms agree more often than chance.
    luck = random.Random(str(question["id"])).random() if generator.random() < 0.5 else generator.random()
    right = luck < made.right
    answer = question["truth"] if right else str(int(question["truth"]) + 1)
    doubt = f" {generator.choice(CUES)}" if generator.random() < made.cue else ""
    words = " ".join(["I count the circles one by one."] * max(1, made.tokens // 12))
    tokens = made.tokens + generator.randint(-4, 4) + len(doubt.split())
    return {
        "set": "test",
        "response": f"<think>{words}{doubt}</think><answer>{answer}</answer>",
        "score": float(right),
        "tokens": tokens,
        "finish": "stop",
        "status": "ok",
        "extracted": answer,
        **question,
    }


def _train(place: Path, stage: str, made: Made, seed: int) -> None:
    generator = random.Random(f"{stage} {seed} {made.steps}")
    rows: list[dict[str, Any]] = []
    steps = 40
    for step in range(1, steps + 1):
        share = (step - 1) / (steps - 1)
        noise = generator.uniform(-0.02, 0.02)
        if stage == "rl":
            reward = made.start + (made.end - made.start) * share + noise
            rows.append({"step": step, "reward/mean": reward, "rollout/length": made.tokens + 5 * noise})
            rows[-1] |= {"rollout/tokens_per_second": 100.0, "time/generate": 2.0}
        else:
            rows.append({"step": step, "train/loss": 3.0 / (1 + 5 * share) + noise, "train/tokens_per_second": 500.0})
            rows[-1] |= {"time/step": 0.5}
    version = place / "version_0"
    version.mkdir(parents=True)
    with (version / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)
    _done(place, 12.5)


def _done(place: Path, seconds: float) -> None:
    content = {"seconds": seconds, "checkpoint": None, "metrics": None, "config_sha256": "cd" * 32}
    write_json(place / "done.json", content)
