"""Plugins by name; :mod:`bench.registry.registry` has the grammar of methods."""

from bench.registry.registry import Registry, dataset_folders, plugin_places

__all__ = ["Registry", "dataset_folders", "plugin_places"]
