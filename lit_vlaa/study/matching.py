"""Are the arms matched? Every resolved configuration is compared, key by key; only what is declared may differ.

Three comparisons: a stage as an arm runs it with the stage as it stands; the stages with each other (SFT with RL); the
evaluation, of which there is one for all arms, with the stages in what the model is shown and how it is scored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from lit_vlaa.checks import UsageError
from lit_vlaa.hints import meant
from lit_vlaa.study.arms import EVALUATION, OWN, Variant, Variants
from lit_vlaa.study.config import Difference, StudyFile


class _Absent:
    """Type of `ABSENT`."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()
"""What a configuration holds under a key that it does not have."""

SHOWN_AND_SCORED = (
    "model.init_args.backbone.path",
    "model.init_args.backbone.revision",
    "model.init_args.backbone.min_pixels",
    "model.init_args.backbone.max_pixels",
    "model.init_args.backbone.dtype",
    "model.init_args.sampling",
    "model.init_args.reward",
    "model.init_args.scorer",
    "model.init_args.verifiers",
    "data.class_path",
    "data.init_args.prompt",
    "data.init_args.image_root",
    "data.init_args.max_image_pixels",
    "data.init_args.truth_boxes",
)
"""Keys, and what is below them, that an evaluation must share with training; a limit of tokens, say."""

_CLASSES = ("model", "data")
_CALLBACKS = "trainer.callbacks["


def check(study: StudyFile, variants: Variants) -> dict[str, Any]:
    """Compares all configurations of a study.

    Returns:
        What was compared, found equal, and differs as declared, for the manifest.

    Raises:
        UsageError: If something differs that is not declared, or is declared and does not differ; one line for each key
            with the values and the remedy.
    """
    problems: list[str] = []
    matched = {
        "set_by_the_runner": list(OWN),
        "arms": dict(_arms(study, variants, problems)),
        "stages": list(_stages(study, variants, problems)),
        "evaluation": _evaluation(study, variants, problems),
    }
    if problems:
        raise UsageError([f"{study.path}: {problem}" for problem in problems])
    return matched


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys under which two flat configurations hold something else, with both values; `ABSENT` for no such key.

    Of a setting that is null in one and has parts in the other, the parts alone are given.
    """
    keys = dict.fromkeys([*first, *second])
    found = {key: (first.get(key, ABSENT), second.get(key, ABSENT)) for key in keys}
    return {
        key: values
        for key, values in found.items()
        if not _same(*values) and not (ABSENT in values and any(covers(key, other) and other != key for other in keys))
    }


def covers(declared: str, key: str) -> bool:
    """Whether a declared key is this one, or one that it is below."""
    return key == declared or key.startswith((f"{declared}.", f"{declared}["))


def shown(value: Any) -> str:
    """A value in one line."""
    text = repr(value) if value is ABSENT else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def plain(value: Any) -> Any:
    """A value for the manifest."""
    return "(absent)" if value is ABSENT else value


def _same(first: Any, second: Any) -> bool:
    """Equal, and a truth value is no number."""
    return first is second or (first == second and isinstance(first, bool) == isinstance(second, bool))


def _reason(key: str, declared: Mapping[str, Difference]) -> str | None:
    return next((difference.reason for name, difference in declared.items() if covers(name, key)), None)


def _stale(
    declared: Mapping[str, Difference], where: str, found: Sequence[str], known: Sequence[str], between: str
) -> Iterator[str]:
    """Declarations that no difference needs."""
    for name in declared:
        if any(covers(name, key) for key in found):
            continue
        if any(covers(name, key) for key in known):
            yield f"{where}.{name} is declared, but makes no difference between {between}; take it out"
        else:
            yield f"{where}.{name}: there is no such key; {meant(name, list(known))}"


def _arms(study: StudyFile, variants: Variants, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for arm in study.arms.values():
        record: dict[str, Any] = {}
        for stage in dict.fromkeys(arm.steps):
            reference, own = variants.stages[stage].flat, variants.of(arm.name, stage).flat
            declared, where = arm.differs.get(stage, {}), f"arms.{arm.name}.differs.{stage}"
            found = differing(reference, own)
            rows = []
            for key, (usual, value) in found.items():
                reason = _reason(key, declared)
                if reason is None:
                    problems.append(
                        f"arm {arm.name}, stage {stage}: {key} is {shown(value)}, in stages.{stage} {shown(usual)}; "
                        f"declare it with its reason under {where}, or take it out"
                    )
                rows.append({"key": key, "stage": plain(usual), "arm": plain(value), "reason": reason})
            known = list({**reference, **own})
            problems += _stale(declared, where, list(found), known, f"the arm and stages.{stage}")
            record[stage] = {"equal": len(known) - len(found), "differs": rows}
        yield arm.name, record


def _stages(study: StudyFile, variants: Variants, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Compares every two stages; what only one of two classes of model or data knows is listed and allowed."""
    everything: list[str] = []
    undeclared: list[str] = []
    remedy = "make them equal, under common, or declare it with its reason under stages_differ"
    for first, second in combinations(variants.stages.values(), 2):
        found = differing(first.flat, second.flat)
        alone = {key: values for key, values in found.items() if _of_one_class(key, first, second)}
        rows = []
        for key, (one, two) in found.items():
            if key in alone:
                continue
            reason = _reason(key, study.stages_differ)
            if reason is None:
                what = f"{key} is {shown(one)} in {first.name}, {shown(two)} in {second.name}"
                if (entry := _callback(key)) and (owner := _only_owner(entry, first, second)):
                    what = f"{entry} is in {owner} alone"
                undeclared.append(f"stages {first.name} and {second.name}: {what}; {remedy}")
            rows.append({"key": key, first.name: plain(one), second.name: plain(two), "reason": reason})
        everything += (row["key"] for row in rows)
        yield {
            "stages": [first.name, second.name],
            "equal": len({**first.flat, **second.flat}) - len(found),
            "differs": rows,
            "only": {
                first.name: [key for key, (_, two) in alone.items() if two is ABSENT],
                second.name: [key for key, (one, _) in alone.items() if one is ABSENT],
            },
        }
    problems += dict.fromkeys(undeclared)
    known = list(dict.fromkeys(key for variant in variants.stages.values() for key in variant.flat))
    problems += _stale(study.stages_differ, "stages_differ", everything, known, "any two stages")


def _callback(key: str) -> str:
    """The entry of the list of callbacks that a key belongs to; empty of others."""
    return key[: key.index("]") + 1] if key.startswith(_CALLBACKS) else ""


def _only_owner(entry: str, first: Variant, second: Variant) -> str:
    """Name of the one stage that has a callback; empty where both have it."""
    owners = [stage.name for stage in (first, second) if any(covers(entry, key) for key in stage.flat)]
    return owners[0] if len(owners) == 1 else ""


def _of_one_class(key: str, first: Variant, second: Variant) -> bool:
    """Whether only one of two variants has a class that knows the key, as an argument of model or data."""
    for part in _CLASSES:
        name = f"{part}.init_args."
        if key.startswith(name) and first.flat.get(f"{part}.class_path") != second.flat.get(f"{part}.class_path"):
            argument = name + key[len(name) :].partition(".")[0]
            return any(not any(covers(argument, other) for other in variant.flat) for variant in (first, second))
    return False


def _evaluation(study: StudyFile, variants: Variants, problems: list[str]) -> dict[str, Any]:
    """Compares what an evaluation shows and how it scores with each stage that knows these keys."""
    own = variants.evaluation.flat
    everything: list[str] = []
    record: dict[str, Any] = {}
    for stage in variants.stages.values():
        common = [
            key
            for key in {**stage.flat, **own}
            if any(covers(name, key) for name in SHOWN_AND_SCORED)
            and not _of_one_class(key, stage, variants.evaluation)
        ]
        found = differing(
            {k: stage.flat[k] for k in common if k in stage.flat}, {k: own[k] for k in common if k in own}
        )
        rows = []
        for key, (training, value) in found.items():
            reason = _reason(key, study.evaluation_differs)
            if reason is None:
                problems.append(
                    f"{EVALUATION}: {key} is {shown(value)}, in stages.{stage.name} {shown(training)}; make them "
                    "equal, under common, or declare it with its reason under evaluation.differs"
                )
            rows.append({"key": key, stage.name: plain(training), EVALUATION: plain(value), "reason": reason})
        everything += found
        record[stage.name] = {"equal": len(common) - len(found), "differs": rows}
    known = [key for key in own if any(covers(name, key) for name in SHOWN_AND_SCORED)]
    problems += _stale(study.evaluation_differs, "evaluation.differs", everything, known, "training and evaluation")
    return {"same_for_all_arms": len(own), "with_stages": record}
