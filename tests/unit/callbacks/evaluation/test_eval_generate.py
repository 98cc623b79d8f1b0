"""From rows to answers: what is asked, in which batches, and what becomes of rows that cannot be asked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from callbacks.evaluation.generate import Batch, Encoder, answer_rows
from helpers.evaluated import Picture, ToyBenchmark
from helpers.samples import tiny_backbone
from lit_vlaa.backbone import Processor
from lit_vlaa.types import Completion, Prompt, SamplingParams

PARAMS = SamplingParams(max_new_tokens=5, temperature=0.0)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return tiny_backbone().processor


class Echo:
    """A module that answers with the row's id; cut off for row1."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self.backbone = nn.Identity()
        self.engine = object()
        self.calls: list[list[str]] = []
        self.params: list[SamplingParams] = []

    def rollout_mode(self) -> AbstractContextManager[None]:
        return nullcontext()

    def step_boundary(self) -> None: ...

    def complete(
        self, prompts: Sequence[Prompt], *, group_size: int, step: int, params: SamplingParams
    ) -> list[list[Completion]]:
        assert (group_size, step) == (1, 0)
        self.calls.append([prompt.record.id for prompt in prompts])
        self.params.append(params)
        made = []
        for prompt in prompts:
            tokens = self.processor.encode_response(prompt.record.id)
            cut = prompt.record.id == "row1"
            made.append([Completion(tokens, torch.zeros(len(tokens)), "length" if cut else "stop")])
        return made


def run(processor: Processor, benchmark: ToyBenchmark, batch_size: int) -> tuple[Echo, list[Batch]]:
    module = Echo(processor)
    encode = Encoder(processor, "Think.")
    rows = {f"digest of {record.id}": record for record in benchmark.load(None)}
    return module, list(answer_rows(module, rows, encode, PARAMS, batch_size))


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (100, [5])])
def test_rows_come_in_batches(batch_size: int, sizes: list[int], processor: Processor) -> None:
    module, batches = run(processor, ToyBenchmark(rows=5), batch_size)
    assert [len(call) for call in module.calls] == sizes
    answers = [answer for batch in batches for answer in batch.answers]
    assert [answer.response for answer in answers] == [f"row{n}" for n in range(5)]
    assert [answer.finish for answer in answers] == ["stop", "length", "stop", "stop", "stop"]
    assert [(answer.row, answer.id) for answer in answers] == [(f"digest of row{n}", f"row{n}") for n in range(5)]
    assert answers[0].tokens == len(processor.encode_response("row0"))
    assert module.params[0] == PARAMS


def test_no_rows_give_no_batches(processor: Processor) -> None:
    assert run(processor, ToyBenchmark(rows=0), 4)[1] == []


def test_rows_that_cannot_be_opened_are_named_and_passed_over(processor: Processor) -> None:
    module, batches = run(processor, ToyBenchmark(rows=5, broken=[1, 4]), 2)
    assert module.calls == [["row0"], ["row2", "row3"]]
    failures = [failure for batch in batches for failure in batch.failures]
    assert failures == [
        ("digest of row1", "toy.tsv:2: the image is broken"),
        ("digest of row4", "toy.tsv:5: the image is broken"),
    ]


def test_the_chat_is_the_system_prompt_then_images_then_the_prompt(processor: Processor) -> None:
    record = replace(ToyBenchmark().load(None)[1], images=(Picture(1), Picture(2)))
    prompt = Encoder(processor, "Think hard.")(record)
    text = processor.tokenizer.decode(prompt.input_ids.tolist())
    places = [text.index(part) for part in ("Think hard.", "<|image_pad|>", record.prompt, "assistant")]
    assert places == sorted(places)
    assert prompt.image_grid_thw is not None
    assert len(prompt.image_grid_thw) == 2
    # Nothing is said beside these, such as a task instruction.
    assert text.split(record.prompt)[1].startswith("<|im_end|>")


def test_no_system_prompt(processor: Processor) -> None:
    ids = Encoder(processor, "")(ToyBenchmark().load(None)[0]).input_ids.tolist()
    assert "system" not in processor.tokenizer.decode(ids)


def test_control_tokens_in_a_row_are_text(processor: Processor) -> None:
    record = replace(ToyBenchmark().load(None)[0], prompt="<|im_end|><|image_pad|>")
    prompt = Encoder(processor, "")(record)
    assert not (prompt.input_ids == processor.image_token_id).any()


def test_an_error_of_another_kind_is_not_swallowed(processor: Processor) -> None:
    class Odd(Picture):
        def open(self) -> Any:
            raise RuntimeError("out of memory")

    record = replace(ToyBenchmark().load(None)[1], images=(Odd(1),))
    with pytest.raises(RuntimeError, match="out of memory"):
        list(answer_rows(Echo(processor), {"row": record}, Encoder(processor, ""), PARAMS, 1))
