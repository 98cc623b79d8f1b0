"""Takes a picture of a run's TensorBoard in headless Chromium.

    python docs/scripts/tensorboard_screenshot.py runs/quickstart/grpo/version_0 docs/images/tensorboard.png

Nothing but this machine is reached: TensorBoard listens on the loopback address, and Chromium has no other.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import Any, Self

TAGS = (
    "reward/mean",
    "reward/open_ended",
    "rollout/length",
    "rollout/no_answer",
    "rollout/zero_variance",
    "policy/kl",
    "policy/entropy",
    "policy/grad_norm",
    "optim/lr",
)
"""What to look at first in a run of GRPO."""

SIZE = (1400, 1290)
_DRAWS_S = 15.0
_WITHOUT_SETTINGS = """document.querySelector('[aria-label="Toggle settings side pane"]').click()"""
_WITHOUT_TABLES = """document.querySelectorAll('[aria-label="Deselect fob"]').forEach(mark => mark.click())"""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main(logs: Path, picture: Path) -> None:
    """Takes the picture.

    Args:
        logs: The log folder of one run.
        picture: The PNG file to write.
    """
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"none of {', '.join(_BROWSERS)} is installed")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", "127.0.0.1", "--port", "0"]
    with (
        tempfile.TemporaryDirectory() as profile,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server,  # noqa: S603 - our own command
    ):
        try:
            _take(browser, _address(server), picture, profile)
        finally:
            server.terminate()
    print(picture)  # noqa: T201


def _address(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None  # noqa: S101 - a pipe
    for line in server.stderr:
        if found := re.search(r"TensorBoard \S+ at (http://\S+)", line):
            return found[1].rstrip("/")
    raise SystemExit("TensorBoard did not start")


def _take(browser: str, address: str, picture: Path, profile: str) -> None:
    query = {"tagFilter": f"^({'|'.join(TAGS)})$", "smoothing": "0.9", "darkMode": "false"}
    url = f"{address}/?{urllib.parse.urlencode(query)}#timeseries"
    with Browser(browser, profile) as page:
        page.ask("Page.navigate", url=url)
        time.sleep(_DRAWS_S)  # TensorBoard does not say when its curves stand
        for script in (_WITHOUT_SETTINGS, _WITHOUT_TABLES, _WITHOUT_TABLES):  # the last for cards that came into view
            page.ask("Runtime.evaluate", expression=script)
            time.sleep(_DRAWS_S / 5)
        picture.write_bytes(base64.b64decode(page.ask("Page.captureScreenshot", format="png")["data"]))


def _pipe() -> tuple[int, int]:
    """A pipe whose numbers are not those that the browser expects its own under."""
    ends = os.pipe()
    reading, writing = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 5) for end in ends)
    for end in ends:
        os.close(end)
    return reading, writing


class Browser:
    """A page in headless Chromium, spoken to over the pipe of its DevTools protocol."""

    def __init__(self, program: str, profile: str) -> None:
        to_browser, self._write = _pipe()
        self._read, from_browser = _pipe()

        def as_it_expects() -> None:
            os.dup2(to_browser, 3)
            os.dup2(from_browser, 4)

        flags = [
            "--headless=new",
            "--no-sandbox",  # of a page that this script itself serves; needed where the user is root
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            f"--window-size={SIZE[0]},{SIZE[1]}",
        ]
        self._process = subprocess.Popen(  # noqa: S603 - a browser that `which` found
            [program, *flags, "about:blank"],
            preexec_fn=as_it_expects,  # noqa: PLW1509 - there are no threads here
            close_fds=False,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number = 0
        self._session: dict[str, str] = {}
        self._left = b""

    def __enter__(self) -> Self:
        """Opens a page."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the browser."""
        self._process.terminate()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def ask(self, method: str, **params: Any) -> Any:
        """Sends a command and waits for its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found, end, self._left = self._left.partition(b"\0")
            if not end:
                piece = os.read(self._read, 2**20)
                if not piece:
                    raise SystemExit("the browser ended")
                self._left = found + piece
                continue
            reply = json.loads(found)
            if reply.get("id") == self._number:
                if "error" in reply:
                    raise SystemExit(f"{method}: {reply['error']}")
                return reply["result"]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
