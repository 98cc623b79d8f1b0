from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_study import load, resolve
from lit_vlaa.checks import UsageError
from lit_vlaa.study.arms import build as build_variants
from lit_vlaa.study.overview import overview
from lit_vlaa.study.plan import Plan, build
from lit_vlaa.study.runner import look

Change = Callable[[dict[str, Any]], Any]


def nothing(_: Any) -> None:
    pass


def planned(folder: Path, change: Change = nothing, data: str = "a") -> Plan:
    study = load(folder, change)
    variants = build_variants(study, resolve)
    return build(study, variants, {path: data for variant in variants.all() for path in variant.data_files()})


def ids(plan: Plan, seed: int) -> list[str]:
    return [job.id.removeprefix(f"seed{seed}-") for job in plan.jobs if job.seed == seed]


def test_arms_share_what_they_have_in_common(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    one_seed = ["base-test", "sft-sft", "sft-test", "rl-rl", "rl-test", "sft+rl-rl", "sft+rl-test"]
    # The start comes first; then seed by seed, so that early seeds end first.
    assert plan.jobs[0].id == "start"
    assert ids(plan, 1) == ids(plan, 2) == one_seed
    assert len(plan.jobs) == 1 + 2 * len(one_seed)
    assert plan.job("seed1-sft-sft").arms == ("sft", "sft+rl")
    assert plan.job("start").arms == ("base", "sft", "rl", "sft+rl")
    assert plan.job("seed2-sft+rl-rl").after == ("seed2-sft-sft",)
    assert plan.job("seed2-rl-rl").after == ("start",)
    assert plan.job("seed1-base-test").after == ("start",)
    assert plan.evaluations[3] == ("sft+rl", 1, "seed1-sft+rl-test")


def test_every_job_comes_after_those_that_it_needs(tmp_path: Path) -> None:
    plan = planned(tmp_path, lambda c: c.update(perplexity=True))
    names = [job.id for job in plan.jobs]
    for place, job in enumerate(plan.jobs):
        assert set(job.after) <= set(names[:place])
    levels = [[job.id for job in level] for level in plan.levels()]
    assert levels[0] == ["start"]
    assert levels[1] == [f"seed{seed}-{name}" for seed in (1, 2) for name in ("base-test", "sft-sft", "rl-rl")]
    assert sorted(name for level in levels for name in level) == sorted(names)


def test_commands_of_seed_folder_and_checkpoint(tmp_path: Path) -> None:
    plan, jobs = planned(tmp_path), tmp_path / "out" / "jobs"
    assert plan.job("seed2-sft+rl-rl").command == (
        "fit",
        f"--config={tmp_path / 'rl.yaml'}",
        "--seed_everything=2",
        "--data.init_args.seed=2",
        f"--trainer.default_root_dir={jobs / 'seed2-sft+rl-rl'}",
        f"--model.init_args.init_from={jobs / 'seed2-sft-sft' / 'final.ckpt'}",
        "--ckpt_path=last",
    )
    assert plan.job("start").command[2:4] == ("--seed_everything=5", "--data.init_args.seed=5")
    assert plan.job("seed1-base-test").command == (
        "test",
        f"--config={tmp_path / 'evaluation.yaml'}",
        "--trainer.callbacks+=callbacks.ResponseWriter",
        f"--trainer.callbacks.path={jobs / 'seed1-base-test' / 'responses.jsonl'}",
        "--seed_everything=1",
        "--data.init_args.seed=1",
        f"--trainer.default_root_dir={jobs / 'seed1-base-test'}",
        f"--model.init_args.init_from={jobs / 'start' / 'final.ckpt'}",
    )


def test_without_a_start_arms_begin_at_the_released_weights(tmp_path: Path) -> None:
    plan = planned(tmp_path, lambda c: c.pop("start"))
    assert not any("init_from" in word for word in plan.job("seed1-base-test").command)
    assert plan.job("seed1-rl-rl").after == ()
    assert not any("init_from" in word for word in plan.job("seed1-rl-rl").command)


def test_perplexity_is_under_the_base_model(tmp_path: Path) -> None:
    plan, out = planned(tmp_path, lambda c: c.update(perplexity=True)), tmp_path / "out"
    job = plan.job("seed1-rl-perplexity")
    assert (job.kind, job.after) == ("perplexity", ("seed1-rl-test", "start"))
    assert job.command == (
        "study",
        "perplexity",
        f"--config={out / 'resolved' / 'evaluation'}.yaml",
        f"--init_from={out / 'jobs' / 'start' / 'final.ckpt'}",
        f"--responses={out / 'jobs' / 'seed1-rl-test' / 'responses.jsonl'}",
        f"--output={out / 'jobs' / 'seed1-rl-test' / 'perplexity.jsonl'}",
    )
    assert sum(job.kind == "perplexity" for job in plan.jobs) == len(plan.evaluations)


def test_common_settings_come_after_a_stages_own_and_before_an_arms(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["common"] = {"config": "sft.yaml", "flags": {"trainer.max_steps": 4, "trainer.max_time": None}}
        content["stages"]["sft"]["flags"] = {"trainer.max_steps": 3}
        content["stages_differ"] = {}
        content["evaluation"]["config"] = []
        content["evaluation"]["flags"] = {"data.test_file": "t.json"}
        content["arms"] = {
            "sft": {"steps": ["sft"]},
            "long": {"steps": ["sft"], "differs": {"sft": {"trainer.max_steps": {"value": 9, "reason": "long"}}}},
        }
        content["stages"].pop("rl")

    plan = planned(tmp_path, change)
    config = f"--config={tmp_path / 'sft.yaml'}"
    assert plan.job("seed1-sft-sft").command[1:5] == (
        config,
        config,
        "--trainer.max_steps=4",
        "--trainer.max_time=null",
    )
    assert plan.job("seed1-long-sft").command[3] == "--trainer.max_steps=9"


def test_a_stage_may_come_twice(tmp_path: Path) -> None:
    plan = planned(tmp_path, lambda c: c["arms"]["rl"].update(steps=["rl", "rl"]))
    assert plan.job("seed1-rl-rl-2").after == ("seed1-rl-rl",)
    assert plan.job("seed1-rl-rl").config_sha256 != plan.job("seed1-rl-rl-2").config_sha256


def test_identity_follows_configuration_data_seed_and_what_came_before(tmp_path: Path) -> None:
    plain = {job.id: job.config_sha256 for job in planned(tmp_path).jobs}
    assert plain == {job.id: job.config_sha256 for job in planned(tmp_path).jobs}
    assert len(set(plain.values())) == len(plain)
    changes: dict[str, Change] = {
        "rl": lambda c: c["stages"]["rl"].update(flags={"model.group_size": 4}),
        "evaluation": lambda c: c["evaluation"].update(flags={"trainer.limit": 1}),
        "start": lambda c: c["start"].update(seed=6),
        "place": lambda c: c.update(output_dir="elsewhere"),
        "words": lambda c: c.update(description="more", claims={"arms": {"rl": "rl"}}),
        "seeds": lambda c: c.update(seeds=[1, 2, 3]),
    }
    other = {
        name: {
            job
            for job, sha in ((j.id, j.config_sha256) for j in planned(tmp_path, change).jobs)
            if plain.get(job, sha) != sha
        }
        for name, change in changes.items()
    }
    assert other["rl"] == {f"seed{s}-{job}" for s in (1, 2) for job in ("rl-rl", "rl-test", "sft+rl-rl", "sft+rl-test")}
    assert other["evaluation"] == {name for name in plain if name.endswith("-test")}
    assert other["start"] == set(plain)
    assert other["place"] == other["words"] == other["seeds"] == set()
    assert not set(plain.values()) & {job.config_sha256 for job in planned(tmp_path, data="b").jobs}


def test_parts_of_a_study(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert [job.id for job in plan.select([2], ["sft+rl"])] == [
        "start",
        "seed2-sft-sft",
        "seed2-sft+rl-rl",
        "seed2-sft+rl-test",
    ]
    assert plan.select(None, None) == plan.jobs
    with pytest.raises(UsageError, match=r"--seeds 3: the study has seeds 1, 2"):
        plan.select([3], None)
    with pytest.raises(UsageError, match=r"--arms sft\+lr: there is no such arm; did you mean 'sft\+rl'"):
        plan.select(None, ["sft+lr"])
    with pytest.raises(UsageError, match=r"--job seed1-sft: there is no such job; did you mean"):
        plan.job("seed1-sft")


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ({"a": {"steps": ["sft"]}, "b": {"steps": ["sft"]}, "c": {"steps": ["rl"]}}, "arms a and b are the same"),
        ({"a": {"steps": ["sft", "rl"]}, "a-sft": {"steps": ["rl"]}, "a-sft-rl": {"steps": []}}, None),
    ],
)
def test_arms_that_are_the_same(arms: dict[str, Any], expected: str | None, tmp_path: Path) -> None:
    if expected is None:
        assert len(planned(tmp_path, lambda c: c.update(arms=arms)).evaluations) == 6
        return
    with pytest.raises(UsageError, match=expected):
        planned(tmp_path, lambda c: c.update(arms=arms))


def test_two_jobs_of_one_name_are_refused(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["stages"]["x-sft"] = content["stages"]["sft"]
        content["arms"] = {"a-x": {"steps": ["sft"]}, "a": {"steps": ["rl", "x-sft"]}}

    with pytest.raises(UsageError, match="two jobs would be called seed1-a-x-sft"):
        planned(tmp_path, change)


def test_the_overview_shows_jobs_commands_and_differences(tmp_path: Path) -> None:
    text = overview(look(load(tmp_path), resolve), seeds=[1], arms=["rl"])
    assert f"{tmp_path / 'rl.json'}: absent" in text
    assert 'model.class_path: "m.SFT" and "m.GRPO" (what is compared)' in text
    assert "seed1-rl-rl    train     1     start        rl" in text
    assert "seed1-sft-sft" not in text
    assert "3 of 15 jobs" in text
    assert "prepare: lit-vlaa data make here" in text
    assert "seed1-rl-rl: lit-vlaa fit --config=" in text
    (tmp_path / "rl.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert "2 rows, sha256 " in overview(look(load(tmp_path), resolve))
