"""Methods that treat elements one by one; `work.py` says how an engine runs them."""
