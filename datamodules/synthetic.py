"""A generated data set in the VLAA-Thinking schema, small enough to learn in minutes on a CPU.

Layout below the root: `images/<folder of the source>/*.png` and, for each of the splits sft and grpo,
`VLAA-Thinking-<SPLIT>.json`, `...-val.json` and `...-test.json` (JSON Lines for SFT, an array for GRPO, as released).
`VLAA-Thinking-SFT-aha.json` and `...-plain.json` are the SFT rows once more, with an aha cue in every trace and in none
(the same pictures); `...-direct.json` holds rows of its own with answers alone, where such are asked for.
`benchmark.jsonl` asks the test rows' questions in the form of `callbacks.benchmarks.JSONLBenchmark`, those for a box or
an expression left out, which it does not judge.
No two pictures are alike. Both splits' validation files hold the same rows in two forms, and so do their test files, so
that both stages can be compared on them; apart from that and the rows with other traces no picture stands in two files.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from datamodules.scenes import CELL, TASKS, Painter, Task, describe, draw
from datamodules.sources import SOURCES
from lit_vlaa.prompts import ANSWER_CLOSE, ANSWER_OPEN, format_response
from lit_vlaa.types import Kind

_FORMAT = 3
_MANIFEST = "manifest.json"
_REPR_META_EVERY = 3
_SLASHED_SOURCE = "allava_laion"
Part = Literal["train", "val", "test"]
Variant = Literal["aha", "plain", "direct"]
"""Traces with an aha cue in each, with none, and answers alone."""


@dataclass(frozen=True, slots=True)
class SyntheticPaths:
    """Where the files of a generated data set lie."""

    root: Path

    @property
    def image_root(self) -> Path:
        """Folder of the images."""
        return self.root / "images"

    @property
    def benchmark(self) -> Path:
        """Questions of the test rows."""
        return self.root / "benchmark.jsonl"

    def variant(self, name: Variant) -> Path:
        """Returns the SFT training rows with other responses."""
        return self.root / f"VLAA-Thinking-SFT-{name}.json"

    def data_file(self, split: Literal["sft", "grpo"], part: Part = "train") -> Path:
        """Returns the rows of one split and part."""
        suffix = "" if part == "train" else f"-{part}"
        return self.root / f"VLAA-Thinking-{split.upper()}{suffix}.json"


@dataclass(frozen=True, slots=True)
class _Row:
    """One row before it takes a split's form."""

    source: str
    kind: Kind
    image: str
    task: Task
    aha: bool
    """Whether the trace has an aha cue."""

    @property
    def trace(self) -> str:
        facts = self.task.facts
        return f"{facts} Wait, let me check again. {facts}" if self.aha else facts

    def sft(self) -> dict[str, Any]:
        return self._answered(format_response(self.trace, self.task.answer))

    def direct(self) -> dict[str, Any]:
        return self._answered(f"{ANSWER_OPEN}{self.task.answer}{ANSWER_CLOSE}")

    def _answered(self, response: str) -> dict[str, Any]:
        return {"image": self.image, "question": self.task.question, "answer": response}

    def question(self) -> dict[str, Any]:
        # A letter is text here: the question names its options already.
        typed = {"kind": "text"} if self.kind in {"mcq", "open_ended"} else {}
        return {
            "id": f"{self.source}-{Path(self.image).stem}",
            "image": f"images/{self.image}",
            "question": self.task.question,
            "answer": self.task.truth,
            "tags": {"kind": self.kind, "source": self.source},
            **typed,
        }

    def grpo(self, number: int) -> dict[str, Any]:
        distilled = f"<think>\n{self.trace}\n</think>\n\n{self.task.answer}"
        meta: dict[str, Any] = {"caption_model_id": "synthetic", "rationale": "", "ds_answer": distilled}
        return {
            "id": f"{self.source}-{Path(self.image).stem}",
            "image": f"/{self.image}" if self.source == _SLASHED_SOURCE else self.image,
            "question": self.task.question,
            "gt": self.task.truth if self.source != "vg" else str(self.task.truth),
            "caption": describe(self.task.shapes),
            "meta": repr(meta) if number % _REPR_META_EVERY == 0 else meta,
            "verifier_type": self.kind,
        }


def write_dataset(
    root: Path | str,
    *,
    sft_count: int = 12_800,
    grpo_count: int = 3840,
    test_count: int = 2000,
    direct_count: int = 0,
    seed: int = 11,
    image_size: int = 84,
    aha_fraction: float = 0.3,
    weights: Mapping[str, float] | None = None,
    progress: bool = True,
) -> SyntheticPaths:
    """Writes the data set, or finds it written already with the same parameters; by default that of the quickstart.

    The same parameters give the same bytes. The folder appears whole or not at all.

    Args:
        root: Folder to make. An earlier data set of other parameters there is replaced.
        sft_count: Rows of the SFT training file.
        grpo_count: Rows of the GRPO training file.
        test_count: Rows of the validation files, and of the test files.
        direct_count: Rows with answers alone; 0 for no such file.
        seed: Decides everything random.
        image_size: Side of the square images in pixels: a multiple of 28, from 84 on.
        aha_fraction: Share of traces with an aha cue (`Wait, let me check again.`).
        weights: Relative number of rows by source; None for equal shares. Sources left out get no rows.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If a parameter is out of range, or the folder holds something else.
    """
    weights = dict.fromkeys(SOURCES, 1.0) if weights is None else {name: float(w) for name, w in weights.items()}
    counts = {"test": test_count, "val": test_count, "grpo": grpo_count, "sft": sft_count, "direct": direct_count}
    _check(counts, image_size, aha_fraction, weights)
    manifest = {
        "format": _FORMAT,
        "counts": counts,
        "seed": seed,
        "image_size": image_size,
        "aha_fraction": aha_fraction,
        "weights": weights,
    }
    paths = SyntheticPaths(Path(root))
    if _manifest(paths.root) == manifest:
        return paths
    if paths.root.exists() and _manifest(paths.root) is None and any(paths.root.iterdir()):
        raise ValueError(f"{paths.root} is not empty and holds no synthetic data set; give another folder")
    paths.root.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{paths.root.name}-", dir=paths.root.parent))
    try:
        maker = _Maker(SyntheticPaths(staging), seed, image_size // CELL, aha_fraction, weights)
        with tqdm(total=sum(counts.values()), desc="synthetic data", unit="row", disable=not progress) as bar:
            maker.write(counts, bar)
        (staging / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        staging.chmod(0o755)
        _install(staging, paths.root, manifest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return paths


class _Maker:
    """Writes the images and files of one data set."""

    def __init__(
        self, paths: SyntheticPaths, seed: int, side: int, aha_fraction: float, weights: Mapping[str, float]
    ) -> None:
        self.paths, self.seed, self.side, self.aha_fraction = paths, seed, side, aha_fraction
        self.sources = sorted(weights)
        self.weights = [weights[name] for name in self.sources]
        self._pictures: set[bytes] = set()

    def write(self, counts: Mapping[str, int], bar: Any) -> None:
        # The small files come first: their scenes then do not depend on how much training data is asked for.
        for part in ("test", "val"):
            rows = list(self._rows(part, counts[part], bar))
            _write_lines(self.paths.data_file("sft", part), (row.sft() for row in rows))
            _write_array(self.paths.data_file("grpo", part), (row.grpo(n) for n, row in enumerate(rows)))
            if part == "test":
                _write_lines(self.paths.benchmark, (row.question() for row in rows if row.kind not in {"iou", "math"}))
        grpo = self._rows("grpo", counts["grpo"], bar)
        _write_array(self.paths.data_file("grpo"), (row.grpo(n) for n, row in enumerate(grpo)))
        sft = list(self._rows("sft", counts["sft"], bar))
        _write_lines(self.paths.data_file("sft"), (row.sft() for row in sft))
        for variant in ("aha", "plain"):
            changed = (replace(row, aha=variant == "aha") for row in sft)
            _write_lines(self.paths.variant(variant), (row.sft() for row in changed))
        if counts["direct"]:
            direct = self._rows("direct", counts["direct"], bar)
            _write_lines(self.paths.variant("direct"), (row.direct() for row in direct))

    def _rows(self, part: str, count: int, bar: Any) -> Iterator[_Row]:
        for number in range(count):
            rng = random.Random(f"{self.seed}:{part}:{number}")
            source = rng.choices(self.sources, self.weights)[0]
            folders = SOURCES[source].folders
            image = f"{folders[number % len(folders)]}/{part}_{number:06d}.png"
            while True:
                row = _row(rng, source, image, side=self.side, aha_fraction=self.aha_fraction)
                picture = _png(row.task, self.side)
                if picture not in self._pictures:
                    break
            self._pictures.add(picture)
            file = self.paths.image_root / image
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture)
            bar.update()
            yield row


def _row(rng: random.Random, source: str, image: str, *, side: int, aha_fraction: float) -> _Row:
    task = TASKS[source](Painter(rng, side))
    return _Row(source, SOURCES[source].kind, image, task, aha=rng.random() < aha_fraction)


def _png(task: Task, side: int) -> bytes:
    buffer = BytesIO()
    draw(task.shapes, side).save(buffer, format="PNG")
    return buffer.getvalue()


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_array(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("[")
        for number, row in enumerate(rows):
            stream.write((",\n" if number else "\n") + json.dumps(row, ensure_ascii=False))
        stream.write("\n]\n")


def _check(counts: Mapping[str, int], image_size: int, aha_fraction: float, weights: Mapping[str, float]) -> None:
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name}_count must not be negative, got {count}")
    if image_size < 3 * CELL or image_size % CELL:
        raise ValueError(f"image_size must be a multiple of {CELL} from {3 * CELL} on, got {image_size}")
    if not 0 <= aha_fraction <= 1:
        raise ValueError(f"aha_fraction must lie in [0, 1], got {aha_fraction}")
    if unknown := sorted(set(weights) - set(SOURCES)):
        raise ValueError(f"weights names unknown sources {unknown}; known are {list(SOURCES)}")
    if min(weights.values(), default=0.0) < 0 or not sum(weights.values()) > 0:
        raise ValueError(f"weights must not be negative and at least one must be positive, got {dict(weights)}")


def _manifest(root: Path) -> dict[str, Any] | None:
    try:
        value = json.loads((root / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _install(staging: Path, root: Path, manifest: dict[str, Any]) -> None:
    """Renames the finished folder into place; another process may have done so with the same data meanwhile."""
    if _manifest(root) == manifest:
        return
    if root.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{root.name}-old-", dir=root.parent))
        root.replace(old / root.name)
        shutil.rmtree(old, ignore_errors=True)
    try:
        staging.replace(root)
    except OSError:
        if _manifest(root) != manifest:
            raise
