"""An optimiser's state with its parameters named, as FSDP2 gives and takes it, or numbered, as optimisers do.

Numbers count the parameters in the order of the optimiser's groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

_KINDS = {"exp_avg": "adamw", "state1": "adamw_8bit"}
"""`--model.optim.optimizer` by what alone its states hold."""


def check_kind(state: Mapping[str, Any], own: str) -> None:
    """Refuses the state of another kind of optimiser.

    Args:
        state: With `state` by name or by number.
        own: `--model.optim.optimizer` of this run.

    Raises:
        ValueError: If it is one.
    """
    theirs = next((kind for values in state["state"].values() if (kind := _kind(values))), own)
    if theirs != own:
        where = " (on one device or with --trainer.strategy ddp)" if theirs == "adamw_8bit" else ""
        raise ValueError(
            f"--model.optim.optimizer {own}: the checkpoint's run had another; resume with --model.optim.optimizer "
            f"{theirs}{where}, or start anew from its weights with --model.init_from"
        )


def _kind(values: Mapping[str, Any]) -> str | None:
    """The kind of optimiser that keeps such a state of a parameter; None for none that this program knows."""
    # bitsandbytes hands out all but the step in a mapping within.
    keys = {key for inner in (values, *values.values()) if isinstance(inner, Mapping) for key in inner}
    return next((kind for key, kind in _KINDS.items() if key in keys), None)


def check_groups(saved: Sequence[Mapping[str, Any]], optimizer: Optimizer, path: Path) -> None:
    """Refuses the state of an optimiser over other parameters.

    Args:
        saved: Its `param_groups`.
        optimizer: That it is meant for.
        path: Where the state comes from, for the message.

    Raises:
        ValueError: If the groups differ.
    """
    sizes = [[len(group["params"]) for group in groups] for groups in (saved, optimizer.param_groups)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{path}: the checkpoint's optimiser has groups of {sizes[0]} parameters, this run's has {sizes[1]}; "
            "resume with the same --model.backbone.freeze and --model.optim, or start anew from the weights alone"
        )


def numbered(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state with numbers in place of names.

    Args:
        state: `state` by name, and `param_groups` with names.
    """
    names = [name for group in state["param_groups"] for name in group["params"]]
    number = {name: index for index, name in enumerate(names)}
    return {
        "state": {number[name]: value for name, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [number[name] for name in group["params"]]} for group in state["param_groups"]
        ],
    }


def named(
    state: Mapping[str, Any], optimizer: Optimizer, names: Mapping[nn.Parameter, str], path: Path
) -> dict[str, Any]:
    """A state with names in place of numbers, matched group by group to an optimiser.

    Args:
        state: `state` by number, and `param_groups` with numbers.
        optimizer: That it is meant for.
        names: Of the model's parameters.
        path: Where the state comes from, for the message.

    Raises:
        ValueError: If the groups differ.
    """
    saved = state["param_groups"]
    check_groups(saved, optimizer, path)
    name_of = {
        number: names[parameter]
        for old, new in zip(saved, optimizer.param_groups, strict=True)
        for number, parameter in zip(old["params"], new["params"], strict=True)
    }
    return {
        "state": {name_of[number]: value for number, value in state["state"].items()},
        "param_groups": [{**group, "params": [name_of[number] for number in group["params"]]} for group in saved],
    }
