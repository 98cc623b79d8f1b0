"""A file of questions, and answers to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from datamodules.images import ImageError, open_rgb, read_size, relative_path
from lit_vlaa.answers import extract_answer
from lit_vlaa.generation import CachedGenerator, RolloutKey
from lit_vlaa.hints import missing, unreadable
from lit_vlaa.predict.answers import Answers
from lit_vlaa.predict.policy import Policy
from lit_vlaa.traces import thinking_span
from lit_vlaa.types import Completion, Record


def read_questions(file: Path) -> list[Record]:
    """Reads JSON Lines with `question`, `image` or `images` (paths below the image root), and `id` or `kind` if wanted.

    A row without an id takes the file's name and its line, wherever the file lies.

    Args:
        file: The questions.

    Raises:
        ValueError: If a line is no question; the message names file and line.
        OSError: If the file cannot be read.
    """
    questions: list[Record] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        origin = f"{file}:{number}"
        record = _record(line, origin, f"{file.name}:{number}")
        if record.id in seen:
            raise ValueError(f"{origin}: id {record.id!r} is that of line {seen[record.id]} too")
        seen[record.id] = number
        questions.append(record)
    if not questions:
        raise ValueError(f"{file}: there is no question in it")
    return questions


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            yield from lines
    except UnicodeDecodeError as error:
        raise ValueError(f"--rows {file}: is no UTF-8 text: {error}") from error
    except OSError as error:
        raise ValueError(f"--rows {file} {unreadable(file, error)}") from error


def _record(line: str, origin: str, name: str) -> Record:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin}: no JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("question"), str):
        raise ValueError(f"{origin}: has no text as `question`")  # noqa: TRY004  # a fault of the file
    if row.get("image") is not None and row.get("images") is not None:
        raise ValueError(f"{origin}: has both `image` and `images`")
    given = row.get("image") if row.get("images") is None else row["images"]
    paths = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"{origin}: `image` is no path and no list of paths")
    try:
        images = tuple(map(relative_path, paths))
    except ImageError as error:
        raise ValueError(f"{origin}: {error}") from error
    given_id, kind = row.get("id"), row.get("kind")
    return question_of(
        row["question"],
        images,
        kind="" if kind is None else str(kind),
        name=name if given_id is None else str(given_id),
        origin=origin,
    )


def question_of(text: str, images: Sequence[str], *, kind: str, name: str, origin: str) -> Record:
    """A record of a question without an answer.

    Args:
        text: The question.
        images: Paths of its images.
        kind: Chooses the instruction behind the question, as in training; empty for none.
        name: Its id.
        origin: For messages.

    Raises:
        ValueError: If a text is empty, or none that can be written.
    """
    if not text.strip():
        raise ValueError(f"{origin}: there is no text in the question")
    try:
        "".join((text, kind, name, *images)).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{origin}: holds half a surrogate pair, or bytes that are no UTF-8") from error
    return Record(
        id=name,
        source="other",
        kind=kind,
        images=tuple(images),
        question=text,
        truth="",
        response=None,
        origin=origin,
    )


def check_images(questions: Sequence[Record], root: Path, max_pixels: int) -> None:
    """Looks at the head of every image, so that a missing one is not found hours later.

    Raises:
        ValueError: If one may not or cannot be opened; the message names the line.
    """
    found = root.resolve()
    for record in questions:
        for path in record.images:
            try:
                read_size(found, path, max_pixels=max_pixels)
            except ImageError as error:
                raise ValueError(f"{record.origin}: {_told(error)}") from error


def answer_rows(
    policy: Policy, questions: Sequence[Record], image_root: Path, answers: Answers, *, batch_size: int, seed: int
) -> int:
    """Answers the questions that have no answer yet, and appends a line for each.

    Args:
        policy: What answers.
        questions: All of them.
        image_root: Folder that their images are below.
        answers: What is there, and takes the rest: lines with `id`, `question`, `response`, `thinking`, `answer`,
            `finish` and `asked`, which tells model, settings and question.
        batch_size: Questions that are answered together.
        seed: Fixes what is drawn, by the questions' ids.

    Returns:
        How many were answered now.

    Raises:
        ValueError: If an image cannot be read, or a question was answered under other settings; the message names the
            line.
    """
    policy_key = policy.fingerprint(seed)
    asked = {question.id: _asked(question, policy_key) for question in questions}
    answers.check(asked)
    left, root = [question for question in questions if question.id not in answers.asked], image_root.resolve()
    engine, key = CachedGenerator(max_rows=batch_size), RolloutKey(seed=seed, step=0)
    there = len(questions) - len(left)
    with tqdm(total=len(questions), initial=there, desc="answers", unit="row", disable=None) as bar:
        for start in range(0, len(left), batch_size):
            records = left[start : start + batch_size]
            prompts = [policy.encode(one, _images(one, root, policy.settings.max_image_pixels)) for one in records]
            with torch.no_grad():
                groups = engine.generate(
                    policy.backbone, prompts, group_size=1, params=policy.settings.sampling, key=key
                )
            answers.append(
                {**_line(record, group[0], policy), "asked": asked[record.id]}
                for record, group in zip(records, groups, strict=True)
            )
            bar.update(len(records))
    return len(left)


def image_of(file: Path, max_pixels: int) -> Image:
    """An image that the user names.

    Raises:
        ValueError: If it cannot be read.
    """
    found = file.resolve()
    if not found.is_file():
        fault = "is a folder; name a picture" if found.is_dir() else missing(file)
        raise ValueError(f"--image {file} {fault}")
    try:
        return open_rgb(found.parent, found.name, max_pixels=max_pixels)
    except ImageError as error:
        raise ValueError(f"--image {file}: {_told(error, where=False)}") from error


def _images(record: Record, root: Path, max_pixels: int) -> list[Image]:
    try:
        return [open_rgb(root, path, max_pixels=max_pixels) for path in record.images]
    except ImageError as error:
        raise ValueError(f"{record.origin}: {_told(error)}") from error


def _told(error: ImageError, *, where: bool = True) -> str:
    text = str(error) if where else error.reason
    return f"{text}; --data.max_image_pixels allows more" if "max_image_pixels" in error.reason else text


def _asked(record: Record, policy_key: str) -> str:
    facts = [policy_key, record.question, record.kind, record.images]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


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
