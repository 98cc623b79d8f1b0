from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.fake_study import load, resolve
from lit_vlaa.checks import UsageError
from lit_vlaa.study.arms import Variants, build, flatten
from lit_vlaa.study.matching import ABSENT, check, differing

Change = Callable[[dict[str, Any]], Any]


def nothing(_: Any) -> None:
    pass


def look(folder: Path, change: Change = nothing) -> tuple[Variants, dict[str, Any]]:
    study = load(folder, change)
    variants = build(study, resolve)
    return variants, check(study, variants)


def refused(folder: Path, change: Change) -> list[str]:
    with pytest.raises(UsageError) as caught:
        look(folder, change)
    return [problem.removeprefix(f"{folder / 'study.yaml'}: ") for problem in caught.value.problems]


def edit(folder: Path, name: str, change: Change) -> None:
    """Changes a config file behind a study file that was written before."""
    path = folder / f"{name}.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))


def test_matched_arms_pass_with_what_was_found_equal(tmp_path: Path) -> None:
    _, matched = look(tmp_path)
    assert matched["arms"]["base"] == {}
    # trainer: 5 settings and a callback's class; model: class, 4 of the backbone, lr; data: class, split, 3 files,
    # image_root, prompt; without the runner's init_from, seeds and ckpt_path.
    assert matched["arms"]["sft+rl"]["sft"] == {"equal": 6 + 6 + 7, "differs": []}
    (stages,) = matched["stages"]
    assert stages["stages"] == ["sft", "rl"]
    assert [row["key"] for row in stages["differs"]] == [
        "data.init_args.data_file",
        "data.init_args.split",
        "model.class_path",
    ]
    assert stages["differs"][2] == {
        "key": "model.class_path",
        "sft": "m.SFT",
        "rl": "m.GRPO",
        "reason": "what is compared",
    }
    assert stages["equal"] == 19 - 3
    assert stages["only"]["rl"] == [
        "model.init_args.group_size",
        "model.init_args.reward.format_weight",
        "model.init_args.scorer",
    ]
    assert stages["only"]["sft"] == []
    assert matched["evaluation"]["with_stages"]["rl"]["differs"] == []
    assert matched["evaluation"]["with_stages"]["rl"]["equal"] > matched["evaluation"]["with_stages"]["sft"]["equal"]


def test_a_mismatched_arm_is_refused_with_the_key_named(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["arms"]["sft+rl"]["flags"] = {"rl": {"model.optim.lr": 0.002}}

    (problem,) = refused(tmp_path, change)
    assert problem == (
        "arm sft+rl, stage rl: model.init_args.optim.lr is 0.002, in stages.rl 0.001; declare it with its reason under "
        "arms.sft+rl.differs.rl, or take it out"
    )


def test_a_config_of_an_arm_is_held_to_its_declarations(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"trainer": {"max_steps": 9, "min_steps": 2}}))

    def change(content: dict[str, Any]) -> None:
        content["arms"]["sft"] |= {"config": {"sft": "more.yaml"}, "differs": {"sft": {"trainer.max_steps": "fewer"}}}

    (problem,) = refused(tmp_path, change)
    assert problem.startswith("arm sft, stage sft: trainer.min_steps is 2, in stages.sft absent; declare")


def test_a_declared_difference_is_made_and_recorded(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["arms"]["sft-2"] = {
            "steps": ["sft"],
            "differs": {"sft": {"data.data_file": {"value": "two.json", "reason": "other rows"}}},
        }

    variants, matched = look(tmp_path, change)
    assert "--data.init_args.data_file=two.json" in variants.of("sft-2", "sft").words
    assert variants.of("sft", "sft") is variants.stages["sft"]
    row = {
        "key": "data.init_args.data_file",
        "stage": str(tmp_path / "sft.json"),
        "arm": "two.json",
        "reason": "other rows",
    }
    assert matched["arms"]["sft-2"]["sft"]["differs"] == [row]
    assert matched["arms"]["sft-2"]["sft"]["equal"] == matched["arms"]["sft"]["sft"]["equal"] - 1


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.optim.lr", 0.001, "is declared, but makes no difference between the arm and stages.sft; take it out"),
        ("model.optim.rate", None, "there is no such key; did you mean 'model.init_args.optim.lr'?"),
    ],
)
def test_stale_declarations_are_refused(key: str, value: Any, expected: str, tmp_path: Path) -> None:
    entry = {"reason": "once", **({} if value is None else {"value": value})}
    (problem,) = refused(tmp_path, lambda c: c["arms"]["sft"].update(differs={"sft": {key: entry}}))
    assert problem.startswith("arms.sft.differs.sft.model.init_args.optim.")
    assert problem.endswith(expected)


def test_stages_must_agree_on_every_setting_that_both_have(tmp_path: Path) -> None:
    study = load(tmp_path)
    edit(tmp_path, "sft", lambda c: c["model"]["init_args"]["optim"].update(lr=0.5))
    edit(tmp_path, "sft", lambda c: c["data"]["init_args"].update(prompt={"system_prompt": "", "words": 3}))
    with pytest.raises(UsageError) as caught:
        check(study, build(study, resolve))
    text = "\n".join(caught.value.problems)
    assert (
        "stages sft and rl: model.init_args.optim.lr is 0.5 in sft, 0.001 in rl; make them equal, under common" in text
    )
    # A key that one of two equal classes has alone is a difference; evaluation is compared with it as well.
    assert "data.init_args.prompt.words is 3 in sft, absent in rl" in text
    assert "evaluation: data.init_args.prompt.words is absent, in stages.sft 3" in text


def test_callbacks_of_one_stage_alone_must_be_declared(tmp_path: Path) -> None:
    # One that averages weights would make more of a difference than most settings.
    study = load(tmp_path)
    extra = {"class_path": "callbacks.Throughput", "init_args": {"window": 3, "more": 1}}
    edit(tmp_path, "rl", lambda c: c["trainer"]["callbacks"].append(extra))
    with pytest.raises(UsageError) as caught:
        check(study, build(study, resolve))
    (problem,) = caught.value.problems
    assert "stages sft and rl: trainer.callbacks[callbacks.Throughput] is in rl alone; make them equal" in problem
    name = "trainer.callbacks[callbacks.Throughput]"
    declared = load(tmp_path, lambda c: c["stages_differ"].update({name: "it looks on"}))
    edit(tmp_path, "rl", lambda c: c["trainer"]["callbacks"].append(extra))
    (stages,) = check(declared, build(declared, resolve))["stages"]
    found = {row["key"]: (row["sft"], row["rl"], row["reason"]) for row in stages["differs"]}
    assert found[f"{name}.init_args.window"] == ("(absent)", 3, "it looks on")
    edit(tmp_path, "sft", lambda c: c["trainer"]["callbacks"].append({**extra, "init_args": {"window": 4, "more": 1}}))
    with pytest.raises(UsageError, match=r"callbacks.Throughput\].init_args.window is 4 in sft, 3 in rl"):
        check(study, build(study, resolve))


def test_evaluation_draws_answers_as_training_does(tmp_path: Path) -> None:
    flags = {"model.sampling.max_new_tokens": 64}
    (problem,) = refused(tmp_path, lambda c: c["evaluation"].update(flags=flags))
    assert problem.startswith("evaluation: model.init_args.sampling.max_new_tokens is 64, in stages.rl absent;")


def test_stale_declarations_between_stages_are_refused(tmp_path: Path) -> None:
    problems = refused(tmp_path, lambda c: c["stages_differ"].update({"model.optim.lr": "x", "trainer.deviecs": "y"}))
    stale, unknown = problems
    assert stale.startswith(
        "stages_differ.model.init_args.optim.lr is declared, but makes no difference between any two"
    )
    assert unknown == "stages_differ.trainer.deviecs: there is no such key; did you mean 'trainer.devices'?"


def test_evaluation_must_show_and_score_as_training_does(tmp_path: Path) -> None:
    flags = {"model.backbone.max_pixels": 9, "model.reward.format_weight": 0.5, "model.optim.lr": 7.0}
    problems = refused(tmp_path, lambda c: c["evaluation"].update(flags=flags))
    # The learning rate plays no part in an evaluation; SFT knows no reward.
    assert [problem.partition(" is ")[0] for problem in problems] == [
        "evaluation: model.init_args.backbone.max_pixels",
        "evaluation: model.init_args.backbone.max_pixels",
        "evaluation: model.init_args.reward.format_weight",
    ]
    declared = {"model.backbone.max_pixels": "finer", "model.reward.format_weight": "softer"}
    _, matched = look(tmp_path, lambda c: c["evaluation"].update(flags=flags, differs=declared))
    assert [row["reason"] for row in matched["evaluation"]["with_stages"]["rl"]["differs"]] == ["finer", "softer"]
    stale = refused(tmp_path, lambda c: c["evaluation"].update(differs={"data.prompt": "why"}))
    assert stale[0].startswith("evaluation.differs.data.init_args.prompt is declared, but makes no difference")


@pytest.mark.parametrize(
    ("part", "flags", "expected"),
    [
        ("sft", {"trainer.default_root_dir": "x"}, "sft: trainer.default_root_dir is set by the runner; take it out"),
        ("rl", {"data.seed": 3}, "rl: data.init_args.seed is set by the runner; take it out"),
        ("rl", {"trainer.num_nodes": 2}, "rl: trainer.num_nodes is 2; a job of a study runs on one machine"),
        ("sft", {"trainer.logger": False}, "sft: trainer.logger is given; leave it null"),
    ],
)
def test_what_is_the_runners_is_refused(part: str, flags: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert expected in refused(tmp_path, lambda c: c["stages"][part].update(flags=flags))[0]


def test_a_file_that_names_a_checkpoint_is_refused(tmp_path: Path) -> None:
    study = load(tmp_path)
    edit(tmp_path, "rl", lambda c: c["model"]["init_args"].update(init_from="other.ckpt", seed=3))
    with pytest.raises(UsageError) as caught:
        build(study, resolve)
    assert [problem.partition(" is ")[0].rpartition(": ")[2] for problem in caught.value.problems] == [
        "model.init_args.init_from",
        "model.init_args.seed",
    ]


def test_the_writer_of_responses_is_the_runners(tmp_path: Path) -> None:
    variants, _ = look(tmp_path)
    assert variants.evaluation.words[-1] == "--trainer.callbacks+=callbacks.ResponseWriter"
    study = load(tmp_path)
    writer = {"class_path": "callbacks.ResponseWriter"}
    edit(tmp_path, "evaluation", lambda c: c["trainer"]["callbacks"].append(writer))
    with pytest.raises(UsageError, match=r"the runner adds callbacks\.ResponseWriter itself"):
        build(study, resolve)


def test_perplexity_needs_rows_of_ones_own(tmp_path: Path) -> None:
    study = load(tmp_path, lambda c: c.update(perplexity=True))
    edit(tmp_path, "evaluation", lambda c: c["data"]["init_args"].update(test_file=None))
    with pytest.raises(UsageError, match="perplexity: needs test rows"):
        build(study, resolve)


def test_flatten_names_classes_in_lists() -> None:
    config = {"a": [{"class_path": "x.Y", "init_args": {"n": 1}}, {"class_path": "x.Y"}], "b": [1, {"c": 2}], "d": {}}
    assert flatten(config) == {
        "a[x.Y].class_path": "x.Y",
        "a[x.Y].init_args.n": 1,
        "a[x.Y#2].class_path": "x.Y",
        "b": [1, {"c": 2}],
        "d": {},
    }


def test_differing() -> None:
    first = {"a": 1, "b": None, "c": True, "e": 0.0}
    second = {"a": 1.0, "b.class_path": "x", "c": 1, "f": 2}
    assert differing(first, second) == {
        "b.class_path": (ABSENT, "x"),
        "c": (True, 1),
        "e": (0.0, ABSENT),
        "f": (ABSENT, 2),
    }
