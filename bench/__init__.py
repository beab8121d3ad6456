"""clmerge: a benchmark harness for continual learning by weight merging."""

__version__ = "0.1.0"
