"""Answers to a file of questions, a line each, going on where an earlier command stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from datamodules.images import ImageError, open_rgb, relative_path
from lit_vlaa.answers import extract_answer
from lit_vlaa.generation import CachedGenerator, RolloutKey
from lit_vlaa.predict.policy import Policy
from lit_vlaa.traces import thinking_span
from lit_vlaa.types import Completion, Record


def read_questions(file: Path) -> list[Record]:
    """Reads JSON Lines with `question`, `image` or `images` (paths below the image root), and `id` or `kind` if wanted.

    Args:
        file: The questions.

    Raises:
        ValueError: If a line is no question; the message names file and line.
        OSError: If the file cannot be read.
    """
    questions: list[Record] = []
    seen: dict[str, int] = {}
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            origin = f"{file}:{number}"
            record = _record(line, origin)
            if record.id in seen:
                raise ValueError(f"{origin}: id {record.id!r} is that of line {seen[record.id]} too")
            seen[record.id] = number
            questions.append(record)
    if not questions:
        raise ValueError(f"{file}: there is no question in it")
    return questions


def _record(line: str, origin: str) -> Record:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{origin}: no JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
        raise ValueError(f"{origin}: has no text as `question`")
    given = row.get("images", row.get("image", []))
    paths = [given] if isinstance(given, str) else given
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"{origin}: `image` is no path and no list of paths")
    try:
        images = tuple(map(relative_path, paths))
    except ImageError as error:
        raise ValueError(f"{origin}: {error}") from error
    return question_of(row["question"], images, kind=str(row.get("kind") or ""), name=row.get("id"), origin=origin)


def question_of(text: str, images: Sequence[str], *, kind: str, name: Any, origin: str) -> Record:
    """A record of a question without an answer.

    Args:
        text: The question.
        images: Paths of its images.
        kind: Chooses the instruction behind the question, as in training; empty for none.
        name: Its id; None takes `origin`.
        origin: For messages.
    """
    return Record(
        id=origin if name is None else str(name),
        source="other",
        kind=kind,
        images=tuple(images),
        question=text,
        truth="",
        response=None,
        origin=origin,
    )


def answer_rows(
    policy: Policy, questions: Sequence[Record], image_root: Path, output: Path, *, batch_size: int, seed: int
) -> int:
    """Answers the questions that `output` has no answer to yet, and appends a line for each.

    Args:
        policy: What answers.
        questions: All of them.
        image_root: Folder that their images are below.
        output: JSON Lines with `id`, `question`, `response`, `thinking`, `answer`, `finish`.
        batch_size: Questions that are answered together.
        seed: Fixes what is drawn, by the questions' ids.

    Returns:
        How many were answered now.

    Raises:
        ValueError: If an image cannot be read, or `output` holds something else; the message names the line.
    """
    done = _done(output)
    left, root = [question for question in questions if question.id not in done], image_root.resolve()
    engine, key = CachedGenerator(max_rows=batch_size), RolloutKey(seed=seed, step=0)
    with (
        output.open("a", encoding="utf-8") as file,
        tqdm(total=len(questions), initial=len(questions) - len(left), desc="answers", unit="row", disable=None) as bar,
    ):
        for start in range(0, len(left), batch_size):
            records = left[start : start + batch_size]
            prompts = [policy.encode(record, open_images(record, root, policy.max_image_pixels)) for record in records]
            with torch.no_grad():
                groups = engine.generate(policy.backbone, prompts, group_size=1, params=policy.sampling, key=key)
            for record, group in zip(records, groups, strict=True):
                file.write(json.dumps(_line(record, group[0], policy), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(records))
    return len(left)


def open_images(record: Record, root: Path, max_pixels: int) -> list[Image]:
    """A question's images.

    Raises:
        ValueError: If one cannot be read; the message names the line.
    """
    try:
        return [open_rgb(root, path, max_pixels=max_pixels) for path in record.images]
    except ImageError as error:
        raise ValueError(f"{record.origin}: {error}") from error


def image_of(file: Path, max_pixels: int) -> Image:
    """An image that the user names.

    Raises:
        ValueError: If it cannot be read.
    """
    found = file.resolve()
    try:
        return open_rgb(found.parent, found.name, max_pixels=max_pixels)
    except ImageError as error:
        raise ValueError(f"--image {file}: {error.reason}") from error


def _line(record: Record, completion: Completion, policy: Policy) -> dict[str, Any]:
    response = policy.backbone.processor.decode(completion.token_ids)
    span = thinking_span(response)
    return {
        "id": record.id,
        "question": record.question,
        "response": response,
        "thinking": None if span is None else response[slice(*span)].strip(),
        "answer": extract_answer(response),
        "finish": completion.finish,
    }


def _done(output: Path) -> set[str]:
    """Ids of the answers that are there; a last line that was cut off is removed."""
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        return set()
    content = output.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    found: set[str] = set()
    for number, line in enumerate(whole.splitlines(), start=1):
        row: Any
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        name = row.get("id") if isinstance(row, dict) else None
        if not isinstance(name, str):
            raise ValueError(f"--output {output}:{number} is no answer of this command; name another file")  # noqa: TRY004
        found.add(name)
    if len(whole) < len(content):
        with output.open("r+b") as file:
            file.truncate(len(whole))
    return found
