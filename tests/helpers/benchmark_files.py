"""Small files in the schema of each of the six benchmarks, with generated images of every form that occurs."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from callbacks.benchmarks import load_benchmark

COLOURS = ("red", "green", "blue", "orange", "purple", "black")
BROKEN = base64.b64encode(b"no image, but long enough to be taken for one; opening it must fail").decode()


def picture(number: int, mode: str = "RGB", side: int = 56) -> Image.Image:
    """A disc whose colour and place depend on `number`."""
    image = Image.new("RGB", (side, side), "white")
    x, y = 5 * (number % 7), 5 * (number // 7 % 7)
    ImageDraw.Draw(image).ellipse([x, y, x + 20, y + 20], fill=COLOURS[number % len(COLOURS)])
    return image.convert(mode)


def encoded(image: Image.Image) -> str:
    """Base64 of the image as PNG."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def write_tsv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes rows as LMUData files are written: tab-separated, quoted where needed."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _mathvista(number: int) -> list[dict[str, Any]]:
    form = ("mc", "integer", "float", "list")[number % 4]
    answers = {"mc": "3 discs", "integer": "14", "float": "1.5", "list": "[2, 3]"}
    return [
        {
            "question": f"How many discs are in figure {number}?\nCount twice, “slowly”.",
            "question_type": "multi_choice" if form == "mc" else "free_form",
            "answer_type": "text" if form == "mc" else form,
            "choices": "['2 discs', '3 discs', '4 discs']" if form == "mc" else "",
            "answer": answers[form],
            "answer_option": "B" if form == "mc" else "",
            "task": ("figure question answering", "math word problem")[number % 2],
            "skills": "['arithmetic reasoning', 'statistical reasoning']" if number % 3 else "['numeric commonsense']",
            "unit": "",
            "precision": "1.0" if form == "float" else "",
        }
    ]


def _mathvision(number: int) -> list[dict[str, Any]]:
    chosen = number % 2 == 0
    return [
        {
            "question": f"<image1> Which colour has disc {number}?" if chosen else f"Find x in figure {number}.",
            "choices": "['A', 'B', 'C', 'D', 'E']" if chosen else "[]",
            "answer": "ABCDE"[number % 5] if chosen else "7/3",
            "category": ("counting", "algebra", "solid geometry")[number % 3],
        }
    ]


def _mathverse(number: int) -> list[dict[str, Any]]:
    chosen = number % 2 == 0
    question = "As the figure shows, how large is the angle?"
    return [
        {
            "question": question,
            "query_cot": f"Conduct the reasoning first. {question}",
            "question_for_eval": f"{question}\nChoices:\nA:30°\nB:60°\nC:90°" if chosen else f"{question} ({number})",
            "answer": "B" if chosen else str(30 + number),
            "metadata": "{'split': 'testmini', 'subject': 'Plane Geometry', 'subfield': 'Angle'}",
            "problem_version": "Vision Only",
        }
    ]


def _dynamath(number: int) -> list[dict[str, Any]]:
    kind = ("float", "multiple choice", "text")[number % 3]
    return [
        {
            "qid": str(number),
            "varid": str(variant),
            "question": f"How wide is disc {number} in picture {variant}? Choices: (A) 1 (B) 2 (C) 3",
            "answer": {"float": f"{number + variant / 8}", "multiple choice": "ABC"[variant % 3], "text": "even"}[kind],
            "answer_type": kind,
            "subject": ("plane geometry", "algebra")[number % 2],
            "knowledge_level": ("elementary school", "high school")[number % 2],
        }
        for variant in range(1, 4)
    ]


def _wemath(number: int) -> list[dict[str, Any]]:
    steps = 3 if number % 3 == 2 else 2
    return [
        {
            "ID": f"problem {number}",
            "key": f"{steps}steps_{role}",
            "question": f"Step {role} of problem {number}: what colour is the disc?",
            **dict(zip("ABCDEFGH", ("red", "green", "blue", "", "", "", "", ""), strict=True)),
            "answer": "ABC"[(number + place) % 3],
            "knowledge concept": f"Concept {(number + place) % 4}",
            "hint": "",
            "requirement": "Please reason first.",
        }
        for place, role in enumerate([*(str(step) for step in range(1, steps + 1)), "multi"])
    ]


def _logicvista(number: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Which disc comes next in row {number}? Select from A, B, C, D.",
            "answer": "A, C" if number % 3 == 2 else "ABCD"[number % 4],
            "skill": ("inductive", "deductive", "numerical", "spatial", "mechanical")[number % 5],
        }
    ]


_UNITS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "mathvista": _mathvista,
    "mathvision": _mathvision,
    "mathverse": _mathverse,
    "dynamath": _dynamath,
    "wemath": _wemath,
    "logicvista": _logicvista,
}


def benchmark_rows(name: str, units: int = 6, *, broken: bool = False) -> list[dict[str, Any]]:
    """Rows in a benchmark's own schema.

    Args:
        name: As `load_benchmark` knows it.
        units: Rows, or seeds of DynaMath (3 rows each), or problems of WeMath (3, every third one 4).
        broken: Whether the last row's image is none.

    Returns:
        The rows. The second has an image with transparency, the third one with a palette, the fourth two images in a
        list, the fifth shares the first one's.
    """
    rows = [row for number in range(units) for row in _UNITS[name](number)]
    for number, row in enumerate(rows):
        row["index"] = str(number)
        mode = {1: "RGBA", 2: "P"}.get(number, "RGB")
        row["image"] = encoded(picture(number, mode))
        if number == 3:
            row["image"] = repr([encoded(picture(number)), encoded(picture(number + 1))])
        if number == 4:
            row["image"] = "0"
    if broken:
        rows[-1]["image"] = BROKEN
    return [{"index": row["index"], **row} for row in rows]


def write_benchmark(folder: Path, name: str, units: int = 6, *, broken: bool = False) -> Path:
    """Writes `benchmark_rows` under the file name that the benchmark looks for."""
    return write_tsv(folder / load_benchmark(name).file, benchmark_rows(name, units, broken=broken))
