"""The forms that a change can be extracted in: one a file, and the table of them."""
