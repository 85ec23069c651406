"""Methods of adding LoRAs whose result is no combination of the inputs, and yet has factors."""
