"""What nodes have in common: inputs, texts, wording, pictures."""
