"""How many directions are kept: by a rule for one matrix, or by a budget over many."""
