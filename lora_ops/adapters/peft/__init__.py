"""What PEFT's files say beside their tensors: configuration, patterns, parameters saved whole."""
