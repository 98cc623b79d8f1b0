"""The commands of a study's stages, and the whole configuration that each of them resolves to.

A variant is one stage as it stands, one stage as an arm changes it, the start, or the evaluation. What the runner sets
itself (seeds, folders, the checkpoint to start from) is left out here.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lit_vlaa.checks import UsageError
from lit_vlaa.study.config import UNSET, Settings, StudyFile, full_key
from lit_vlaa.study.job_files import write_text

START = "start"
EVALUATION = "evaluation"
RESOLVED = "resolved"
"""Folder of the resolved configurations."""

OWN = (
    "seed_everything",
    "trainer.default_root_dir",
    "model.init_args.init_from",
    "model.init_args.seed",
    "data.init_args.seed",
    "ckpt_path",
    "trainer.callbacks[callbacks.ResponseWriter].init_args.path",
)
"""Keys that the runner sets, or leaves to one that it sets."""

_WRITER = "callbacks.ResponseWriter"
_PATHS = (".path", "_root", "_dir", "_file", "_folder")
"""Ends of keys that name what is read, in model and data."""
_WRITTEN = ("cache_dir", "output_dir")
"""But for those that name what is written."""
_OF_CALLBACKS = ("data_dir", "_file")
"""Ends of callbacks' keys that name what is read."""
_EMBEDDED = "tiny"
"""The backbone that is made rather than read."""

Resolve = Callable[[Sequence[str]], Mapping[str, Any]]
"""From the words of a command to its whole configuration."""


@dataclass(frozen=True)
class Variant:
    """One command of the study, apart from what the runner sets."""

    name: str
    """`sft`, `sft@sft-aha` where an arm changes the stage, `start`, `evaluation`."""
    stage: str
    words: tuple[str, ...]
    config: Mapping[str, Any]
    """As resolved, nested."""

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The configuration by dotted keys, without those of the runner."""
        return {key: value for key, value in flatten(self.config).items() if key not in OWN}

    @property
    def seeded_data(self) -> bool:
        """Whether the data module takes a seed."""
        return "data.init_args.seed" in flatten(self.config)

    def data_files(self) -> list[str]:
        """Files with rows that the command reads: all that the data module is given, or those of its test alone."""
        testing = self.words[0] == "test"
        return [
            value
            for key, value in self.flat.items()
            if key.startswith("data.init_args.")
            and key.endswith("_file")
            and key.endswith(".test_file") == testing
            and isinstance(value, str)
        ]

    def other_inputs(self) -> list[str]:
        """Paths of what else the command reads, where they are local: pictures, models, benchmarks' files."""
        rows = {key for key in self.flat if key.startswith("data.init_args.") and key.endswith("_file")}
        return [
            value
            for key, value in self.flat.items()
            if key not in rows and _names_input(key) and isinstance(value, str) and value not in {"", _EMBEDDED}
        ]


@dataclass(frozen=True)
class Variants:
    """All commands of a study."""

    start: Variant | None
    evaluation: Variant
    stages: Mapping[str, Variant]
    changed: Mapping[tuple[str, str], Variant]
    """By arm and stage, where the arm changes it."""

    def of(self, arm: str, stage: str) -> Variant:
        """A stage as an arm runs it."""
        return self.changed.get((arm, stage), self.stages[stage])

    def all(self) -> list[Variant]:
        """Every one, without repetition."""
        return [*([self.start] if self.start else []), *self.stages.values(), *self.changed.values(), self.evaluation]

    def used(self, study: StudyFile) -> list[Variant]:
        """Those that some arm runs."""
        found = {v.name: v for arm in study.arms.values() for v in (self.of(arm.name, stage) for stage in arm.steps)}
        return [*([self.start] if self.start else []), *found.values(), self.evaluation]

    @property
    def one_process(self) -> bool:
        """Whether no command starts further processes, uses a GPU, or might."""
        return all(
            variant.flat.get("trainer.accelerator") == "cpu"
            and variant.flat.get("trainer.devices") in {"auto", 1, "1"}
            and variant.flat.get("trainer.strategy") == "auto"
            for variant in self.all()
        )


def resolve(words: Sequence[str]) -> dict[str, Any]:
    """The whole configuration of a command, as `--print_config` shows it.

    Raises:
        UsageError: If the command's arguments cannot work.
    """
    from lit_vlaa.lightning_cli import VLAACLI  # noqa: PLC0415  # imports Lightning

    printed = io.StringIO()
    own = sys.argv
    sys.argv = [own[0]]  # Lightning warns of arguments that it is given beside those of the process
    try:
        with redirect_stdout(printed):
            VLAACLI(words[0], [*words, "--print_config"])
    except SystemExit as stop:
        if stop.code:
            raise UsageError([f"`lit-vlaa {' '.join(words)}` cannot be resolved"]) from stop
    finally:
        sys.argv = own
    config: dict[str, Any] = yaml.safe_load(printed.getvalue())
    return config


def build(study: StudyFile, resolver: Resolve = resolve) -> Variants:
    """Resolves every command that the study needs, once.

    Raises:
        UsageError: If one cannot work, or sets what the runner sets.
    """
    builder = _Builder(study, resolver)
    stages = {name: builder.variant(name, "fit", name, own) for name, own in study.stages.items()}
    changed = {
        (arm.name, stage): builder.variant(
            f"{stage}@{arm.name}", "fit", stage, study.stages[stage], *_changes(study, arm.name, stage)
        )
        for arm in study.arms.values()
        for stage in dict.fromkeys(arm.steps)
        if stage in arm.settings or any(d.value is not UNSET for d in arm.differs.get(stage, {}).values())
    }
    start = None if study.start is None else builder.variant(START, "fit", START, study.start)
    evaluation = builder.variant(EVALUATION, "test", EVALUATION, study.evaluation)
    if any(key.startswith(f"trainer.callbacks[{_WRITER}]") for key in evaluation.flat):
        builder.problems.append(f"{study.path}: {EVALUATION}: the runner adds {_WRITER} itself; take it out")
    elif evaluation.data_files():
        words = (*evaluation.words, f"--trainer.callbacks+={_WRITER}")
        evaluation = Variant(EVALUATION, EVALUATION, words, builder.resolved(EVALUATION, words))
    elif study.perplexity:
        builder.problems.append(f"{study.path}: perplexity: needs test rows; give the evaluation a data.test_file")
    found = Variants(start, evaluation, stages, changed)
    problems = [*builder.problems, *(problem for variant in found.all() for problem in _unfit(study, variant))]
    if problems:
        raise UsageError(problems)
    return found


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys.

    Classes in a list are told by their names rather than places: `trainer.callbacks[callbacks.Preemption]`, and `#2`
    behind the second of a kind. Other lists are values.
    """
    if isinstance(config, Mapping) and config:
        pairs = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in config.items()]
    elif isinstance(config, list) and config and all(isinstance(e, Mapping) and "class_path" in e for e in config):
        pairs = []
        seen: dict[str, int] = {}
        for entry in config:
            name = str(entry["class_path"])
            seen[name] = seen.get(name, 0) + 1
            number = f"#{seen[name]}" if seen[name] > 1 else ""
            pairs.append((f"{prefix}[{name}{number}]", entry))
    else:
        return {prefix: config}
    return {key: leaf for name, value in pairs for key, leaf in flatten(value, name).items()}


def flag(key: str, value: Any) -> str:
    """One word of a command."""
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"


def _names_input(key: str) -> bool:
    """Whether what stands under a key is a path that is read."""
    if key.startswith("trainer."):
        return key.endswith(_OF_CALLBACKS)
    return key.endswith(_PATHS) and not key.endswith(_WRITTEN)


def _changes(study: StudyFile, arm: str, stage: str) -> tuple[Settings, Settings]:
    """What an arm adds to a stage: its files and flags, then the values of its declared differences."""
    declared = study.arms[arm].differs.get(stage, {})
    values = {key: difference.value for key, difference in declared.items() if difference.value is not UNSET}
    return study.arms[arm].settings.get(stage, Settings()), Settings(flags=values)


class _Builder:
    def __init__(self, study: StudyFile, resolver: Resolve) -> None:
        self.study = study
        self.resolver = resolver
        self.problems: list[str] = []
        self.known: dict[tuple[str, ...], Mapping[str, Any]] = {}
        """By words: arms often change a stage in the same way, and a parse takes a third of a second."""

    def variant(self, name: str, command: str, stage: str, own: Settings, *more: Settings) -> Variant:
        parts = (own, self.study.common, *more)
        for key in (full_key(key) for part in parts for key in part.flags):
            if key in OWN:
                self.problems.append(f"{self.study.path}: {name}: {key} is set by the runner; take it out")
        # A flag that comes again later would win; once is enough, and easier to read.
        flags = {key: value for part in parts for key, value in part.flags.items()}
        files = [f"--config={path}" for part in parts for path in part.config]
        words = (command, *files, *(flag(key, value) for key, value in flags.items()))
        return Variant(name, stage, words, self.resolved(name, words))

    def resolved(self, name: str, words: Sequence[str]) -> Mapping[str, Any]:
        key = tuple(words)
        if key not in self.known:
            try:
                self.known[key] = self.resolver(words)
            except UsageError as error:
                raise UsageError([f"{self.study.path}: {name}: {problem}" for problem in error.problems]) from error
        return self.known[key]


def _unfit(study: StudyFile, variant: Variant) -> list[str]:
    """What a command of a study must not say."""
    everything = flatten(variant.config)
    found = [
        f"{key} is {everything[key]!r}; leave it null, the runner chooses"
        for key in ("model.init_args.init_from", "model.init_args.seed", "ckpt_path")
        if everything.get(key) is not None
    ]
    if "model.init_args.init_from" not in everything:
        found.append("the model has no init_from to start from another stage's checkpoint; give an SFT or GRPO module")
    if everything.get("trainer.logger") not in {None, True}:
        found.append("trainer.logger is given; leave it null, the report reads the default's metrics.csv")
    if everything.get("trainer.num_nodes", 1) != 1:
        found.append(f"trainer.num_nodes is {everything['trainer.num_nodes']}; a job of a study runs on one machine")
    return [f"{study.path}: {variant.name}: {problem}" for problem in found]


def write_resolved(variant: Variant, folder: Path) -> Path:
    """Writes a variant's configuration, which other commands can be given as their `--config`."""
    path = folder / f"{variant.name}.yaml"
    text = yaml.safe_dump(dict(variant.config), sort_keys=False, allow_unicode=True)
    write_text(path, text)
    return path
