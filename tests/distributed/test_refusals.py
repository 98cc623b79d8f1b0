"""FSDP2 refuses what it cannot resume from with the messages that a single device gives, for files and for folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from helpers.adapted import fit
from helpers.launch import run_ranks

WHOLE: dict[str, Any] = {"lora": None}
FORMS = ("fsdp2", "fsdp2_sharded")

REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "rank": ("adapters", {"lora": {"rank": 2}}, r"other settings; give --model\.backbone\.lora\.rank 4$"),
    "adapters": ("adapters", WHOLE, r"holds adapters: give --model\.backbone\.lora\.rank 4 .*--model\.init_from"),
    "whole": ("whole", {}, r"holds whole weights, .* --model\.init_from"),
    "freeze": ("whole", {**WHOLE, "backbone": {"freeze": ["vision"]}}, r"groups of .* --model\.backbone\.freeze"),
    "weights": ("weights", {}, r"holds no optimiser state, .* --model\.init_from"),
}
"""For each refusal the checkpoint's name, the run that resumes, and what it says."""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("refusals")
    fit("sft", lora=None, optim={"optimizer": "adamw_8bit"}, save=str(folder / "8bit"))
    common: dict[str, Any] = {"kind": "sft", "devices": 2}
    sources: dict[str, dict[str, Any]] = {"adapters": {}, "whole": WHOLE, "weights": {"weights_only": True}}
    work: dict[str, Any] = {
        f"save {name} {form}": {**common, "strategy": form, "save": str(folder / f"{name}-{form}"), **options}
        for form in FORMS
        for name, options in sources.items()
    }
    work |= {
        f"{name} {form}": {
            **common,
            "strategy": "fsdp2",
            "epochs": 2,
            "resume": str(folder / f"{source}-{form}"),
            **run,
        }
        for form in FORMS
        for name, (source, run, _) in REFUSALS.items()
    }
    work["8bit"] = {**common, **WHOLE, "strategy": "fsdp2", "epochs": 2, "resume": str(folder / "8bit")}
    return run_ranks("helpers.adapted:run_all", runs=work, timeout=280)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", REFUSALS)
def test_a_checkpoint_that_does_not_fit_is_refused(name: str, form: str, said: list[dict[str, Any]]) -> None:
    for rank in said:
        assert re.search(REFUSALS[name][2], rank[f"{name} {form}"].get("error", "not refused"))


def test_another_optimiser_is_refused(said: list[dict[str, Any]]) -> None:
    for rank in said:
        assert re.search(
            r"--model\.optim\.optimizer adamw: .* adamw_8bit .*--trainer\.strategy ddp", rank["8bit"]["error"]
        )


@pytest.mark.parametrize("name", ["rank", "adapters", "whole"])
def test_a_single_device_says_the_same_of_adapters(name: str, tmp_path: Path) -> None:
    source, options, message = REFUSALS[name]
    fit("sft", save=str(tmp_path / "run"), **(WHOLE if source == "whole" else {}))
    with pytest.raises(ValueError, match=message):
        fit("sft", epochs=2, resume=str(tmp_path / "run"), **options)
