"""Counts the bytes of tensors that are alive, on any device, also without numbers behind them."""

from benchmarks.peak import PeakBytes

__all__ = ["PeakBytes"]
