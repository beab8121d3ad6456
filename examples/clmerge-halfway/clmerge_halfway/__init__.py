"""Brings clmerge a method, a dataset, a protocol, a suite and a report (see pyproject.toml)."""
