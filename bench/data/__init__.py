"""Datasets as arrays: readers of layouts, and their preparation into verified, memory-mapped files."""
