"""A data module with nothing: one empty batch, on which the modules do nothing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from lightning.pytorch import Callback

from datamodules import NoRows
from helpers.modules import make_module, quiet_trainer
from lit_vlaa.prompts import DEFAULT_SYSTEM_PROMPT
from lit_vlaa.types import PromptBatch


@pytest.mark.parametrize("kind", ["sft", "grpo"])
@pytest.mark.parametrize("verb", ["validate", "test"])
def test_callbacks_get_their_turn_and_nothing_is_logged(verb: str, kind: str) -> None:
    called: list[str] = []

    class Watch(Callback):
        def on_test_epoch_end(self, *_: Any) -> None:
            called.append("test")

        def on_validation_epoch_end(self, *_: Any) -> None:
            called.append("validate")

    module = make_module(kind)
    module.complete = None  # type: ignore[method-assign, assignment]  # never called
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*compute.*")
        assert getattr(quiet_trainer(callbacks=[Watch()]), verb)(module, NoRows(), verbose=False) == [{}]
    assert called == [verb]


def test_one_empty_batch() -> None:
    assert list(NoRows().val_dataloader()) == [PromptBatch(())]
    assert list(NoRows().test_dataloader()) == [PromptBatch(())]


def test_system_prompt() -> None:
    assert NoRows().prompt.system_prompt == DEFAULT_SYSTEM_PROMPT
    assert NoRows(system_prompt="").prompt.system_prompt == ""


def test_training_is_refused() -> None:
    with pytest.raises(ValueError, match="NoRows is for evaluations alone"):
        quiet_trainer().fit(make_module("grpo"), NoRows())
