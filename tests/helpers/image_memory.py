"""What it takes to open an image, measured in a process that has done nothing else.

In the tests' own process other work hides the growth, or adds to it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peak import process_bytes
from datamodules.images import ImageError, open_rgb, read_header
from helpers.hostile_images import png

_ROOT = Path(__file__).resolve().parents[2]
_LIMIT = 10_000


def opened_alone(contents: Sequence[bytes]) -> list[tuple[str, int]]:
    """Opens images of at most 10,000 pixels, and reads their headers, in one process of their own.

    Args:
        contents: Their files, the one that takes most memory last: what it left free would hide another's need.

    Returns:
        For each, its size or what was wrong with it, and by how many KiB the largest resident set grew.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "tests")])}
    told = json.dumps([b64encode(content).decode() for content in contents])
    command = [sys.executable, "-m", "helpers.image_memory"]
    done = subprocess.run(command, input=told, capture_output=True, text=True, env=environment, check=True)
    return [(said, grown) for said, grown in json.loads(done.stdout)]


def _main() -> None:
    contents = [b64decode(text) for text in json.load(sys.stdin)]
    for harmless in (png(), b"?"):  # what the first image costs: all decoders
        _open(harmless)
    found = []
    for content in contents:
        before = process_bytes("VmHWM")  # `ru_maxrss` would also know that of the process which started this one
        found.append((_open(content), (process_bytes("VmHWM") - before) // 1024))
    print(json.dumps(found))


def _open(content: bytes) -> str:
    try:
        read_header(Path("/nowhere"), "a.png", max_pixels=_LIMIT, content=content)
        return str(open_rgb(Path("/nowhere"), "a.png", max_pixels=_LIMIT, content=content).size)
    except ImageError as error:
        return str(error)


if __name__ == "__main__":
    _main()
