"""Nunchaku's files: layers of SVDQuant, and of AWQ for modulations; `layers.py` says which are the model's."""
