"""The whole job on a laptop: generate data, SFT, GRPO, evaluation on held-out rows, a table and a picture.

Every stage is a `lit-vlaa` command that is printed before it runs, so that each can be repeated and changed alone.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_vlaa.cli import main
from lit_vlaa.types import KINDS

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "quickstart"

_COUNTS = ("--sft-count=12800", "--grpo-count=3840", "--test-count=2000", "--seed=11")

Scores = dict[str, float]


def run(*, output_dir: Path = Path("runs/quickstart"), data_dir: Path = Path("data/quickstart"), seed: int = 42) -> int:
    """Generates data, trains the embedded tiny model by SFT and then GRPO, and evaluates both on held-out rows.

    Writes `summary.json`, `curves.png` and a comparison of both on the generated benchmark to the output folder.

    Args:
        output_dir: Folder for logs, checkpoints, summary and picture.
        data_dir: Folder for the generated data; made once and used again.
        seed: Seed of data order, rollouts and evaluation.

    Returns:
        The exit code.

    Raises:
        ValueError: If the seed is out of range, or the configs are not at hand (the package was installed without the
            repository).
    """
    if not CONFIGS.is_dir():
        raise ValueError(f"{CONFIGS} is missing; run the quickstart from a clone of the repository")
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must be from 0 to {2**32 - 1}, got {seed}")
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    sft, grpo = (
        [
            "fit",
            f"--config={CONFIGS / f'{stage}.yaml'}",
            f"--seed_everything={seed}",
            f"--data.seed={seed}",
            *_places(stage, data_dir),
        ]
        for stage in ("sft", "grpo")
    )
    benchmark = [f"--config={CONFIGS / 'eval.yaml'}", f"--trainer.callbacks.data_dir={data_dir}"]
    test = ["test", grpo[1], *benchmark, *grpo[2:]]

    def stage(name: str, words: list[str]) -> None:
        _say(f"\n[{len(seconds) + 1}/6] {' '.join(['lit-vlaa', *words])}")
        before = time.perf_counter()
        if main(words):
            raise ValueError(f"the quickstart stopped in its stage {name}")
        seconds[name] = time.perf_counter() - before

    def root(name: str) -> str:
        return f"--trainer.default_root_dir={output_dir / name}"

    stage("data", ["data", "synthetic", f"--output-dir={data_dir}", *_COUNTS])
    stage("sft", [*sft, root("sft")])
    start = f"--model.init_from={checkpoint(output_dir / 'sft')}"
    stage("grpo", [*grpo, root("grpo"), start])
    stage("eval_sft", [*test, root("eval_sft"), start])
    stage("eval_grpo", [*test, root("eval_grpo"), f"--model.init_from={checkpoint(output_dir / 'grpo')}"])
    folders = [str(output_dir / f"eval_{arm}" / "benchmarks") for arm in ("sft", "grpo")]
    stage("compare", ["eval", "compare", *folders, f"--output-dir={output_dir / 'compare'}"])
    scores = {arm: _test_scores(newest_log(output_dir / f"eval_{arm}")) for arm in ("sft", "grpo")}
    picture = plot(output_dir, scores)
    summary = {
        **{arm: _summary(values) for arm, values in scores.items()},
        "gain": scores["grpo"]["reward"] - scores["sft"]["reward"],
        "gain_stderr": (scores["sft"]["stderr"] ** 2 + scores["grpo"]["stderr"] ** 2) ** 0.5,
        "seconds": round(time.perf_counter() - started, 1),
        "stages_seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    path = output_dir / "summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _say(_table(scores, summary))
    pictures = f"{picture}, {output_dir / 'compare' / 'comparison.png'}"
    _say(f"summary:  {path}\npictures: {pictures}\nwatch it: tensorboard --logdir {output_dir}")
    return 0


def _places(split: str, data_dir: Path) -> list[str]:
    """Flags that name the generated files of a split."""
    file = data_dir / f"VLAA-Thinking-{split.upper()}"
    parts = {"data_file": f"{file}.json", "val_file": f"{file}-val.json", "test_file": f"{file}-test.json"}
    return [f"--data.{name}={path}" for name, path in parts.items()] + [f"--data.image_root={data_dir / 'images'}"]


def checkpoint(root: Path) -> Path:
    """The last checkpoint of the latest run below `root`."""
    return newest_log(root).parent / "checkpoints" / "last.ckpt"


def newest_log(root: Path) -> Path:
    """`metrics.csv` of the latest run below `root`.

    Raises:
        ValueError: If there is none.
    """
    versions = sorted(root.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    if not versions:
        raise ValueError(f"{root} holds no log of a run")
    return versions[-1]


def read_column(path: Path, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric in a CSV log; both empty when it was never logged."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(float(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]
    return [step for step, _ in rows], [value for _, value in rows]


def _test_scores(path: Path) -> Scores:
    names = ["reward", "stderr", "n", "failed", *(f"reward/{k}" for k in KINDS), *(f"n/{k}" for k in KINDS)]
    columns = {name: read_column(path, f"test/{name}")[1] for name in names}
    return {name: values[-1] for name, values in columns.items() if values}


def _summary(scores: Scores) -> dict[str, Any]:
    kinds = {kind: scores[f"reward/{kind}"] for kind in KINDS if f"reward/{kind}" in scores}
    return {"reward": scores["reward"], "stderr": scores["stderr"], "n": int(scores["n"]), "by_kind": kinds}


def plot(output_dir: Path, scores: Mapping[str, Scores]) -> Path:
    """Draws both training curves, the rollouts' reward by kind, and the held-out rewards by kind.

    Args:
        output_dir: Folder with the logs of both trainings; the picture goes there.
        scores: Test metrics of `sft` and `grpo`.

    Returns:
        The picture's path.
    """
    import matplotlib as mpl  # noqa: PLC0415  # slow to import, and only this needs it

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    sft, grpo = (newest_log(output_dir / stage) for stage in ("sft", "grpo"))
    figure, ((left, middle), (by_kind, right)) = plt.subplots(2, 2, figsize=(11, 7.6), layout="constrained")
    left.plot(*read_column(sft, "train/loss"), color="tab:blue", alpha=0.6, label="train")
    left.plot(*read_column(sft, "val/loss"), "o-", color="tab:red", label="held out")
    left.set(title="SFT", xlabel="optimiser step", ylabel="loss (nats per answer token)", yscale="log")
    left.legend()
    steps, rewards = read_column(grpo, "reward/mean")
    middle.plot(steps, rewards, color="tab:blue", alpha=0.35, label="rollouts")
    middle.plot(steps, running_mean(rewards, 10), color="tab:blue", label="rollouts, mean of 10")
    middle.plot(*read_column(grpo, "val/reward"), "o-", color="tab:red", label="held out")
    middle.set(title="GRPO", xlabel="optimiser step", ylabel="mixed reward")
    middle.legend()
    for kind in KINDS:
        steps, rewards = read_column(grpo, f"reward/{kind}")
        by_kind.plot(steps, running_mean(rewards, 20), label=kind)
    by_kind.set(title="GRPO by kind, mean of 20 rollouts", xlabel="optimiser step", ylabel="reward", ylim=(0, 1.12))
    by_kind.legend(loc="upper center", ncols=len(KINDS), fontsize="small")
    kinds = ["all", *(kind for kind in KINDS if f"reward/{kind}" in scores["sft"])]
    for offset, (stage, colour) in enumerate((("sft", "tab:gray"), ("grpo", "tab:blue"))):
        values = [scores[stage]["reward" if kind == "all" else f"reward/{kind}"] for kind in kinds]
        errors = [scores[stage]["stderr"] if kind == "all" else 0.0 for kind in kinds]
        places = [place + 0.4 * offset - 0.2 for place in range(len(kinds))]
        right.bar(places, values, width=0.4, yerr=errors, color=colour, label=f"after {stage.upper()}")
    right.set(title=f"{int(scores['sft']['n'])} held-out rows", ylabel="mixed reward", ylim=(0, 1))
    right.set_xticks(range(len(kinds)), kinds)
    right.legend()
    path = output_dir / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and up to `width - 1` before it."""
    return [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def _table(scores: Mapping[str, Scores], summary: Mapping[str, Any]) -> str:
    lines = ["", f"{'held-out reward':<18}{'rows':>6}{'after SFT':>12}{'after GRPO':>12}{'change':>9}"]
    for kind in (*KINDS, "all"):
        name = "reward" if kind == "all" else f"reward/{kind}"
        if name not in scores["sft"] or name not in scores["grpo"]:
            continue
        rows = scores["sft"]["n" if kind == "all" else f"n/{kind}"]
        before, after = scores["sft"][name], scores["grpo"][name]
        lines.append(f"{kind:<18}{rows:>6.0f}{before:>12.3f}{after:>12.3f}{after - before:>+9.3f}")
    lines.append(f"change {summary['gain']:+.3f} with a standard error of {summary['gain_stderr']:.3f}")
    lines.append(f"{summary['seconds']:.0f} seconds in all\n")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
