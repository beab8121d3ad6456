"""The network: backbone, adapters, heads, and where their files come from."""
