"""From a benchmark's rows to the model's answers, this rank's share of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from callbacks.benchmarks.interface import EvalRecord
from callbacks.evaluation.responses import Answer
from lit_vlaa.prompts import PromptConfig, build_messages
from lit_vlaa.protocols import AnsweringModule, ChatProcessor
from lit_vlaa.tasks import Tasks
from lit_vlaa.types import Prompt, Record, Sample, SamplingParams

_KIND = "benchmark"
"""No verifier's name, so that no task instruction is added: the benchmark's own prompt says what to answer."""

_LINGER_S = 10.0
"""For images amid their preparation when the run fails: the tokenizer may be asked again."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of some rows."""

    answers: list[Answer]
    failures: list[tuple[str, str]]
    """Digests of rows that could not be put to the model, with the reasons."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """Makes a prompt of a row."""

    processor: ChatProcessor
    system_prompt: str
    """Empty for none."""

    def __call__(self, record: EvalRecord) -> Prompt:
        """Opens the row's images and puts them ahead of its prompt.

        Raises:
            ValueError: If an image cannot be read or fed.
        """
        images = tuple(image.open() for image in record.images)
        row = Record(
            id=record.id,
            source="other",
            kind=_KIND,
            images=tuple(str(number) for number in range(len(images))),
            question=record.prompt,
            truth=record.answer,
            response=None,
            origin=record.origin or record.id,
        )
        space = self.processor.box_space
        messages = build_messages(row, PromptConfig(system_prompt=self.system_prompt), box_space=space)
        return self.processor.encode(Sample(row, messages, images, space))


def answer_rows(
    module: AnsweringModule, rows: Mapping[str, EvalRecord], encode: Encoder, params: SamplingParams, batch_size: int
) -> Iterator[Batch]:
    """Puts rows to the model; while it writes, the images of the next batch are prepared.

    Args:
        module: The model; its `rollout_mode` is open, so that ranks may have different numbers of rows.
        rows: This rank's rows by their digests.
        encode: Makes the prompts.
        params: How answers are drawn.
        batch_size: Rows a batch.

    Yields:
        One batch after the other, together all rows.
    """
    items = list(rows.items())
    parts = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    with Tasks(1, "encode", linger_s=_LINGER_S) as thread:
        upcoming = thread.begin(partial(_encoded, encode, parts[0])) if parts else None
        for number in range(len(parts)):
            assert upcoming is not None  # noqa: S101  # there is one for each part
            prompts, failures = upcoming.result()
            if number + 1 < len(parts):
                upcoming = thread.begin(partial(_encoded, encode, parts[number + 1]))
            asked = [prompt for _, prompt in prompts]
            groups = module.complete(asked, group_size=1, step=0, params=params) if asked else []
            if number + 1 < len(parts):
                upcoming.wait()  # a tokenizer is not for two threads at a time
            answers = [
                Answer(
                    row=row,
                    id=prompt.record.id,
                    response=module.processor.decode(group[0].token_ids),
                    finish=group[0].finish,
                    tokens=group[0].token_ids.numel(),
                )
                for (row, prompt), group in zip(prompts, groups, strict=True)
            ]
            yield Batch(answers, failures)


def _encoded(
    encode: Encoder, rows: Sequence[tuple[str, EvalRecord]]
) -> tuple[list[tuple[str, Prompt]], list[tuple[str, str]]]:
    prompts: list[tuple[str, Prompt]] = []
    failures: list[tuple[str, str]] = []
    for row, record in rows:
        try:
            prompts.append((row, encode(record)))
        except ValueError as error:
            failures.append((row, str(error)))
    return prompts, failures
