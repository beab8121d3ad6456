"""One cell, from start to record."""
