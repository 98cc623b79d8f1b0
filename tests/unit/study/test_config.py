from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_study import load, write
from lit_vlaa.checks import UsageError
from lit_vlaa.study.config import UNSET, full_key, read

Change = Callable[[dict[str, Any]], Any]


def test_a_file_is_read(tmp_path: Path) -> None:
    study = load(tmp_path)
    assert (study.name, study.seeds, study.start_seed, study.perplexity) == ("small", (1, 2), 5, False)
    assert study.prepare == (("data", "make", "here"),)
    assert study.arms["sft+rl"].steps == ("sft", "rl")
    assert (study.arms["sft"].title, study.arms["rl"].title) == ("SFT alone", "rl")
    # A config beside the study file is found; short keys become those of a resolved configuration.
    assert study.stages["rl"].config == (tmp_path / "rl.yaml",)
    assert list(study.stages_differ) == ["model.class_path", "data.init_args.data_file", "data.init_args.split"]
    assert study.stages_differ["model.class_path"].reason == "what is compared"


def test_output_dir_can_be_given(tmp_path: Path) -> None:
    assert read(write(tmp_path), tmp_path / "other").output_dir == tmp_path / "other"


def test_a_reason_alone_declares_without_a_value(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["arms"]["sft"]["differs"] = {
            "sft": {"model.optim.lr": "why", "data.seed_": {"reason": "w", "value": None}}
        }

    declared = load(tmp_path, change).arms["sft"].differs["sft"]
    assert declared["model.init_args.optim.lr"].value is UNSET
    assert declared["data.init_args.seed_"].value is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.update(seed=[1]), "unknown key 'seed'; did you mean 'seeds'?"),
        (lambda c: c["arms"]["sft"].update(step=["sft"]), "arms.sft: unknown key 'step'; did you mean 'steps'?"),
        (lambda c: c["arms"]["sft"].update(steps=["stf"]), "unknown stage 'stf'; did you mean 'sft'?"),
        (lambda c: c["arms"]["sft"].update(flags={"rl": {}}), "arms.sft.flags: unknown key 'rl'; known: sft"),
        (lambda c: c.update(seeds=[1, 1]), "seeds: give one or more, each once"),
        (lambda c: c.update(seeds=[-1]), "seeds: expected a whole number from 0, got '-1'"),
        (lambda c: c.update(seeds=[]), "seeds: give one or more"),
        (lambda c: c.update(arms={}), "arms: a study needs at least one"),
        (lambda c: c.pop("evaluation"), "evaluation: say how the arms are evaluated"),
        (lambda c: c["stages"].update(more={}), "stages.more is a step of no arm"),
        (lambda c: c["stages"]["sft"].update(config="gone.yaml"), "gone.yaml is neither here"),
        (lambda c: c["arms"].update({"../x": {}}), "arms: expected names of letters"),
        (lambda c: c["stages_differ"].update({"model.optim.lr": " "}), "give the reason of the difference in words"),
        (lambda c: c["stages_differ"].update({"model.init_args": "all"}), "covers a whole section"),
        (lambda c: c["stages_differ"].update({"a b": "x"}), "expected keys such as model.optim.lr, got 'a b'"),
        (lambda c: c.update(prepare=["data synthetic"]), "prepare: expected a list of commands"),
        (lambda c: c.update(perplexity="yes"), "perplexity: expected true or false, got 'yes'"),
        (lambda c: c.update(common=[1]), "common: expected keys with values"),
    ],
)
def test_what_cannot_work_is_named(change: Change, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, change)
    assert [problem for problem in caught.value.problems if expected in problem], caught.value.problems
    assert all(str(tmp_path / "study.yaml") in problem for problem in caught.value.problems)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, lambda c: c.update(seeds=[-1], seed=1))
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    "text", ["a: [", "!!python/object/apply:os.system [ls]", "- 1"], ids=["broken", "code", "list"]
)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"study\.yaml"):
        read(path)
    with pytest.raises(UsageError, match="does not exist; seen from"):
        read(tmp_path / "none.yaml")


def test_full_keys() -> None:
    assert full_key("model.optim.lr") == "model.init_args.optim.lr"
    assert full_key("model.init_args.optim.lr") == "model.init_args.optim.lr"
    assert full_key("data.class_path") == "data.class_path"
    assert full_key("trainer.max_steps") == "trainer.max_steps"
