"""Two sets of numbers beside each other."""
