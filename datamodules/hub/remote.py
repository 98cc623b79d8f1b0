"""Files of a data set on the Hub: what it says of them, and how they come here.

`huggingface_hub` does the talking: `HF_ENDPOINT` (a mirror), `HF_TOKEN`, `HF_HUB_OFFLINE`, proxies and certificates
count as they do for it. It does not keep what it has when a download breaks off, so the bytes are kept here.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from huggingface_hub import HfApi, RepoFile, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from lit_vlaa.checks import UsageError
from lit_vlaa.digests import sha256_of
from lit_vlaa.whole_files import sync_folder

_PARTS = ".lit_vlaa_download/parts"
# The Hub's errors inherit from those of the HTTP library that its client is built on, whichever that is.
_FAILURES: tuple[type[Exception], ...] = tuple(base for base in HfHubHTTPError.__bases__ if base is not OSError)
_UNREACHABLE: tuple[type[Exception], ...] = (OSError, ValueError, *_FAILURES)
_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SIGNATURE = re.compile(r"(https?://[^\s'\"?]*)\?[^\s'\"]*")
AGAIN = "run the same command again: it goes on where it stopped"
"""What to do after an interruption."""


class TransferError(ValueError):
    """A file that did not come as the Hub describes it; the message says what to do."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What the Hub says of a file."""

    path: str
    size: int
    """Bytes."""
    checksum: str
    """In hex: SHA-256, or for small files SHA-1 as Git computes it."""

    def matches(self, path: Path) -> bool:
        """Whether a file here has this content."""
        if path.stat().st_size != self.size:
            return False
        if len(self.checksum) == 64:
            return sha256_of(path) == self.checksum
        digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: digest).hexdigest() == self.checksum


@dataclass(frozen=True, slots=True)
class Repository:
    """A data set at one commit."""

    name: str
    commit: str
    endpoint: str
    files: dict[str, RemoteFile]

    @classmethod
    def find(cls, name: str, revision: str | None) -> Repository:
        """Asks the Hub for a data set's files.

        Args:
            name: `owner/name`.
            revision: Branch, tag or commit; None for the main branch.

        Raises:
            UsageError: If the Hub cannot be reached, or has no such data set, revision or access.
        """
        api = HfApi()
        try:
            commit = api.dataset_info(name, revision=revision).sha
            if not commit:
                raise TransferError(f"{api.endpoint} names no commit of {name}")
            entries = api.list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset")
            files = [entry for entry in entries if isinstance(entry, RepoFile)]
        except (AttributeError, KeyError, TypeError) as error:
            raise UsageError([f"{_shown(api.endpoint)} does not answer as the Hub does; see HF_ENDPOINT"]) from error
        except _UNREACHABLE as error:
            where = f"--repo {name}" + (f" --revision {revision}" if revision else "")
            raise UsageError(
                [f"{where}: {explain(error)}; seen at {_shown(api.endpoint)} (HF_ENDPOINT, HF_TOKEN)"]
            ) from error
        sums = {
            file.path: (file.lfs.sha256, file.lfs.size) if file.lfs else (file.blob_id, file.size) for file in files
        }
        found = {path: RemoteFile(path, size, checksum) for path, (checksum, size) in sums.items()}
        for file in found.values():
            # The checksum becomes a file's name here.
            if not (isinstance(file.checksum, str) and _CHECKSUM.fullmatch(file.checksum)):
                raise UsageError(
                    [f"{_shown(api.endpoint)} states the checksum {str(file.checksum)[:80]!a} for {file.path!a}"]
                )
            if not (isinstance(file.size, int) and file.size >= 0):
                raise UsageError([f"{_shown(api.endpoint)} states the size {str(file.size)[:80]!a} for {file.path!a}"])
        return cls(name, commit, api.endpoint, found)

    def to_come(self, file: RemoteFile, *, state: Path) -> int:
        """Returns how many bytes of a file `fetch` would ask for."""
        part = _part(file, state)
        return file.size - min(part.stat().st_size, file.size) if part.exists() else file.size

    def fetch(self, file: RemoteFile, target: Path, *, state: Path) -> None:
        """Brings one file here, checked; `target` appears whole.

        What arrived before an error stays, and the next call asks for the rest. A part belongs to the content that was
        promised, so that one of another revision is not continued.

        Args:
            file: One of `files`.
            target: Where it goes.
            state: Folder on the same file system where parts are kept.

        Raises:
            TransferError: If it breaks off, or is not what the Hub promised; in the latter case the part is removed.
            OSError: If it cannot be written.
        """
        part = _part(file, state)
        part.parent.mkdir(parents=True, exist_ok=True)
        if part.exists() and part.stat().st_size > file.size:
            part.unlink()
        try:
            with part.open("ab") as stream:
                if stream.tell() < file.size:
                    self._receive(file, stream)
        except _FAILURES as error:
            raise TransferError(f"{file.path}: {explain(error)}; {AGAIN}") from error
        if not file.matches(part):
            size = part.stat().st_size
            part.unlink()
            raise TransferError(
                f"{file.path}: the checksum of the {size} bytes that came from {_shown(self.endpoint)} is not the one "
                f"that it states, {file.checksum}; they were removed. Run the command again; if that does not help, "
                "use another mirror (HF_ENDPOINT)"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        sync_folder(target.parent)

    def _receive(self, file: RemoteFile, stream: BinaryIO) -> None:
        """Appends what is missing. The address is asked for anew each time, as signed ones run out."""
        url = hf_hub_url(self.name, file.path, repo_type="dataset", revision=self.commit, endpoint=self.endpoint)
        location = get_hf_file_metadata(url).location
        headers = build_hf_headers()
        if urlsplit(location)[:2] != urlsplit(url)[:2]:
            headers.pop("authorization", None)
        have = stream.tell()
        try:
            http_get(
                location,
                cast("BinaryIO", _Capped(stream, file)),
                resume_size=have,
                headers=headers,
                expected_size=file.size,
                displayed_filename=file.path,
            )
        except OSError as error:
            if error.errno is not None or isinstance(error, _FAILURES):
                raise
            # Without a number it is the client's own complaint about the length.
            raise TransferError(
                f"{file.path}: it broke off at {stream.tell()} of {file.size} bytes; {AGAIN}"
            ) from error


def _part(file: RemoteFile, state: Path) -> Path:
    return state / _PARTS / file.checksum


class _Capped:
    """A file that takes no more than was promised, whatever a server sends."""

    def __init__(self, stream: BinaryIO, file: RemoteFile) -> None:
        self._stream, self._file = stream, file

    def write(self, data: bytes) -> int:
        if self._stream.tell() + len(data) > self._file.size:
            raise TransferError(
                f"{self._file.path}: more bytes come than the {self._file.size} that were stated; if that happens "
                "again, use another mirror (HF_ENDPOINT)"
            )
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def explain(error: BaseException) -> str:
    """What went wrong in one line, without the user's token, which a server might repeat, and without signatures."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = _SIGNATURE.sub(r"\1", " ".join(lines[:3])) or type(error).__name__
    token = get_token()
    return text.replace(token, "***") if token else text


def _shown(endpoint: str) -> str:
    """An address without what may stand before its host."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
