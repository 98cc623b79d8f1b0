"""Prompts in files that users replace: `[system]` and `[user]` on lines of their own, `${name}` for what is put in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lit_vlaa.checks import UsageError

FIELDS: Mapping[str, frozenset[str]] = {
    "caption": frozenset({"context"}),
    "distil": frozenset({"caption", "context", "question", "instruction"}),
    "rewrite": frozenset({"question", "reasoning", "final"}),
    "verify": frozenset({"data"}),
}
"""What each step's prompt can hold."""

REQUIRED: Mapping[str, frozenset[str]] = {
    "caption": frozenset(),
    "distil": frozenset({"caption", "question"}),
    "rewrite": frozenset({"reasoning", "final"}),
    "verify": frozenset({"data"}),
}
"""What each must hold."""

MAX_BYTES = 1 << 16
_HEADING = re.compile(r"^\[(system|user)\][ \t]*$", re.MULTILINE)
_PLACE = re.compile(r"\$\{([^{}\n]*)\}")
_OTHER_FORM = re.compile(r"(?<!\$)\{+ *(\w+) *\}+|\$(\w+)|<<?(\w+)>>")
"""How other tools mark what is put in; nothing would be put in there."""


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A prompt as its file has it."""

    path: Path
    sha256: str
    """Of its text."""
    turns: tuple[tuple[str, str], ...]
    """Role and text of each turn."""

    def fill(self, values: Mapping[str, str]) -> list[dict[str, str]]:
        """Writes the messages.

        What is put in is not looked at again, so no value can pull in another.

        Args:
            values: Text by name.
        """
        return [
            {"role": role, "content": _PLACE.sub(lambda match: values[match[1]], text)} for role, text in self.turns
        ]


def load_prompt(path: Path, step: str) -> PromptFile:
    """Reads the prompt of a step.

    Raises:
        UsageError: If it cannot be read, or lacks what the step needs; one line that names the file and the remedy.
    """

    def bad(what: str) -> UsageError:
        return UsageError([f"{step}.prompt {path}: {what}"])

    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
        text = raw.decode("utf-8")
    except OSError as error:
        raise bad(f"cannot be read ({error.strerror or error}); take one of configs/data/prompts") from error
    except UnicodeDecodeError as error:
        raise bad("is not UTF-8") from error
    if len(raw) > MAX_BYTES:
        raise bad(f"is longer than {MAX_BYTES} bytes")
    head, *parts = _HEADING.split(text)
    roles, texts = parts[::2], [part.strip() for part in parts[1::2]]
    if head.strip() or roles not in (["user"], ["system", "user"]) or not all(texts):
        raise bad("must hold [user], or [system] and then [user], each on a line of its own and with text below it")
    found = {name for part in texts for name in _PLACE.findall(part)}
    if unknown := sorted(found - FIELDS[step]):
        raise bad(f"names {', '.join(map(repr, unknown))}; this step has {', '.join(sorted(FIELDS[step]))}")
    other = {name for part in texts for match in _OTHER_FORM.findall(part) for name in match if name in FIELDS[step]}
    if other:
        raise bad(f"marks {min(other)} in a form that means nothing here; write ${{{min(other)}}}")
    if missing := sorted(REQUIRED[step] - set(_PLACE.findall(texts[-1]))):
        raise bad(f"lacks ${{{missing[0]}}} in its [user] part")
    return PromptFile(path, hashlib.sha256(raw).hexdigest(), tuple(zip(roles, texts, strict=True)))
