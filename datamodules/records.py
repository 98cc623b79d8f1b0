"""From rows to records: every form in which VLAA-Thinking is known to be stored.

Forms (the content decides, never the file's name)
1. SFT: `image, question, answer` with `<think>...</think><answer>...</answer>`.
2. GRPO: `id, image, question, gt, caption, meta, verifier_type`; `meta` an object or the Python repr of one.
3. README: `id, image, question, gt, ds_answer, caption, meta`, without a verifier type; the source tells it.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from datamodules.images import ImageError, locate, relative_path
from datamodules.rows import BadRecord
from datamodules.shards import ShardSet, is_shards, rows_of
from datamodules.sources import kind_of, source_of
from lit_vlaa.prompts import to_response
from lit_vlaa.types import KINDS, Kind, Record

Split = Literal["sft", "grpo"]
OnBadRecord = Literal["error", "skip"]

_MAX_META_CHARS = 1 << 20

_KIND = re.compile(r"[a-z][a-z0-9_]{0,39}")


class RecordReader:
    """Reads the records of one file.

    Iterating gives each usable row in file order; ids are made unique. `skipped` counts the others by field and
    reason after an iteration with `on_bad_record="skip"`.
    """

    def __init__(
        self, path: Path | str, *, split: Split, image_root: Path | str | None, on_bad_record: OnBadRecord
    ) -> None:
        """Opens nothing yet.

        Args:
            path: JSON array or JSON Lines, or a folder of shards.
            split: `sft` needs a response in every row, `grpo` a ground truth.
            image_root: Folder of the images; each row's must lie there. None leaves them unchecked. Images inside of
                shards lie there.
            on_bad_record: `error` raises at the first row that cannot be used, `skip` counts it and goes on.
        """
        self.path = Path(path)
        self.split: Split = split
        self.image_root = None if image_root is None else Path(image_root).resolve()
        self.on_bad_record: OnBadRecord = on_bad_record
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Record]:
        """Yields the records.

        Raises:
            BadRecord: At the first bad row with `on_bad_record="error"`; in either case where the file breaks off.
        """
        self.skipped.clear()
        seen: set[str] = set()
        inside = is_shards(self.path) and ShardSet.read(self.path).images == "embed"
        for at in rows_of(self.path):
            try:
                if isinstance(at.value, BadRecord):
                    raise at.value
                record = normalise(at.value, file=at.file, number=at.row, split=self.split, name=at.name)
                if not inside:
                    self._check_images(record, at.file, at.row)
            except BadRecord as error:
                if self.on_bad_record == "error":
                    raise
                self.skipped[f"{error.field}: {error.reason}"] += 1
                continue
            if record.id in seen:
                record = replace(record, id=f"{record.id}#{at.number}")
            seen.add(record.id)
            yield record

    def _check_images(self, record: Record, file: str, row: int) -> None:
        if self.image_root is None:
            return
        for image in record.images:
            try:
                locate(self.image_root, image)
            except ImageError as error:
                raise BadRecord.at(file, row, "image", error.reason, error.detail) from error


def normalise(row: dict[str, Any], *, file: str, number: int, split: Split, name: str = "") -> Record:
    """Makes a record of one row, whichever form it has.

    Args:
        row: The row's object.
        file: Its file, for messages and for a missing id.
        number: Its row in the file, from 1.
        split: `sft` needs a response, `grpo` a ground truth.
        name: What a row without an id is called; empty for the names of its file and row.

    Raises:
        BadRecord: If the row lacks what the split needs, or holds something of the wrong kind.
    """
    return _Row(row, file, number, name).record(split)


def image_paths(row: dict[str, Any], *, file: str, number: int) -> tuple[str, ...]:
    """Returns the paths of a row's images below the image root; arguments as for `normalise`.

    Raises:
        BadRecord: If the row's images are no paths, or lead out of the image root.
    """
    return _Row(row, file, number).images()


def meta_of(row: dict[str, Any], *, file: str, number: int) -> dict[str, Any]:
    """Reads the `meta` of one row, an object or the Python repr of one; empty where there is none.

    Args:
        row: The row's object.
        file: Its file, for messages.
        number: Its row in the file, from 1.

    Raises:
        BadRecord: If it is neither.
    """
    return _Row(row, file, number)._meta()


class _Row:
    """One row with its place, so that every complaint can name it."""

    def __init__(self, row: dict[str, Any], file: str, number: int, name: str = "") -> None:
        self.row, self.file, self.number = row, file, number
        self.name = name or f"{Path(file).name}:{number}"

    def record(self, split: Split) -> Record:
        images = self.images()
        record_id = self._id()
        source = source_of(images[0] if images else "", record_id)
        kind = self._kind(source)
        truth = self._truth(kind)
        if split == "grpo" and not truth:
            raise self._bad("gt", "missing or empty; the grpo split needs a ground truth")
        if split == "grpo" and kind == "iou" and len(images) != 1:
            raise self._bad("image", "a box needs exactly one image", f"{len(images)} given")
        return Record(
            id=record_id,
            source=source,
            kind=kind,
            images=images,
            question=self._question(),
            truth=truth,
            response=self._response() if split == "sft" else None,
            origin=f"{self.file}:{self.number}",
        )

    def _bad(self, field: str, reason: str, detail: object = "") -> BadRecord:
        return BadRecord.at(self.file, self.number, field, reason, detail)

    def _id(self) -> str:
        value = self.row.get("id")
        if value is None or value == "":
            return self.name
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self._bad("id", "expected text or an integer", type(value).__name__)
        return self._encodable("id", str(value))

    def _question(self) -> str:
        value = self.row.get("question")
        if not isinstance(value, str) or not value.strip():
            raise self._bad("question", "missing or empty")
        return self._encodable("question", value)

    def images(self) -> tuple[str, ...]:
        value = self.row.get("image")
        if value is None or value == "":
            return ()
        paths = value if isinstance(value, list) else [value]
        if not all(isinstance(path, str) for path in paths):
            raise self._bad("image", "expected a path or a list of paths")
        try:
            return tuple(self._encodable("image", relative_path(path)) for path in paths)
        except ImageError as error:
            raise self._bad("image", error.reason, error.detail) from error

    def _kind(self, source: str) -> Kind:
        value = self.row.get("verifier_type")
        if value is None or value == "":
            kind = kind_of(source)
            if kind is None:
                raise self._bad(
                    "verifier_type", "missing, and neither image nor id names a known source to infer it from"
                )
            return kind
        if not isinstance(value, str) or not _KIND.fullmatch(value):
            raise self._bad("verifier_type", f"expected one of {', '.join(KINDS)}, or the name of your own", value)
        return value

    def _truth(self, kind: Kind) -> str:
        value = self.row.get("gt")
        if value is None or value == "":
            return ""
        if kind == "iou":
            return self._box(value)
        if kind not in KINDS and isinstance(value, list | dict):
            return self._encodable("gt", json.dumps(value, ensure_ascii=False))
        if not isinstance(value, list):
            return self._scalar(value)
        texts = list(dict.fromkeys(self._scalar(item) for item in value))
        if len(texts) > 1 and kind != "open_ended":
            raise self._bad("gt", f"more than one answer, and kind {kind} takes one", value)
        return "; ".join(texts)

    def _scalar(self, value: Any) -> str:
        if isinstance(value, float) and not math.isfinite(value):
            raise self._bad("gt", "no finite number", value)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._bad("gt", "expected text or a number", type(value).__name__)
        return self._encodable("gt", str(value).strip())

    def _box(self, value: Any) -> str:
        if isinstance(value, str):
            try:
                value = json.loads(value.strip().replace("(", "[").replace(")", "]"))
            except (ValueError, RecursionError) as error:
                raise self._bad("gt", "expected a box [x1, y1, x2, y2]", value) from error
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not isinstance(value, list) or len(value) != 4:
            raise self._bad("gt", "expected one box of four numbers", value)
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int | float) or not abs(item) < 1e9:
                raise self._bad("gt", "expected finite numbers in the box", value)
        return f"[{', '.join(repr(float(item)) for item in value)}]"

    def _response(self) -> str:
        field, value = "answer", self.row.get("answer")
        if value is None:
            field, value = "ds_answer", self.row.get("ds_answer")
        if value is None:
            field, value = "meta", self._meta().get("ds_answer")
        if value is None:
            raise self._bad("answer", "no answer and no ds_answer; the sft split needs one of them")
        response = to_response(value) if isinstance(value, str) else None
        if response is None:
            raise self._bad(field, "cannot be read as <think>...</think><answer>...</answer> or <answer>...</answer>")
        return self._encodable(field, response)

    def _encodable(self, field: str, text: str) -> str:
        """Returns `text`, unless it holds half a surrogate pair, which JSON can write and UTF-8 cannot."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self._bad(field, "holds half a surrogate pair") from error
        return text

    def _meta(self) -> dict[str, Any]:
        """Reads `meta`, which some files hold as the Python repr of an object. Literals only: nothing is evaluated."""
        value = self.row.get("meta")
        if isinstance(value, str):
            if len(value) > _MAX_META_CHARS:
                raise self._bad("meta", f"longer than {_MAX_META_CHARS} characters")
            try:
                value = ast.literal_eval(value.strip() or "None")
            except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
                raise self._bad("meta", "text that is no Python literal") from error
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._bad("meta", "expected an object", type(value).__name__)
        return value
