"""How rollouts grow with prompts, group size, completion length and images; `python -m benchmarks.scaling --help`.

One quantity is varied at a time. Seconds are medians of the runs after the first; bytes are of the tensors that the
rollout made, counted in that first run, weights apart. The exponent is the slope of a straight line through the
logarithms of the upper half of the points, where fixed costs count least: 1 means that twice the work costs twice as
much.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.cases import quiet
from benchmarks.eos import planned_uniforms
from benchmarks.models import Setup
from benchmarks.peak import peak_of
from benchmarks.report import machine, versions
from benchmarks.workload import samples
from lit_vlaa.backbone import Backbone
from lit_vlaa.generation import CachedGenerator, RolloutKey
from lit_vlaa.types import SamplingParams

LEAST_REPEATS = 3


@dataclass(frozen=True)
class Work:
    """One rollout; every completion is as long as the limit."""

    prompts: int
    group_size: int
    length: int
    images: int


BASE = {"tiny": Work(4, 4, 64, 1), "random-3b": Work(8, 8, 256, 1)}
AXES: Mapping[str, Sequence[int]] = {
    "prompts": (2, 4, 8, 16, 32, 64),
    "group_size": (2, 4, 8, 16, 32, 64),
    "length": (32, 64, 128, 256, 512, 1024),
    "images": (1, 2, 4, 8, 16),
}


@dataclass(frozen=True)
class Point:
    """What one size cost."""

    size: int
    seconds: list[float]
    peak: int
    """Bytes."""


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms of the upper half of the points, two of them at least."""
    kept = max(2, math.ceil(len(sizes) / 2))
    x, y = ([math.log(value) for value in values[-kept:]] for values in (sizes, costs))
    return statistics.linear_regression(x, y).slope


def rollout(setup: Setup, backbone: Backbone, work: Work) -> Callable[[], object]:
    """A rollout of that size, its prompts encoded already."""
    rows = samples(work.prompts, setup.scale, images=work.images)
    prompts = [backbone.processor.encode(row).to(setup.device) for row in rows]
    plan = {(row.record.id, sample): work.length for row in rows for sample in range(work.group_size)}
    params = SamplingParams(max_new_tokens=work.length, temperature=setup.scale.temperature)
    engine = CachedGenerator()

    def run() -> None:
        with planned_uniforms(plan):
            groups = engine.generate(
                backbone, prompts, group_size=work.group_size, params=params, key=RolloutKey(seed=0, step=0)
            )
        setup.synchronize()
        if any(completion.token_ids.numel() != work.length for group in groups for completion in group):
            raise RuntimeError("completions are not of the planned length")

    return run


def measured(setup: Setup, backbone: Backbone, axis: str, repeats: int) -> list[Point]:
    """All sizes along one axis."""
    points = []
    for size in AXES[axis]:
        run = rollout(setup, backbone, replace(BASE[setup.model], **{axis: size}))
        peak = peak_of(run, setup.device)
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        points.append(Point(size, seconds, peak))
        print(f"{axis} {size}: {statistics.median(seconds):.3f} s, {peak / 2**20:.1f} MiB", flush=True)
    return points


def table(found: Mapping[str, Sequence[Point]], base: Work) -> str:
    """The points and their exponents in Markdown."""
    lines = [
        "| varied | sizes | seconds (medians) | exponent | peak MiB | exponent |",
        "| --- | --- | --- | ---: | --- | ---: |",
    ]
    for axis, points in found.items():
        sizes = [point.size for point in points]
        seconds = [statistics.median(point.seconds) for point in points]
        peaks = [point.peak / 2**20 for point in points]
        cells = [
            f"{axis} (else {getattr(base, axis)})",
            ", ".join(map(str, sizes)),
            ", ".join(f"{value:.3g}" for value in seconds),
            f"{exponent(sizes, seconds):.2f}",
            ", ".join(f"{value:.3g}" for value in peaks),
            f"{exponent(sizes, peaks):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(found: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Seconds and bytes against each size, both axes logarithmic, beside lines of proportional growth."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and only this needs it

    figure = Figure(figsize=(3 * len(found), 5.5), layout="constrained")
    grid = figure.subplots(2, len(found), squeeze=False)
    for column, (axis, points) in enumerate(found.items()):
        sizes = [point.size for point in points]
        curves = ([statistics.median(p.seconds) for p in points], [p.peak / 2**20 for p in points])
        for row, (costs, label) in enumerate(zip(curves, ("seconds", "peak MiB"), strict=True)):
            axes = grid[row, column]
            axes.loglog(sizes, costs, "o-", base=2, label=f"exponent {exponent(sizes, costs):.2f}")
            axes.loglog(sizes, [costs[-1] * size / sizes[-1] for size in sizes], ":", base=2, label="proportional")
            axes.set_xlabel(axis)
            axes.set_ylabel(label if column == 0 else "")
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs everything; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=tuple(BASE), default="tiny", help="default tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=list(AXES), help="what to vary (default all)")
    parser.add_argument("--repeats", type=int, default=LEAST_REPEATS, help="timed rollouts of each size (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default 2)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    options = parser.parse_args(arguments)
    if options.repeats < LEAST_REPEATS:
        parser.error(f"--repeats must be at least {LEAST_REPEATS}, got {options.repeats}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    quiet()
    torch.set_num_threads(options.threads)
    setup = Setup(options.model, options.device, options.threads)
    where = machine(setup)
    backbone = setup.backbone().to(setup.device).eval()
    found = {axis: measured(setup, backbone, axis, options.repeats) for axis in options.axes}
    command = shlex.join(["python", "-m", "benchmarks.scaling", *(sys.argv[1:] if arguments is None else arguments)])
    stem = options.output / f"scaling-{options.model}-{options.device}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    text = f"Command: `{command}`. Machine: {where}.\nVersions: {used}.\n\n{table(found, BASE[setup.model])}"
    print(text)
    stem.with_suffix(".md").write_text(f"{text}\n![Growth]({stem.name}.png)\n", encoding="utf-8")
    values = {axis: [vars(point) for point in points] for axis, points in found.items()}
    content = {"command": command, "machine": where, "versions": versions(), "values": values}
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    picture(found, stem.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
