"""How evenly SFT's rows are dealt to ranks, in turn and by their lengths; `python -m benchmarks.dealing --help`.

An optimiser step takes as long as its dearest rank; the figure is that rank's tokens over the mean of all, averaged
over global batches. The bound is that of the longest row: no dealing of equally many rows to each rank can be below it.
`traces` are synthetic rows of the SFT split, dealt by what a data module estimates (bytes of text) and counted in
tokens of prompt, image and response; the others are dealt by the very tokens that are counted.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workload import LENGTHS, SEED
from datamodules.sampler import deal

RANKS = (2, 8, 64)
Row = tuple[int, int]
"""What a row is estimated at, and what it costs."""


def imbalance(shares: Sequence[Sequence[int]], costs: Sequence[int]) -> float:
    """Cost of the dearest rank over the mean.

    Args:
        shares: Places of each rank's rows.
        costs: Of each row.
    """
    loads = [sum(costs[place] for place in share) for share in shares]
    return max(loads) * len(loads) / sum(loads)


def bound(costs: Sequence[int], ranks: int) -> float:
    """The least imbalance that the longest row allows: it stands beside the shortest ones."""
    ordered = sorted(costs)
    return max(1.0, (ordered[-1] + sum(ordered[: len(costs) // ranks - 1])) * ranks / sum(costs))


def compared(batches: Sequence[Sequence[Row]], ranks: int) -> tuple[float, float, float]:
    """Mean imbalance in turn and by estimates, and the mean bound."""
    found = []
    for batch in batches:
        estimates, costs = [row[0] for row in batch], [row[1] for row in batch]
        in_turn = [range(rank, len(batch), ranks) for rank in range(ranks)]
        found.append((imbalance(in_turn, costs), imbalance(deal(estimates, ranks), costs), bound(costs, ranks)))
    before, after, least = (statistics.mean(column) for column in zip(*found, strict=True))
    return before, after, least


def _drawn(draw: Callable[[random.Random], float]) -> Callable[[random.Random, int], list[Row]]:
    def batch(rng: random.Random, size: int) -> list[Row]:
        costs = [max(8, round(draw(rng))) for _ in range(size)]
        return [(cost, cost) for cost in costs]

    return batch


def distributions() -> dict[str, Callable[[random.Random, int], list[Row]]]:
    """Makers of a global batch by name."""
    file = json.loads(LENGTHS.read_text(encoding="utf-8"))["lengths"]
    traces = trace_rows()
    return {
        "`lengths.json`": _drawn(lambda rng: rng.choice(file)),
        "traces": lambda rng, size: [rng.choice(traces) for _ in range(size)],
        "log-normal, sigma 0.9, uncut": _drawn(lambda rng: rng.lognormvariate(4.564, 0.9)),
        "log-normal, sigma 1.5, uncut": _drawn(lambda rng: rng.lognormvariate(4.564, 1.5)),
        "1 in 16 rows of 2000, else 100": _drawn(lambda rng: 2000 if rng.random() < 1 / 16 else 100),
    }


def trace_rows(count: int = 512) -> list[Row]:
    """Bytes and tokens of synthetic rows, as the data module has them."""
    from datamodules import VLAAThinkingDataModule  # noqa: PLC0415  # slow to import
    from datamodules.synthetic import write_dataset  # noqa: PLC0415
    from lit_vlaa.backbone.config import BackboneConfig  # noqa: PLC0415
    from lit_vlaa.backbone.processor import load_processor  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        paths = write_dataset(
            Path(folder) / "data", sft_count=count, grpo_count=1, test_count=1, seed=SEED, progress=False
        )
        data = VLAAThinkingDataModule(
            split="sft",
            data_file=str(paths.data_file("sft")),
            image_root=str(paths.image_root),
            batch_size=1,
            shuffle=False,
            num_workers=0,
        )
        data.attach_processor(load_processor(BackboneConfig(path="tiny")))
        data.prepare_data()
        data.setup("fit")
        loader = data.train_dataloader()
        sampler: Any = loader.sampler
        tokens = [batch.prompts[0].input_ids.numel() + len(batch.responses[0]) for batch in loader]
        return list(zip(sampler.costs.tolist(), tokens, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and writes it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dealing", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[128, 512], help="of a global batch (default 128 512)")
    parser.add_argument("--batches", type=int, default=200, help="global batches of each kind (default 200)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the table")
    options = parser.parse_args(arguments)
    if options.batches < 1 or any(size < 1 or size % max(RANKS) for size in options.rows):
        parser.error(f"--batches must be at least 1, and --rows multiples of {max(RANKS)}")
    command = shlex.join(["python", "-m", "benchmarks.dealing", *(sys.argv[1:] if arguments is None else arguments)])
    lines = [
        f"Command: `{command}`. Tokens of the dearest rank over the mean: dealt in turn → by estimates (bound).",
        "",
        f"| tokens a row | rows a batch | {' | '.join(f'{ranks} ranks' for ranks in RANKS)} |",
        f"| --- | ---: |{' --- |' * len(RANKS)}",
    ]
    for name, draw in distributions().items():
        for size in options.rows:
            rng = random.Random(SEED)
            batches = [draw(rng, size) for _ in range(options.batches)]
            figures = (compared(batches, ranks) for ranks in RANKS)
            cells = " | ".join(f"{before:.3f} → {after:.3f} ({least:.3f})" for before, after, least in figures)
            lines.append(f"| {name} | {size} | {cells} |")
    text = "\n".join(lines) + "\n"
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "dealing.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
