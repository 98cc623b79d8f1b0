"""One row looked at from all sides, in a process of its own."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datamodules.boxes import Box, Size, with_plain_truth
from datamodules.check.images import SeenImage, by_name, digest_of, look_at
from datamodules.check.parts import CountingProcessor, Truths
from datamodules.check.settings import MOST_CHARS, Settings
from datamodules.check.texts import has_cue, has_trace, odd_texts
from datamodules.images import ImageError
from datamodules.records import image_paths, normalise
from datamodules.rows import BadRecord
from datamodules.shards import RowAt, embedded_images
from datamodules.sources import source_of
from lit_vlaa.prompts import ANSWER_CLOSE, ANSWER_OPEN, build_messages
from lit_vlaa.types import Record

_KEPT_IMAGES = 4096
_DIGEST_BYTES = 16
_DETAIL_CHARS = 300
"""Of what is quoted of a row: what is kept of it must not depend on how long hostile texts are."""
_FIELDS = {"ds_answer": "bad_answer"}
_VERDICTS = {"unparsable_truth": "truth_unparsable"}


@dataclass(slots=True)
class RowFacts:
    """What is known of a row once it was looked at."""

    number: int
    """In the original file, from 1."""
    id: str = ""
    """As the file gives it, but no longer than can be shown; empty for none."""
    id_key: bytes = b""
    """Tells its id; empty for none."""
    source: str = ""
    kind: str = ""
    findings: tuple[tuple[str, str], ...] = ()
    """Problems with their details."""
    left_out: bool = False
    """Whether the run does not use its source or kind."""
    lengths: tuple[int, int, int] | None = None
    """Tokens of the prompt beside its images, of its images and of the response; None where they are not known."""
    key: bytes = b""
    """Tells its question and images; empty where they are not known."""
    answer: bytes = b""
    """Tells its answer."""
    images: tuple[bytes, ...] = ()
    """Tell its images."""
    reduced: bool = False
    """Whether an image has more pixels than the model is fed."""
    box: tuple[Box, Size] | None = None
    """Its true box as the file has it, and its image's size."""
    trace: bool = False
    """Whether its response thinks before it answers."""
    cue: bool = False
    """Whether its trace has an aha cue."""
    scored: bool = False
    """Whether its truth was scored."""


class RowChecker:
    """Looks at rows; one for each process.

    Args:
        settings: What rows are held against.
        processor: Counts tokens; None to count none.
        truths: Scores ground truths; None to score none.
        inside: Whether the images lie in the shards.
    """

    def __init__(
        self, settings: Settings, processor: CountingProcessor | None, truths: Truths | None, *, inside: bool
    ) -> None:
        self.settings, self.processor, self.truths, self.inside = settings, processor, truths, inside
        self._images: OrderedDict[str, SeenImage] = OrderedDict()

    def __call__(self, rows: Sequence[RowAt]) -> list[RowFacts]:
        """Looks at some rows, their truths at one time."""
        facts: list[RowFacts] = []
        scored: dict[int, Record] = {}
        for place, at in enumerate(rows):
            found, record = self._row(at)
            facts.append(found)
            if record is not None and self.truths is not None and not found.left_out:
                if record.kind in self.truths.kinds:
                    scored[place] = replace(record, origin=f"row:{place}")
                    found.scored = True
                else:
                    found.findings += (("kind_unscored", record.kind),)
        if scored and self.truths is not None:
            for verdict in self.truths(list(scored.values())):
                name = _VERDICTS.get(verdict.problem, verdict.problem)
                detail = f"truth {verdict.truth[:200]!r}"
                if verdict.problem == "mutant_paid":
                    detail += f", answer {verdict.answer[:200]!r}"
                elif verdict.detail not in {"ok", "unparsable_gt"}:
                    detail += f", {verdict.detail}"
                facts[verdict.row].findings += ((name, detail),)
        return facts

    def fingerprint(self, rows: Sequence[RowAt]) -> list[RowFacts]:
        """Finds out what tells rows of another file, whatever split they are for."""
        facts = []
        for at in rows:
            if isinstance(at.value, BadRecord):
                continue
            try:
                paths = image_paths(at.value, file=at.file, number=at.row)
            except BadRecord:
                continue
            contents = self._contents(at, paths)
            seen = tuple(self._digest(path, content) for path, content in zip(paths, contents, strict=True))
            question = at.value.get("question")
            key = _key(question, seen) if isinstance(question, str) else b""
            facts.append(RowFacts(at.number, **_given_id(at), key=key, images=seen))
        return facts

    def _row(self, at: RowAt) -> tuple[RowFacts, Record | None]:
        """Facts of a row, and its record with its box as the run has it; no record where a run cannot use it."""
        settings = self.settings
        try:
            if isinstance(at.value, BadRecord):
                raise at.value
            record = normalise(at.value, file=at.file, number=at.row, split=settings.split, name=at.name)
        except BadRecord as error:
            source = "" if isinstance(at.value, BadRecord) else _source(at)
            name = _FIELDS.get(error.field, f"bad_{error.field}")
            detail = str(error).removeprefix(f"{at.file}:{at.row}: ").removeprefix("row: ")
            return RowFacts(at.number, source=source, findings=((name, detail),)), None
        facts = RowFacts(at.number, **_given_id(at), source=record.source, kind=record.kind)
        for used, name in ((settings.sources, record.source), (settings.kinds, record.kind)):
            if used is not None and name not in used:
                facts.left_out = True
                return facts, record
        seen = [
            self._seen(path, content)
            for path, content in zip(record.images, self._contents(at, record.images), strict=True)
        ]
        facts.images = tuple(image.digest for image in seen)
        facts.key, facts.answer = _key(record.question, facts.images), _answer(record)
        if record.response is not None:
            facts.trace = has_trace(record.response)
            facts.cue = facts.trace and has_cue(record.response)
        findings = [finding for image in seen for finding in image.findings] + list(odd_texts(record))
        sizes = [image.size for image in seen if image.size is not None]
        looked = settings.image_root is not None or self.inside
        usable = not looked or len(sizes) == len(record.images)
        if usable and looked:
            facts.reduced = any(wide * high > self._most_pixels for wide, high in sizes)
            if record.kind == "iou" and len(sizes) == 1 and settings.split == "grpo":
                x1, y1, x2, y2 = json.loads(record.truth)
                facts.box = (x1, y1, x2, y2), sizes[0]
            record = with_plain_truth(record, sizes, settings.truth_boxes)
        chars = len(record.question) + len(record.response or "")
        if chars > MOST_CHARS:
            findings.append(("over_long", f"{chars} characters"))
        elif usable and self.processor is not None:
            findings += self._count(record, facts, sizes if looked else None)
        facts.findings = tuple((problem, detail[:_DETAIL_CHARS]) for problem, detail in findings)
        return facts, record if usable else None

    @property
    def _most_pixels(self) -> float:
        backbone = self.settings.backbone
        return float("inf") if backbone is None else float(backbone.max_pixels)

    def _count(self, record: Record, facts: RowFacts, sizes: list[Size] | None) -> list[tuple[str, str]]:
        """Counts a row's tokens and holds them against the limits; without sizes those of images are not known."""
        processor, limits = self.processor, self.settings.limits
        assert processor is not None  # noqa: S101 - for the type checker
        space = self.settings.prompt.resolve_box_space(processor.box_space)
        shown = record if sizes is not None else replace(record, images=())
        messages = build_messages(shown, self.settings.prompt, box_space=space)
        try:
            text, image = processor.prompt_lengths(messages, sizes or [])
        except ValueError as error:
            return [("image_unfeedable", str(error))]
        response = 0 if record.response is None else len(processor.encode_response(record.response))
        facts.lengths = text, image, response
        room = response if record.response is not None else limits.response or 0
        total = text + image + room
        parts = f"{total} tokens: {text} of text, {image} of images, {room} for the response"
        found = []
        if limits.context is not None and total > limits.context:
            found.append(("over_context", f"{parts}; the context has {limits.context}"))
        elif limits.row is not None and total > limits.row:
            found.append(("over_budget", f"{parts}; a micro-batch has {limits.row}"))
        if limits.response is not None and response > limits.response:
            found.append(("response_too_long", f"{response} tokens; a completion has {limits.response}"))
        return found

    def _seen(self, path: str, content: bytes | None) -> SeenImage:
        if content is None and path in self._images:
            self._images.move_to_end(path)
            return self._images[path]
        settings = self.settings
        seen = look_at(
            settings.image_root, path, max_pixels=settings.max_image_pixels, fast=settings.fast, content=content
        )
        if content is None:
            self._images[path] = seen
            if len(self._images) > _KEPT_IMAGES:
                self._images.popitem(last=False)
        return seen

    def _digest(self, path: str, content: bytes | None) -> bytes:
        root = self.settings.image_root
        if self.settings.fast or (root is None and content is None):
            return by_name(path)
        return digest_of(root or Path(), path, content)

    def _contents(self, at: RowAt, paths: tuple[str, ...]) -> tuple[bytes | None, ...]:
        """The files of a row's images, where they lie in its shard."""
        if not self.inside:
            return (None,) * len(paths)
        place = Record("", "", "", paths, "", "", None, f"{at.file}:{at.row}")
        try:
            return embedded_images(place) or (None,) * len(paths)
        except ImageError:
            return (b"",) * len(paths)  # an empty file, which cannot be decoded


def _id_of(at: RowAt) -> str:
    value = at.value.get("id") if isinstance(at.value, dict) else None
    return "" if value is None or isinstance(value, bool | list | dict) else str(value)


def _given_id(at: RowAt) -> dict[str, Any]:
    """The fields of a row's id; hostile ones may have any length."""
    text = _id_of(at)
    key = hashlib.blake2b(text.encode(errors="replace"), digest_size=_DIGEST_BYTES).digest() if text else b""
    return {"id": text[:_DETAIL_CHARS], "id_key": key}


def _source(at: RowAt) -> str:
    """The source of a row that cannot be used, by what can be read of it."""
    try:
        paths = image_paths(at.value, file=at.file, number=at.row) if isinstance(at.value, dict) else ()
    except BadRecord:
        paths = ()
    return source_of(paths[0] if paths else "", _id_of(at))


def _key(question: str, images: Sequence[bytes]) -> bytes:
    digest = hashlib.blake2b(" ".join(question.split()).encode(errors="replace"), digest_size=_DIGEST_BYTES)
    for image in images:
        digest.update(image)
    return digest.digest()


def _answer(record: Record) -> bytes:
    text = record.truth
    if record.response is not None:
        text = record.response.rpartition(ANSWER_OPEN)[2].partition(ANSWER_CLOSE)[0]
    return hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=_DIGEST_BYTES).digest()
