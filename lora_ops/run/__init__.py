"""How work runs: side by side, on which device, with which inputs hashed beside it."""
