"""A dataset's arrays: decoded once, counted, and mapped."""
