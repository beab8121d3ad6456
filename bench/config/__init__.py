"""YAML files as checked objects."""
