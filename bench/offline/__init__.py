"""Merge checkpoints of any architecture; see :mod:`bench.offline.offline`."""

from bench.offline.offline import Offline, merge

__all__ = ["Offline", "merge"]
