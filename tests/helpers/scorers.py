"""Scorers for runs in tests."""

from __future__ import annotations

from collections.abc import Sequence

from lit_vlaa.types import RewardRequest


class Down:
    """A scorer whose server is gone: every answer fails."""

    def __call__(self, requests: Sequence[RewardRequest], answers: Sequence[str]) -> list[float | None]:  # noqa: ARG002
        return [None] * len(answers)


class Longer:
    """A scorer of quality that likes long answers and looks at the image."""

    def __call__(self, requests: Sequence[RewardRequest], answers: Sequence[str]) -> list[float | None]:
        wide = [max(image.width for image in request.images()) if request.images else 0 for request in requests]
        return [len(answer) + width / 1000 for answer, width in zip(answers, wide, strict=True)]


class Plain:
    """A scorer as a new user writes it: no annotations, no base class."""

    def __init__(self, top=1.0):  # type: ignore[no-untyped-def]
        self.top = top

    def __call__(self, requests, answers):  # type: ignore[no-untyped-def]  # noqa: ARG002
        return [self.top for _ in answers]
