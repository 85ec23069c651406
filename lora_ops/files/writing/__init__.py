"""Writing: streamed to a hidden sibling, published whole or not at all."""
