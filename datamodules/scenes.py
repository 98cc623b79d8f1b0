"""Drawn scenes and the questions that can be asked of them: the contents of the synthetic data set.

A scene is a grid of 28-pixel cells, one vision token each, with at most one shape in a cell. Colours, shapes, counts
and cells are enough to answer every question, so that a model of half a million parameters can learn it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from PIL import Image, ImageDraw

CELL = 28
"""Side of a cell in pixels."""
COLORS = ("red", "green", "blue", "yellow")
_SIZE = 16
_LETTERS = "ABCD"

ShapeName = Literal["circle", "square"]


@dataclass(frozen=True, slots=True)
class Shape:
    """One drawn shape."""

    name: ShapeName
    color: str
    column: int
    row: int
    box: tuple[int, int, int, int]
    """Left, top, right, bottom pixel, all inside the shape."""


@dataclass(frozen=True, slots=True)
class Task:
    """A scene with a question, what a trace would say of it, and the answer."""

    shapes: tuple[Shape, ...]
    question: str
    facts: str
    """What must be seen to answer, as one or two sentences."""
    answer: str
    truth: int | str | list[float]


class Painter:
    """Places shapes in free cells of one picture."""

    def __init__(self, rng: random.Random, side: int) -> None:
        """Starts an empty picture.

        Args:
            rng: Decides places.
            side: Cells in a row and in a column.
        """
        self.rng, self.side = rng, side
        self.shapes: list[Shape] = []
        self._free = [(column, row) for row in range(side) for column in range(side)]
        rng.shuffle(self._free)

    def add(self, name: ShapeName, color: str, *, whole_cell: bool = False) -> Shape:
        """Puts a shape into a free cell, off its centre unless it fills the cell."""
        column, row = self._free.pop()
        if whole_cell:
            left, top, size = column * CELL, row * CELL, CELL
        else:
            left, top = (at * CELL + self.rng.randint(2, CELL - _SIZE - 2) for at in (column, row))
            size = _SIZE
        shape = Shape(name, color, column, row, (left, top, left + size - 1, top + size - 1))
        self.shapes.append(shape)
        return shape

    def scatter(self, name: ShapeName, colors: tuple[str, ...], low: int, high: int) -> None:
        """Adds between `low` and `high` shapes, each of one of `colors`."""
        for _ in range(self.rng.randint(low, high)):
            self.add(name, self.rng.choice(colors))

    def count(self, name: ShapeName, color: str) -> int:
        """Returns how many such shapes there are."""
        return sum(shape.name == name and shape.color == color for shape in self.shapes)

    def task(self, question: str, facts: str, answer: str, truth: int | str | list[float] | None = None) -> Task:
        """Closes the picture with its question; the truth is the answer unless another form of it is given."""
        return Task(tuple(self.shapes), question, facts, answer, answer if truth is None else truth)


def _plural(count: int, color: str, name: str) -> str:
    return f"{count} {color} {name}" if count == 1 else f"{count} {color} {name}s"


def _there(count: int, color: str, name: str) -> str:
    return f"There {'is' if count == 1 else 'are'} {_plural(count, color, name)}."


def _options(options: list[str]) -> str:
    return "\n".join(f"{letter}: {option}" for letter, option in zip(_LETTERS, options, strict=True))


def _count_circles(painter: Painter) -> Task:
    painter.scatter("circle", COLORS[:3], 1, 6)
    color = painter.rng.choice(COLORS[:3])
    count = painter.count("circle", color)
    return painter.task(f"How many {color} circles?", _there(count, color, "circle"), str(count), count)


def _choose_color(painter: Painter) -> Task:
    square = painter.add("square", painter.rng.choice(COLORS), whole_cell=True)
    painter.scatter("circle", COLORS, 1, 4)
    letter = _LETTERS[COLORS.index(square.color)]
    question = f"What color is the square?\nChoices:\n{_options(list(COLORS))}"
    return painter.task(question, f"The square is {square.color}.", letter)


def _choose_count(painter: Painter) -> Task:
    painter.scatter("circle", COLORS[:3], 1, 6)
    color = painter.rng.choice(COLORS[:3])
    count = painter.count("circle", color)
    lowest = painter.rng.randint(max(0, count - 3), min(count, 3))
    question = f"How many {color} circles?\nChoices:\n{_options([str(lowest + step) for step in range(4)])}"
    return painter.task(question, _there(count, color, "circle"), _LETTERS[count - lowest])


def _write_line(painter: Painter) -> Task:
    slope, offset = (painter.rng.randint(1, 3) for _ in range(2))
    for color, count in (("red", slope), ("blue", offset)):
        for _ in range(count):
            painter.add("circle", color)
    answer = f"y = {slope} * x + {offset}"
    facts = f"a is {slope}. b is {offset}."
    truth = painter.rng.choice((answer, f"\\[\\boxed{{{answer}}}\\]", f"Step 1: {facts}\n\n†Answer: {answer}."))
    question = "y = a * x + b. a is the number of red circles, b of blue circles. What is the equation?"
    return painter.task(question, facts, answer, truth)


def _describe(painter: Painter, names: tuple[ShapeName, ShapeName], question: str) -> Task:
    first, second = painter.rng.sample(COLORS[:3], 2)
    for name, color in zip(names, (first, second), strict=True):
        for _ in range(painter.rng.randint(1, 3)):
            painter.add(name, color)
    parts = sorted(
        (_plural(painter.count(name, color), color, name) for name, color in zip(names, (first, second), strict=True)),
        key=lambda part: part.split()[1],
    )
    answer = f"{parts[0]} and {parts[1]}"
    return painter.task(question, f"I see {answer}.", answer)


def _list_circles(painter: Painter) -> Task:
    return _describe(painter, ("circle", "circle"), "Which circles are there?")


def _describe_shapes(painter: Painter) -> Task:
    return _describe(painter, ("circle", "square"), "What is in the image?")


def _name_color(painter: Painter) -> Task:
    color = painter.rng.choice(COLORS)
    painter.scatter("circle", (color,), 1, 6)
    count = len(painter.shapes)
    return painter.task("What color are the circles?", _there(count, color, "circle"), color)


def _find(painter: Painter, square: Shape, question: str) -> Task:
    edges = (square.column, square.row, square.column + 1, square.row + 1)
    truth = [round(edge / painter.side, 2) for edge in edges]
    facts = f"The {square.color} square is in column {square.column + 1}, row {square.row + 1}."
    return painter.task(question, facts, str(truth), truth)


def _find_square(painter: Painter) -> Task:
    square = painter.add("square", painter.rng.choice(COLORS), whole_cell=True)
    painter.scatter("circle", COLORS, 0, 3)
    return _find(painter, square, "Where is the square?")


def _find_colored_square(painter: Painter) -> Task:
    wanted, other = painter.rng.sample(COLORS, 2)
    square = painter.add("square", wanted, whole_cell=True)
    painter.add("square", other, whole_cell=True)
    painter.scatter("circle", COLORS, 0, 2)
    return _find(painter, square, f"Where is the {wanted} square?")


TASKS: Mapping[str, Callable[[Painter], Task]] = MappingProxyType(
    {
        "clevr_math": _count_circles,
        "geoqa170k": _choose_color,
        "synthesis": _write_line,
        "arxivqa": _choose_count,
        "docvqa": _list_circles,
        "vizwiz": _name_color,
        "allava_laion": _describe_shapes,
        "coco": _find_square,
        "vg": _find_colored_square,
    }
)
"""By source: draws a scene and asks about it."""


def draw(shapes: tuple[Shape, ...], side: int) -> Image.Image:
    """Draws a scene of `side` x `side` cells on white."""
    image = Image.new("RGB", (side * CELL, side * CELL), "white")
    canvas = ImageDraw.Draw(image)
    for shape in shapes:
        paint = canvas.ellipse if shape.name == "circle" else canvas.rectangle
        paint(shape.box, fill=shape.color)
    return image


def describe(shapes: tuple[Shape, ...]) -> str:
    """Returns a caption that names every shape with its cell, row by row."""
    ordered = sorted(shapes, key=lambda shape: (shape.row, shape.column))
    places = (f"a {shape.color} {shape.name} in column {shape.column + 1}, row {shape.row + 1}" for shape in ordered)
    return f"A white image with {', '.join(places)}."
