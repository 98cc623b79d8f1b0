"""What a verifier raises when it cannot judge."""

from __future__ import annotations


class UnparsableTruthError(ValueError):
    """The ground truth of a row cannot be read by its verifier; says nothing about the policy's answer."""
