"""Work that is done in parts, by whoever is there: what each is, who makes it, and how they become one file again."""
