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
_SPLITS = "steps/splits.json"
_BEGUN = (_LOCK, _SPLITS, "steps/1_metadata.jsonl")
"""Files by which a build's folder is known, also where a copy left hidden ones out."""
_OWN = {"steps", "shards", "cache"}
_HARMLESS = re.compile(r"\..*|lost\+found|.*\.(?:log|out|err|ya?ml)|slurm-.*")
"""Hidden files, a disk's own, and what a job writes or is written in beside what it makes."""
_RESULTS = re.compile(r"README\.md|report\.json|rejects\.jsonl|funnel\.png|VLAA-Thinking-(?:SFT|GRPO)-\d+K?\.json")


def refuse_foreign(output: Path) -> None:
    """Looks for what another command or the user keeps in a folder in which no build was begun.

    Raises:
        UsageError: If there is anything.
    """
    if not output.is_dir() or any((output / name).exists() for name in _BEGUN) or any(output.glob(f"shards/*/{_LOCK}")):
        return
    names = sorted(entry.name for entry in output.iterdir())
    found = [name for name in names if name not in _OWN and not _HARMLESS.fullmatch(name)]
    if found:
        more = f" and {len(found) - 1} more" if found[1:] else ""
        reason = f"--output-dir {output} holds {found[0]}{more}, and no build was begun there"
        raise UsageError([f"{reason}; name a new or empty folder, or that of an earlier build"])


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
        self._file = output / _SPLITS

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
