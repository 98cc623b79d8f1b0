"""Replies on disk by the content of the question: one file each, written at once and never changed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 23
"""A larger file is neither written nor read."""


class ReplyCache:
    """A folder of replies that any number of threads, processes and ranks may read and write together.

    A file holds the question beside the reply. One that is broken, or holds another question, counts as absent and is
    replaced by the next reply.
    """

    def __init__(self, folder: Path) -> None:
        """Names the folder; it is made when it is first needed.

        Args:
            folder: Where the files are.
        """
        self.folder = folder
        self.trouble = ""
        """Why a reply could not be kept; empty as long as all could."""

    def prepare(self) -> None:
        """Makes the folder and a trial file in it.

        Raises:
            OSError: If that does not work.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".trial-"):
            pass

    def path(self, question: Mapping[str, Any]) -> Path:
        """Where the reply to a question lies."""
        text = json.dumps(question, sort_keys=True, ensure_ascii=True, allow_nan=False)
        name = hashlib.sha256(text.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.json"

    def get(self, question: Mapping[str, Any]) -> str | None:
        """The reply to a question, None if there is none that can be read."""
        path = self.path(question)
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            entry = json.loads(content) if len(content) <= MAX_FILE_BYTES else None
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(entry, dict) or entry.get("question") != json.loads(json.dumps(question)):
            return None
        reply = entry.get("reply")
        return reply if isinstance(reply, str) else None

    def put(self, question: Mapping[str, Any], reply: str) -> None:
        """Keeps a reply. A disk that cannot take it is warned of once."""
        path = self.path(question)
        content = json.dumps({"question": question, "reply": reply}, indent=1).encode()
        if len(content) > MAX_FILE_BYTES:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            if not self.trouble:
                self.trouble = str(error)
                _log.warning("replies cannot be kept in %s: %s", self.folder, error)
