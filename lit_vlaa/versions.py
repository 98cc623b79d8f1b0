"""Versions of what is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed(name: str) -> str | None:
    """The version of a distribution; None where there is none, as of sources that are run without being installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
