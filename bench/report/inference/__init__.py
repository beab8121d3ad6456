"""What repeats and datasets say: contrasts, ranks, the factorial, regret."""
