"""What several rules share: trimming and electing, batched linear algebra, Adam on a few numbers."""
