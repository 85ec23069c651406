"""Extract: the low-rank change that turns one checkpoint into another."""
