"""An optimiser's state with its parameters named, as FSDP2 gives and takes it, or numbered, as optimisers do.

Numbers count the parameters in the order of the optimiser's groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer


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
    saved, own = state["param_groups"], optimizer.param_groups
    sizes = [[len(group["params"]) for group in groups] for groups in (saved, own)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{path}: the checkpoint's optimiser has groups of {sizes[0]} parameters, this run's has {sizes[1]}; "
            "resume with the same --model.backbone.freeze and --model.optim, or start anew from the weights alone"
        )
    name_of = {
        number: names[parameter]
        for old, new in zip(saved, own, strict=True)
        for number, parameter in zip(old["params"], new["params"], strict=True)
    }
    return {
        "state": {name_of[number]: value for number, value in state["state"].items()},
        "param_groups": [{**group, "params": [name_of[number] for number in group["params"]]} for group in saved],
    }
