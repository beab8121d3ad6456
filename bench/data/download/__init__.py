"""``clmerge data get``: archives fetched, checked against the lock, and extracted."""
