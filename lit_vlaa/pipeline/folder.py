"""The output folder of a build: one build at a time, and nothing in it that is not the build's own."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_vlaa.checks import UsageError
from lit_vlaa.pipeline.rows import write_text

_LOCK = ".build.lock"
_RESULTS = re.compile(r"README\.md|report\.json|rejects\.jsonl|funnel\.png|VLAA-Thinking-(?:SFT|GRPO)-\d+K?\.json")


def refuse_foreign(output: Path) -> None:
    """Looks for files that the build would overwrite though another made them, such as the released splits.

    Raises:
        UsageError: If there are any.
    """
    if any((output / name).exists() for name in (_LOCK, "steps", "shards")) or not output.is_dir():
        return
    found = sorted(file.name for file in output.iterdir() if _RESULTS.fullmatch(file.name))
    if found:
        raise UsageError(
            [f"--output-dir {output} holds {found[0]}, which is not of a build; name a new or empty folder"]
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other builds out of a folder.

    Raises:
        UsageError: If one is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError([f"another build is at work in {folder}; wait for it or take another folder"]) from error
        yield


class SplitFiles:
    """The names of all splits that builds have written to an output folder, so that old ones can be removed.

    Args:
        output: The folder.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._file = output / "steps" / "splits.json"

    def claim(self, paths: Iterable[Path]) -> None:
        """Notes down what will be written.

        Raises:
            UsageError: If a file of this name is there that no build has written.
        """
        names = {path.name for path in paths}
        known = self._known()
        for name in sorted(names - known):
            if (self._output / name).exists():
                raise UsageError([f"{self._output / name} is not of this build; move it away and run again"])
        write_text(self._file, json.dumps(sorted(known | names)) + "\n")

    def remove_others(self, paths: Iterable[Path]) -> None:
        """Removes the splits that earlier runs wrote under other names."""
        names = {path.name for path in paths}
        for name in self._known() - names:
            (self._output / name).unlink(missing_ok=True)
        write_text(self._file, json.dumps(sorted(names)) + "\n")

    def _known(self) -> set[str]:
        try:
            names = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return set()
        return {name for name in names if isinstance(name, str) and _RESULTS.fullmatch(name)}
