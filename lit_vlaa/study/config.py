"""The study file: which stages there are, which arms take which of them, and what is meant to differ."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_vlaa.checks import UsageError
from lit_vlaa.hints import meant, unreadable
from lit_vlaa.study.claims import read_options
from lit_vlaa.yaml_files import TOO_LARGE, too_large

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
_KEY = re.compile(r"[A-Za-z_][\w.+\[\]#-]*", re.ASCII)
_TOP = ["name", "description", "output_dir", "seeds", "prepare", "start", "common", "stages", "stages_differ"]
_TOP += ["evaluation", "arms", "perplexity", "claims"]
_WHOLE_SECTIONS = {"trainer", "model", "data", "model.init_args", "data.init_args"}


class _Unset:
    """Type of `UNSET`."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET = _Unset()
"""The value of a difference that a config file or a flag of the arm makes."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A declared difference of one key."""

    reason: str
    value: Any = UNSET


@dataclass(frozen=True, slots=True)
class Settings:
    """What a `lit-vlaa` command is given: files, then flags."""

    config: tuple[Path, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Arm:
    """One way from the base model to an evaluated one."""

    name: str
    title: str
    steps: tuple[str, ...]
    """Stages, in order; none for the base model."""
    settings: Mapping[str, Settings]
    """By stage: what this arm adds to it."""
    differs: Mapping[str, Mapping[str, Difference]]
    """By stage: the keys that may hold another value than the stage itself."""


@dataclass(frozen=True, slots=True)
class StudyFile:
    """A study file, checked."""

    path: Path
    text: Mapping[str, Any]
    """As it was read."""
    name: str
    description: str
    output_dir: Path
    seeds: tuple[int, ...]
    prepare: tuple[tuple[str, ...], ...]
    """Words of `lit-vlaa` commands that make the data."""
    start: Settings | None
    """The stage that makes the base model; None where it is the backbone as released."""
    start_seed: int
    common: Settings
    stages: Mapping[str, Settings]
    evaluation: Settings
    evaluation_differs: Mapping[str, Difference]
    arms: Mapping[str, Arm]
    stages_differ: Mapping[str, Difference]
    perplexity: bool
    claims: Any


def read(path: Path, output_dir: Path | None = None) -> StudyFile:
    """Reads a study file.

    Args:
        path: YAML. Config files that it names are looked for from the working directory, then beside it.
        output_dir: Takes the place of the file's own.

    Raises:
        UsageError: If it cannot work; one line for each problem, with the key and the remedy.
    """
    if too_large(path):
        raise UsageError([f"{path}: {TOO_LARGE}"])
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            [f"--config {path} {unreadable(path, error)}; give a study file, such as configs/study/tiny.yaml"]
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError([f"{path} is not YAML: {' '.join(str(error).split())}"]) from error
    return _Reader(path).study(content, output_dir)


def full_key(key: str) -> str:
    """`model.optim.lr` as `model.init_args.optim.lr`, its name in a resolved configuration; others as they are."""
    first, _, rest = key.partition(".")
    if first in {"model", "data"} and rest and rest.partition(".")[0] not in {"class_path", "init_args"}:
        return f"{first}.init_args.{rest}"
    return key


class _Reader:
    """Checks one study file and gathers what is wrong with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []

    def study(self, content: Any, output_dir: Path | None) -> StudyFile:
        top = self.mapping(content, "the file", _TOP)
        start = (
            self.mapping(top["start"], "start", ["config", "flags", "seed"]) if top.get("start") is not None else None
        )
        evaluation = self.mapping(top.get("evaluation"), "evaluation", ["config", "flags", "differs"])
        stages = self.mapping(top.get("stages"), "stages")
        name = self.text(top.get("name") or self.path.stem, "name")
        study = StudyFile(
            path=self.path,
            text=top,
            name=name,
            description=self.text(top.get("description") or "", "description"),
            output_dir=output_dir or Path(self.text(top.get("output_dir") or f"runs/study/{name}", "output_dir")),
            seeds=tuple(self.seeds(top.get("seeds"))),
            prepare=tuple(self.prepare(top.get("prepare"))),
            start=None if start is None else self.settings({k: v for k, v in start.items() if k != "seed"}, "start"),
            start_seed=self.seed((start or {}).get("seed", 42), "start.seed"),
            common=self.settings(top.get("common"), "common"),
            stages={self.name(stage, "stages"): self.settings(own, f"stages.{stage}") for stage, own in stages.items()},
            evaluation=self.settings({k: v for k, v in evaluation.items() if k != "differs"}, "evaluation"),
            evaluation_differs=self.differences(evaluation.get("differs"), "evaluation.differs", values=False),
            arms={
                name: self.arm(name, own, tuple(stages)) for name, own in self.mapping(top.get("arms"), "arms").items()
            },
            stages_differ=self.differences(top.get("stages_differ"), "stages_differ", values=False),
            perplexity=self.boolean(top.get("perplexity", False), "perplexity"),
            claims=top.get("claims"),
        )
        try:
            read_options(study.claims)
        except ValueError as error:
            self.problems.append(f"{self.path}: {error}")
        if not study.arms:
            self.problems.append(f"{self.path}: arms: a study needs at least one, such as base: {{steps: []}}")
        if not evaluation:
            self.problems.append(f"{self.path}: evaluation: say how the arms are evaluated, with config and flags")
        used = {stage for arm in study.arms.values() for stage in arm.steps}
        for stage in stages:
            if stage not in used:
                self.problems.append(f"{self.path}: stages.{stage} is a step of no arm; take it out, or add an arm")
        if self.problems:
            raise UsageError(self.problems)
        return study

    def arm(self, name: Any, content: Any, stages: Sequence[str]) -> Arm:
        where = f"arms.{self.name(name, 'arms')}"
        own = self.mapping(content, where, ["title", "steps", "config", "flags", "differs"])
        steps = own.get("steps", [])
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            self.wrong(f"{where}.steps", "a list of stages", steps)
            steps = []
        for step in steps:
            if step not in stages:
                self.problems.append(f"{self.path}: {where}.steps: unknown stage {step!r}; {meant(step, list(stages))}")
        settings: dict[str, dict[str, Any]] = {}
        for part in ("config", "flags"):
            for stage, value in self.mapping(own.get(part), f"{where}.{part}", steps).items():
                settings.setdefault(stage, {})[part] = value
        return Arm(
            name=str(name),
            title=self.text(own.get("title") or name, f"{where}.title"),
            steps=tuple(steps),
            settings={stage: self.settings(value, f"{where}, stage {stage}") for stage, value in settings.items()},
            differs={
                stage: self.differences(value, f"{where}.differs.{stage}", values=True)
                for stage, value in self.mapping(own.get("differs"), f"{where}.differs", steps).items()
            },
        )

    def settings(self, content: Any, where: str) -> Settings:
        own = self.mapping(content, where, ["config", "flags"])
        files = own.get("config") or []
        files = [files] if isinstance(files, str) else files
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            self.wrong(f"{where}.config", "a list of files", files)
            files = []
        flags = self.mapping(own.get("flags"), f"{where}.flags")
        return Settings(
            config=tuple(self.file(file, f"{where}.config") for file in files),
            flags={self.key(key, f"{where}.flags"): value for key, value in flags.items()},
        )

    def differences(self, content: Any, where: str, *, values: bool) -> dict[str, Difference]:
        found: dict[str, Difference] = {}
        for given, own in self.mapping(content, where).items():
            key = self.key(given, where)
            entry = {"reason": own} if isinstance(own, str) else own
            entry = self.mapping(entry, f"{where}.{key}", ["reason", *(["value"] if values else [])])
            reason = entry.get("reason")
            if not isinstance(reason, str) or not reason.strip():
                self.problems.append(f"{self.path}: {where}.{key}: give the reason of the difference in words")
            elif key in _WHOLE_SECTIONS:
                self.problems.append(f"{self.path}: {where}.{key} covers a whole section; name the keys that differ")
            else:
                found[key] = Difference(reason.strip(), entry.get("value", UNSET))
        return found

    def seeds(self, content: Any) -> Iterator[int]:
        given = content if isinstance(content, list) else [content]
        if not given or len(set(map(str, given))) < len(given):
            self.problems.append(f"{self.path}: seeds: give one or more, each once, such as [1, 2, 3]")
        yield from (self.seed(seed, "seeds") for seed in given)

    def seed(self, value: Any, where: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
            self.wrong(where, "a whole number from 0", value)
            return 0
        return value

    def prepare(self, content: Any) -> Iterator[tuple[str, ...]]:
        for command in [] if content is None else content if isinstance(content, list) else [content]:
            if isinstance(command, list) and command and all(isinstance(word, (str, int, float)) for word in command):
                yield tuple(map(str, command))
            else:
                self.wrong("prepare", "a list of commands, each a list of words after `lit-vlaa`", command)

    def mapping(self, content: Any, where: str, known: Sequence[str] | None = None) -> dict[str, Any]:
        if content is None:
            return {}
        if not isinstance(content, dict):
            self.wrong(where, "keys with values", content)
            return {}
        for key in content:
            if known is not None and key not in known:
                self.problems.append(f"{self.path}: {where}: unknown key {key!r}; {meant(str(key), known)}")
        return {str(key): value for key, value in content.items()}

    def file(self, name: str, where: str) -> Path:
        for candidate in (Path(name), self.path.parent / name):
            if candidate.is_file():
                return candidate
        self.problems.append(f"{self.path}: {where}: {name} is neither here ({Path.cwd()}) nor beside the study file")
        return Path(name)

    def key(self, key: str, where: str) -> str:
        if not _KEY.fullmatch(key):
            self.wrong(where, "keys such as model.optim.lr", key)
        return full_key(key)

    def name(self, name: Any, where: str) -> str:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self.wrong(where, "names of letters, digits and . _ + -", name)
        return str(name)

    def text(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            self.wrong(where, "text", value)
        return str(value)

    def boolean(self, value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            self.wrong(where, "true or false", value)
        return bool(value)

    def wrong(self, where: str, expected: str, got: Any) -> None:
        self.problems.append(f"{self.path}: {where}: expected {expected}, got {str(got)[:80]!r}")
