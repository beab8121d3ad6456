"""Tables of papers: their layout, their cells, the published numbers, and whether they agree."""
