"""What everything stands on: errors, random streams, files, the cache, paths."""
