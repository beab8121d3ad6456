"""Plugins by name; :mod:`bench.registry.registry` has the grammar of methods."""

from bench.registry.registry import Registry, plugin_places

__all__ = ["Registry", "plugin_places"]
