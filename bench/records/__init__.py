"""What a cell left on disk, and the numbers from it."""
