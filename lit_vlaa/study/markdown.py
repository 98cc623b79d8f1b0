"""A report as Markdown (GitHub's), with its pictures beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from lit_vlaa.study.document import (
    Answered,
    ArmName,
    Badge,
    Block,
    Bullets,
    Cell,
    Code,
    Document,
    Example,
    Heading,
    Paragraph,
    Picture,
    Table,
    pieces,
    visible,
)

PICTURES = "pictures"
"""Folder beside the file."""

_ENDINGS = {"image/png": "png", "image/jpeg": "jpg"}
_ESCAPED = re.compile(r"[\\`*_\[\]|~$]")
_ENTITIES = re.compile(r"[@#]|:(?=//)|(?<=w)\.|^(?:[-=+]|\d+[.)])(?=\s|$)")


def text(content: str) -> str:
    """Words in one line that are neither markup nor HTML nor a link or a mention, whatever they hold."""
    line = escape(" ".join(visible(content).split()), quote=False)
    line = _ESCAPED.sub(lambda found: f"\\{found[0]}", line)
    # An entity's own # is none of the text's; entities of `escape` have none.
    return _ENTITIES.sub(lambda found: "".join(f"&#{ord(char)};" for char in found[0]), line)


def page(document: Document) -> str:
    """The whole file."""
    parts = [f"# {text(document.title)}", text(document.lead)]
    examples = 0
    for block in document.blocks:
        if isinstance(block, Example):
            examples += 1
        parts.append(_block(block, examples))
    return "\n\n".join(parts) + "\n"


def files(document: Document) -> dict[str, bytes]:
    """Pictures by file name in the folder `PICTURES`."""
    found: dict[str, bytes] = {}
    examples = 0
    for block in document.blocks:
        if isinstance(block, Picture):
            found |= {f"{block.name}.svg": block.light, f"{block.name}-dark.svg": block.dark}
        elif isinstance(block, Example):
            examples += 1
            if block.image is not None:
                found[_image_name(block, examples)] = block.image
    return found


def _image_name(example: Example, number: int) -> str:
    return f"example-{number}.{_ENDINGS[example.image_type]}"


def _block(block: Block, number: int) -> str:  # noqa: PLR0911 (one for each)
    match block:
        case Heading(words, level):
            return f"{'#' * level} {text(words)}"
        case Paragraph(words):
            return text(words)
        case Bullets(items):
            return "\n".join(f"- {text(item)}" for item in items)
        case Code(words):
            return _fenced(words)
        case Table():
            return _table(block)
        case Picture():
            return _picture(block)
        case Example():
            return _example(block, number)


def _table(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = ["---" if table.words or at < table.left else "---:" for at in range(len(table.head))]
    lines = [line([text(cell) for cell in table.head]), line(rule), *(line([*map(_cell, row)]) for row in table.rows)]
    return "\n".join([*([f"{text(table.caption)}", ""] if table.caption else []), *lines])


def _cell(cell: Cell) -> str:
    match cell:
        case Badge(words):
            return f"**{text(words)}**"
        case ArmName(name):
            return text(name)
        case _:
            return text(cell)


def _picture(picture: Picture) -> str:
    return "\n".join(
        [
            "<picture>",
            f'<source media="(prefers-color-scheme: dark)" srcset="{PICTURES}/{picture.name}-dark.svg">',
            f'<img src="{PICTURES}/{picture.name}.svg" alt="{_attribute(picture.alt)}">',
            "</picture>",
            "",
            text(picture.caption),
        ]
    )


def _attribute(content: str) -> str:
    return escape(" ".join(visible(content).split()), quote=True)


def _example(example: Example, number: int) -> str:
    image = (
        f"No picture: {text(example.no_image)}"
        if example.image is None
        else f'<img src="{PICTURES}/{_image_name(example, number)}" alt="the picture of the question" width="160">'
    )
    parts = [f"### {text(example.title)}", image, text(example.question), f"Truth: {text(example.truth)}"]
    return "\n\n".join([*parts, *(_answer(answer) for answer in example.answers)])


def _answer(answer: Answered) -> str:
    word = {True: "right", False: "wrong", None: "no verdict"}[answer.right]
    # Up to </pre>, which escaped text cannot hold, nothing is markup but HTML (CommonMark's blocks of the first type).
    inner = "".join(
        f"<mark>{escape(visible(part))}</mark>" if marked else escape(visible(part))
        for part, marked in pieces(answer.response, answer.cues)
    )
    return f"**{text(answer.arm)}**: {word} ({text(answer.facts)})\n\n<pre>{inner}</pre>"


def _fenced(words: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", words)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{visible(words)}\n{fence}"
