"""Convert: another naming, another kind."""
