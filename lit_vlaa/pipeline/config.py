"""What `lit-vlaa data build` is told by its file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ArgumentParser

from lit_vlaa.checks import UsageError, one_line
from lit_vlaa.endpoints.settings import EndpointConfig
from lit_vlaa.hints import hint, unknown_option, unreadable
from lit_vlaa.traces import CUES, Matching
from lit_vlaa.yaml_files import TOO_LARGE, too_large

Adapter = Literal["vlaa", "llava", "jsonl", "hub"]
Group = Literal["image", "question"]

STEPS = ("metadata", "caption", "distil", "rewrite", "verify", "curate")
"""The steps in order."""

MENTIONS = (
    *("caption", "captions", "captioned", "captioning", "description", "descriptions", "as described", "is described"),
    *("are described", "was described", "were described", "described in", "describes the image"),
    *("describes the picture", "describes the scene", "text provided", "provided text"),
)
"""Words by which a trace gives away that its author read about the image; searched for as whole words."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One set of images, questions and answers."""

    adapter: Adapter
    """`vlaa` (the released forms), `llava` (conversations), `jsonl` (rows with columns), `hub` (a `datasets` set)."""
    path: str
    """The file, below the folder of the configuration unless absolute; for `hub` a data set's id or a local folder."""
    name: str | None = None
    """How the data card calls the source; null takes the paper's name by image folder or id, else `other`."""
    kind: str | None = None
    """Verifier of its rows; null takes the row's own, for `vlaa` the source's, else judges by the answer's look."""
    columns: dict[str, str] = field(default_factory=dict)
    """For `jsonl` and `hub`: where `image`, `question`, `answer`, `id` and `choices` stand, if under other names."""
    context: list[str] = field(default_factory=list)
    """Columns (`meta.rationale` for one within `meta`) that tell the captioner and the reasoner about the image; never
    name one that tells the answer. For `vlaa` the paper's three sources have theirs already."""
    turns: Literal["first", "all"] = "first"
    """For `llava`: the first question of a conversation, or each, where later ones stand without the earlier."""
    split: str = "train"
    """For `hub`: the split."""
    subset: str | None = None
    """For `hub`: the configuration's name."""
    revision: str | None = None
    """For `hub`: the commit or tag; null takes the newest."""

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ValueError(f"a source's name may hold letters, digits, '_', '.', '-' only, got {self.name!r}")
        if unknown := sorted(set(self.columns) - {"image", "question", "answer", "id", "choices"}):
            raise ValueError(f"columns names {unknown}; known are image, question, answer, id, choices")
        if self.columns and self.adapter in {"vlaa", "llava"}:
            raise ValueError(f"columns has no meaning for adapter {self.adapter}, whose rows have names of their own")


@dataclass(frozen=True, kw_only=True)
class AskConfig:
    """A step that asks a model."""

    endpoint: EndpointConfig
    """Whom it asks."""
    prompt: str
    """File of the prompt, below the folder of the configuration unless absolute."""
    max_unanswered: float = 0.0
    """Share of the rows that may be rejected because no reply came; above it the step stops, to be run again."""
    stop_after: int | None = 100
    """Rows after which the step stops if none has passed, before more is spent; null never."""

    def __post_init__(self) -> None:
        if self.stop_after is not None and self.stop_after < 1:
            raise ValueError(f"stop_after must be at least 1, or null, got {self.stop_after}")
        if not 0 <= self.max_unanswered <= 1:
            raise ValueError(f"max_unanswered must be in [0, 1], got {self.max_unanswered}")


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(AskConfig):
    """Step 2."""

    max_pixels: int = 1024 * 1024
    """Larger images are sent scaled down to so many pixels."""
    max_words: int = 1500
    """A longer caption is rejected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "max_pixels", "max_words")


@dataclass(frozen=True, kw_only=True)
class DistilConfig(AskConfig):
    """Step 3."""

    max_words: int = 4000
    """A longer trace is rejected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "max_words")


@dataclass(frozen=True, kw_only=True)
class RewriteConfig(AskConfig):
    """Step 4."""

    max_word_change: int = 15
    """Words, between blanks, by which trace and answer together may become longer or shorter (paper)."""
    mentions: list[str] = field(default_factory=lambda: list(MENTIONS))
    """Words of which none may be left, except those that the question itself holds."""
    tries: int = 2
    """Replies asked for until one can be read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "tries")
        if self.max_word_change < 0:
            raise ValueError(f"max_word_change must be 0 or positive, got {self.max_word_change}")
        _words(self.mentions, "mentions")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(AskConfig):
    """Step 5."""

    tries: int = 3
    """Replies asked for until one says Yes or No."""
    rules_first: bool = False
    """Keep what the rule of the row's kind (digit, mcq, math, iou) finds right, and ask only about the others."""
    min_iou: float = 0.5
    """Overlap with the true box from which `rules_first` takes a box for right."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "tries")
        if not 0 < self.min_iou <= 1:
            raise ValueError(f"min_iou must be in (0, 1], got {self.min_iou}")


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """Step 6."""

    cues: list[str] = field(default_factory=lambda: list(CUES))
    """What marks an aha moment."""
    matching: Matching = "substring"
    """`substring` as in the paper, or `words`."""
    disjoint_by: list[Group] = field(default_factory=lambda: ["image", "question"])
    """What no two rows of different splits may share. With `question`, templated questions drag each other along."""

    def __post_init__(self) -> None:
        _words(self.cues, "cues")


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """The whole build."""

    sources: list[SourceConfig]
    """Where questions come from."""
    image_root: str
    """Folder of all images, below the folder of the configuration unless absolute; later `--data.image_root`."""
    caption: CaptionConfig
    """Step 2: a vision-language model describes the image."""
    distil: DistilConfig
    """Step 3: a reasoning model answers from the caption."""
    rewrite: RewriteConfig
    """Step 4: the trace loses its mentions of the caption."""
    verify: VerifyConfig
    """Step 5: the answer is compared with the truth."""
    curate: CurateConfig = field(default_factory=CurateConfig)
    """Step 6: rows with an aha cue to RL, the others to SFT."""
    name: str = "VLAA-Thinking-built"
    """Title of the data card."""
    max_image_pixels: int = 50_000_000
    """Width times height above which an image is refused unopened."""
    cache_dir: str | None = None
    """Folder of the replies; null takes `cache` in the output folder."""

    def __post_init__(self) -> None:
        _positive(self, "max_image_pixels")
        if not self.sources:
            raise ValueError("sources is empty; name one at least")
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name may hold letters, digits, '_', '.', '-' only, got {self.name!r}")

    def asking(self) -> dict[str, AskConfig]:
        """The steps that ask a model, in order."""
        return {"caption": self.caption, "distil": self.distil, "rewrite": self.rewrite, "verify": self.verify}

    def settings(self, step: str) -> dict[str, Any]:
        """What of the configuration decides the outcome of a step, beside its prompt and its input."""
        if step == "metadata":
            sources = [asdict(source) for source in self.sources]
            return {"sources": sources, "image_root": self.image_root, "max_image_pixels": self.max_image_pixels}
        own: dict[str, Any] = asdict(getattr(self, step))
        if step == "curate":
            return own
        endpoint: EndpointConfig = self.asking()[step].endpoint
        del own["stop_after"]
        return {**own, "endpoint": endpoint.sampling(), "prompt": None}


class _Keys(ArgumentParser):
    """Says what was probably meant by an unknown key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        option = unknown_option(message)
        known = (flag.lstrip("-") for flag in self._option_string_actions)
        super().error(message if option is None else f"{message}{hint(option, known)}", ex)


def load(path: Path) -> BuildConfig:
    """Reads the configuration.

    Raises:
        UsageError: If it cannot be read; one line that names the file and the key.
    """
    if too_large(path):
        raise UsageError([f"--config {path}: {TOO_LARGE}"])
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError([f"--config {path} {unreadable(path, error)}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError([f"--config {path} is no YAML: {' '.join(str(error).split())[:300]}"]) from error
    if not isinstance(given, dict):
        raise UsageError([f"--config {path} must hold keys such as sources and image_root"])
    parser = _Keys(exit_on_error=False)
    parser.add_class_arguments(BuildConfig, "build")
    try:
        config: BuildConfig = parser.instantiate(parser.parse_object({"build": given})).build
    except Exception as error:  # jsonargparse lets through whatever a check of a value raises
        told = [line for line in str(error).splitlines() if "Problem with given class_path" not in line]
        line = one_line("\n".join(told)).replace("--build.", "").replace("--build", "").replace("build.", "")
        raise UsageError([f"--config {path}: {line.lstrip(': ')[:400]}"]) from error
    return config


def _positive(config: object, *names: str) -> None:
    step = type(config).__name__.removesuffix("Config").lower()
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{step}.{name} must be at least 1, got {getattr(config, name)}")


def _words(words: Sequence[str], name: str) -> None:
    if not all(word.strip() for word in words):
        raise ValueError(f"{name} must not hold an empty text")
