"""Commands on weights and records from elsewhere; the grid's own commands are in ``cli.py``."""
