from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from lit_vlaa.loop_state import settle

ORDER = ("ready", "started", "processed", "completed")


def progress(total: tuple[int, ...], current: tuple[int, ...], **more: Any) -> dict[str, Any]:
    spans = {"total": total, "current": current}
    return {**{span: dict(zip(ORDER, values, strict=True)) for span, values in spans.items()}, **more}


def loop(
    epoch: tuple[int, ...],
    batch: tuple[int, ...],
    *,
    before: int = 0,
    last: bool = False,
    validation: tuple[int, ...] = (0, 0, 0, 0),
    stepped: int = 0,
    loader: int = 0,
) -> dict[str, Any]:
    """Lightning's state in the given epoch and batch; `before` batches were in earlier epochs."""
    return {
        "epoch_progress": progress(epoch, epoch),
        "epoch_loop.batch_progress": progress(tuple(before + n for n in batch), batch, is_last_batch=last),
        "epoch_loop.val_loop.batch_progress": progress(validation, validation, is_last_batch=False),
        "epoch_loop.state_dict": {"_batches_that_stepped": stepped},
        "state_dict": {"combined_loader": [{"epoch": epoch[1] - 1, "batches": loader}]},
    }


# Epochs of 3 batches. In the second epoch one batch is done in each case that is settled.
DONE = loop((2, 2, 1, 1), (1, 1, 1, 0), before=3, stepped=3, loader=1)


@pytest.mark.parametrize(
    ("state", "unfinished"),
    [
        pytest.param(DONE, False, id="after the last hook of a batch"),
        pytest.param(loop((2, 2, 1, 1), (1, 1, 1, 1), before=3, stepped=4, loader=1), False, id="after a validation"),
        pytest.param(loop((2, 2, 1, 1), (2, 1, 1, 1), before=3, stepped=4, loader=2), False, id="before a batch"),
        pytest.param(loop((2, 2, 1, 1), (2, 2, 1, 1), before=3, stepped=4, loader=2), False, id="within a batch"),
        pytest.param(loop((2, 2, 1, 1), (2, 2, 1, 1), before=3, stepped=4, loader=2), True, id="within a rollout"),
        pytest.param(
            loop((2, 2, 1, 1), (2, 2, 2, 1), before=3, stepped=4, loader=2),
            True,
            id="a rollout cut short, its last hook",
        ),
        pytest.param(
            loop((2, 2, 2, 1), (2, 2, 2, 2), before=3, stepped=5, loader=2), True, id="a rollout cut short, epoch's end"
        ),
        pytest.param(
            loop((2, 2, 2, 2), (1, 1, 1, 1), before=3, stepped=4, loader=1),
            False,
            id="an epoch cut short, after its end",
        ),
    ],
)
def test_one_form_for_one_place(state: dict[str, Any], unfinished: bool) -> None:
    state = deepcopy(state)
    settle(state, batches=3, unfinished=unfinished, validating=False)
    assert state == DONE


def test_the_batch_in_hand_is_the_epochs_first() -> None:
    state = loop((2, 2, 1, 1), (1, 1, 0, 0), before=3, stepped=3, loader=1)
    settle(state, batches=3, unfinished=False, validating=False)
    assert state == loop((2, 2, 1, 1), (0, 0, 0, -1), before=3, stepped=2, loader=0)


def test_the_batch_in_hand_is_the_epochs_last() -> None:
    state = loop((2, 2, 1, 1), (3, 3, 2, 2), before=3, last=True, stepped=5, loader=3)
    settle(state, batches=3, unfinished=True, validating=False)
    assert state == loop((2, 2, 1, 1), (2, 2, 2, 1), before=3, stepped=4, loader=2)


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(
            loop((2, 2, 1, 1), (3, 3, 3, 2), before=3, last=True, stepped=5, loader=3), id="last hook of a batch"
        ),
        pytest.param(
            loop((2, 2, 1, 1), (3, 3, 3, 3), before=3, last=True, stepped=5, loader=3), id="after a validation"
        ),
        pytest.param(
            loop((2, 2, 2, 1), (3, 3, 3, 3), before=3, last=True, stepped=6, loader=3), id="last hook of the epoch"
        ),
        pytest.param(loop((2, 2, 2, 2), (3, 3, 3, 3), before=3, last=True, stepped=6, loader=3), id="after the run"),
        pytest.param(
            loop((3, 2, 2, 2), (3, 3, 3, 3), before=3, last=True, stepped=6, loader=3), id="ahead of the next"
        ),
    ],
)
def test_an_epochs_end_is_the_beginning_of_the_next(state: dict[str, Any]) -> None:
    state = deepcopy(state)
    state["epoch_loop.val_loop.batch_progress"] = progress((9, 9, 9, 9), (3, 3, 3, 3), is_last_batch=True)
    settle(state, batches=3, unfinished=False, validating=False)
    expected = loop((3, 2, 2, 2), (0, 0, 0, -1), before=6, stepped=5)
    expected["state_dict"] = {"combined_loader": [{"epoch": 1, "batches": 3}]}
    expected["epoch_loop.val_loop.batch_progress"] = progress((0, 0, 0, 0), (0, 0, 0, 0), is_last_batch=True)
    assert state == expected


def test_nothing_begun() -> None:
    state = loop((0, 0, 0, 0), (0, 0, 0, 0))
    settle(state, batches=3, unfinished=False, validating=False)
    assert state == loop((0, 0, 0, 0), (0, 0, 0, 0))


def test_a_validation_begins_anew() -> None:
    """Lightning goes on with a validation that was left within a batch, and counts from the batches completed."""
    state = loop((1, 1, 0, 0), (2, 2, 2, 2), stepped=1, loader=2, validation=(9, 8, 8, 8))
    settle(state, batches=3, unfinished=False, validating=True)
    assert state == loop((1, 1, 0, 0), (2, 2, 2, 2), stepped=1, loader=2, validation=(1, 1, 0, 0))


def test_a_validation_that_was_begun_anew_is_not_begun_again() -> None:
    """Its totals would look unfinished for ever."""
    state = loop((1, 1, 0, 0), (2, 2, 2, 1), stepped=1, loader=2, validation=(5, 5, 4, 4))
    settle(state, batches=3, unfinished=False, validating=False)
    assert state["epoch_loop.val_loop.batch_progress"] == progress((0, 0, 0, 0), (0, 0, 0, 0), is_last_batch=False)
