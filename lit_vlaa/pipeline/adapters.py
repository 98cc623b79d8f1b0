"""Rows of other forms as rows of the released one, which `datamodules.records` reads.

Each adapter yields (place in the file, row or why it cannot be read). A row has `id, image, question, gt` and
`verifier_type` as in the released files, and beside them `context`, the text that the source gives about the image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datamodules.records import meta_of
from datamodules.rows import BadRecord, iter_rows
from datamodules.sources import SOURCES, source_of
from lit_vlaa.pipeline.config import SourceConfig
from lit_vlaa.prompts import IMAGE_PLACEHOLDER

RawRow = tuple[int, dict[str, Any] | BadRecord]

MAX_CONTEXT_CHARS = 8000
"""What of one piece of context is kept."""

_OWN_CONTEXT: Mapping[str, tuple[str, str]] = {
    "clevr_math": ("scene", "meta.rationale"),
    "synthesis": ("text question", "meta.text_question"),
    "allava_laion": ("caption", "caption"),
}
"""What the paper's sources tell about the image. Other sources' rationales explain the answer, and stay out."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = re.compile(r"\(?([A-Z])[).:]?")
_OPTION = re.compile(r"^\s*\(?([A-Z])[).:]\s*\S", re.MULTILINE)
_INTEGER = re.compile(r"[+-]?\d{1,15}")


def rows_of(source: SourceConfig, path: Path, hub: Callable[[SourceConfig], Iterator[RawRow]]) -> Iterator[RawRow]:
    """Reads a source.

    Args:
        source: How.
        path: Its file; of a hub set nothing.
        hub: Reads hub sets.

    Raises:
        BadRecord: If nothing more of the file can be read.
        OSError: If it cannot be opened.
    """
    rows = hub(source) if source.adapter == "hub" else iter_rows(path)
    make = {"vlaa": _vlaa, "llava": _llava, "jsonl": _columns, "hub": _columns}[source.adapter]
    for number, raw in rows:
        if isinstance(raw, BadRecord):
            yield number, raw
            continue
        try:
            for row in make(raw, source, str(path), number):
                row["context"] = {**row.get("context", {}), **_context(raw, source, str(path), number)}
                row.setdefault("verifier_type", source.kind or raw.get("verifier_type") or _inferred(row, source))
                yield number, row
        except BadRecord as error:
            yield number, error


def _vlaa(raw: dict[str, Any], _: SourceConfig, file: str, number: int) -> Iterator[dict[str, Any]]:
    row = {key: raw.get(key) for key in ("id", "image", "question", "gt")}
    name, place = _OWN_CONTEXT.get(_known_source(raw), ("", ""))
    text = _text(_at(raw, place, file, number)) if place else ""
    yield {**row, "context": {name: text} if text else {}}


def _llava(raw: dict[str, Any], source: SourceConfig, file: str, number: int) -> Iterator[dict[str, Any]]:
    turns = raw.get("conversations")
    if not isinstance(turns, list):
        raise BadRecord.at(file, number, "conversations", "expected a list of turns")
    if turns and _turn(turns[0], {"system"}) is not None:
        turns = turns[1:]
    pairs = 0
    for asked, told in zip(turns[::2], turns[1::2], strict=False):
        question, answer = _turn(asked, {"human", "user"}), _turn(told, {"gpt", "assistant"})
        if question is None or answer is None:
            raise BadRecord.at(file, number, "conversations", "expected turns of human and gpt by turns, with text")
        pairs += 1
        name = raw.get("id")
        yield {
            "id": f"{name}#{pairs}" if pairs > 1 and isinstance(name, str | int) else name,
            "image": raw.get("image"),
            "question": question.replace(IMAGE_PLACEHOLDER, "").strip(),
            "gt": answer,
        }
        if source.turns == "first":
            return
    if not pairs:
        raise BadRecord.at(file, number, "conversations", "no question with an answer")


def _turn(turn: object, speakers: set[str]) -> str | None:
    if not isinstance(turn, dict) or turn.get("from", turn.get("role")) not in speakers:
        return None
    text = turn.get("value", turn.get("content"))
    return text if isinstance(text, str) else None


def _columns(raw: dict[str, Any], source: SourceConfig, file: str, number: int) -> Iterator[dict[str, Any]]:
    cells = {name: raw.get(source.columns.get(name, name)) for name in ("id", "image", "question", "answer", "choices")}
    row = {"id": cells["id"], "image": cells["image"], "question": cells["question"], "gt": cells["answer"]}
    choices = cells["choices"]
    if choices is not None and not isinstance(choices, list):
        raise BadRecord.at(file, number, "choices", "expected a list of texts", choices)
    if choices and isinstance(row["question"], str):
        if len(choices) > len(_LETTERS) or not all(isinstance(choice, str | int | float) for choice in choices):
            raise BadRecord.at(file, number, "choices", f"expected at most {len(_LETTERS)} texts")
        listed = (f"{letter}: {str(choice).strip()}" for letter, choice in zip(_LETTERS, choices, strict=False))
        row["question"] = f"{row['question'].strip()}\nChoices:\n" + "\n".join(listed)
        row["gt"] = _letter(row["gt"], [str(choice).strip() for choice in choices], file, number)
        row["verifier_type"] = source.kind or "mcq"
    yield row


def _letter(answer: object, choices: list[str], file: str, number: int) -> str:
    """The letter of an answer that is given as its index from 0, as its letter, or as the text of a choice."""
    letters = _LETTERS[: len(choices)]
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return letters[answer]
    text = answer.strip() if isinstance(answer, str) else ""
    if choices.count(text) == 1:
        return letters[choices.index(text)]
    if (match := _LETTER.fullmatch(text)) and match[1] in letters:
        return match[1]
    raise BadRecord.at(file, number, "answer", "names none of the choices", answer)


def _context(raw: dict[str, Any], source: SourceConfig, file: str, number: int) -> dict[str, str]:
    found = {place.rpartition(".")[2]: _text(_at(raw, place, file, number)) for place in source.context}
    return {name: text for name, text in found.items() if text}


def _at(raw: dict[str, Any], place: str, file: str, number: int) -> object:
    """The cell of a column, or of `meta` where the name says so."""
    if place.startswith("meta."):
        return meta_of(raw, file=file, number=number).get(place.removeprefix("meta."))
    return raw.get(place)


def _text(value: object) -> str:
    text = value.strip() if isinstance(value, str) else ""
    return text.encode("utf-8", "replace").decode("utf-8")[:MAX_CONTEXT_CHARS]


def _known_source(raw: dict[str, Any]) -> str:
    image, name = raw.get("image"), raw.get("id")
    return source_of(image if isinstance(image, str) else "", name if isinstance(name, str) else "")


def _inferred(row: dict[str, Any], source: SourceConfig) -> str:
    """The verifier of a row that names none: that of its source in the paper, else by the look of question and answer.

    Other sets share images with the paper's sources (`coco/train2017`), and not their questions.
    """
    known = SOURCES.get(_known_source(row))
    if source.adapter == "vlaa" and known is not None:
        return known.kind
    truth, question = row.get("gt"), row.get("question")
    text = str(truth).strip() if isinstance(truth, str | int) and not isinstance(truth, bool) else ""
    options = set(_OPTION.findall(question)) if isinstance(question, str) else set()
    if (match := _LETTER.fullmatch(text)) and match[1] in options and len(options) > 1:
        return "mcq"
    return "digit" if _INTEGER.fullmatch(text) else "open_ended"
