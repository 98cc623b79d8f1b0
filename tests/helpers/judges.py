"""A judge that replies by a script, and the image of rows in tests."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image


class ScriptedJudge:
    """Gives the replies of a script, one a call, then no more (None), and notes what it was asked."""

    def __init__(self, replies: Sequence[str | None] = ()) -> None:
        self.replies = list(replies)
        self.prompts: list[str] = []
        self.temperatures: list[float] = []

    def __call__(self, prompt: str, temperature: float) -> str | None:
        self.prompts.append(prompt)
        self.temperatures.append(temperature)
        return self.replies.pop(0) if self.replies else None


def picture(width: int = 40, height: int = 30) -> str:
    """The base64 text of a PNG file in grey."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (120, 120, 120)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
