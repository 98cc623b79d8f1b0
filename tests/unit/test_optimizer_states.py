"""The optimiser's states of a checkpoint belong to the optimiser that takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.adapted import fit
from lit_vlaa.optimizer_states import check_kind

KINDS = ("adamw", "adamw_8bit")


def test_kinds_are_told_apart_by_what_they_keep() -> None:
    adamw: dict[str, Any] = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(1)}}}
    check_kind(adamw, "adamw")
    check_kind({"state": {}}, "adamw_8bit")
    check_kind({"state": {"a.weight": {"momentum_buffer": torch.zeros(1)}}}, "adamw")
    with pytest.raises(
        ValueError, match=r"^--model\.optim\.optimizer adamw_8bit: .*resume with .* adamw, or start anew"
    ):
        check_kind(adamw, "adamw_8bit")


@pytest.mark.parametrize("saved", KINDS)
def test_another_optimiser_is_refused(saved: str, tmp_path: Path) -> None:
    path = str(tmp_path / "run.ckpt")
    own = next(kind for kind in KINDS if kind != saved)
    fit("sft", save=path, optim={"optimizer": saved})
    with pytest.raises(
        ValueError, match=rf"--model\.optim\.optimizer {own}: .*resume with --model\.optim\.optimizer {saved}"
    ):
        fit("sft", epochs=2, resume=path, optim={"optimizer": own})
