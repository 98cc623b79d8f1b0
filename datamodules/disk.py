"""What a file system's complaints mean to the user of a command."""

from __future__ import annotations

import errno
from pathlib import Path


def explain(error: OSError, folder: Path, *, remedy: str) -> str:
    """Words an error that came up while a command wrote to a folder.

    Args:
        error: What was raised.
        folder: What `--output-dir` names.
        remedy: What else to do than to free space where there is none.

    Returns:
        One line that names the folder, or the file where it lies elsewhere.
    """
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk of --output-dir {folder}; free some, or {remedy}"
    if error.strerror is None or not error.filename:
        return " ".join(str(error).split())
    what = f"{error.filename}: {error.strerror}"
    ours = Path(error.filename).absolute().is_relative_to(folder.absolute())
    return f"--output-dir {folder}: {what}; give a folder that can be written to" if ours else what
