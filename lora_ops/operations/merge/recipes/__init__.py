"""Recipes of merges: documents that say what was merged, and can be run again.

`recipe` has what one is made of, `checks` whether it means something. `document` reads and writes it
as TOML and JSON, `expression` as a line; `foreign` reads those of other programs; `ancestry` is the
record in a merged file, and `find` finds the files of a recipe by their hashes.
"""
