"""Which cells there are, what of them is done, and what running the rest takes. Torch-free."""
