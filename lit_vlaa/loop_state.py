"""Where a run stands, in Lightning's counters, brought into the one form that it goes on from exactly.

Lightning counts the batch in hand as begun and its loader as past it, counts an epoch that a limit of steps cut short
as done, and takes a validation that was cut short for one that is to go on at its next batch. A run that goes on from
the end of an epoch does not count the next one as begun, so that its own checkpoints tell the wrong epoch.
"""

from __future__ import annotations

from typing import Any

_SPANS = ("total", "current")


def settle(fit_loop: dict[str, Any], *, batches: float, unfinished: bool, validating: bool) -> None:
    """Rewrites the state of a fit loop so that a resumed run does what is left and nothing twice.

    Args:
        fit_loop: `loops.fit_loop` of a checkpoint; changed in place.
        batches: Batches of an epoch.
        unfinished: Whether the batch that was begun last is to be taken again, though Lightning may count it as done.
        validating: Whether a validation is under way; it is begun anew.
    """
    evaluation = fit_loop["epoch_loop.val_loop.batch_progress"]
    for span in _SPANS:
        # Lightning only looks at whether these numbers are equal.
        evaluation[span].update(ready=int(validating), started=int(validating), processed=0, completed=0)
    if validating:
        return
    epoch, batch = fit_loop["epoch_progress"], fit_loop["epoch_loop.batch_progress"]
    again = int(unfinished or batch["current"]["ready"] > batch["current"]["processed"])
    left = batch["current"]["ready"] - again < batches
    if not batch["current"]["ready"]:
        return
    for span in _SPANS:
        begun = epoch[span]["started"]
        done = 0 if span == "current" and not left else batch[span]["ready"] - again
        # Within an epoch, or ahead of the next one; of the last batch only Lightning's bookkeeping is left to do.
        epoch[span].update(ready=begun + (not left), processed=begun - left, completed=begun - left)
        batch[span].update(ready=done, started=done, processed=done, completed=done - 1)
    batch["is_last_batch"] = False
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = batch["total"]["ready"] - 1
    for loader in fit_loop["state_dict"].get("combined_loader", []):
        if again and "batches" in loader:
            loader["batches"] -= again
