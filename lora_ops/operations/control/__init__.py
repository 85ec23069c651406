"""Control-LoRAs: what a ControlNet adds to the encoder of a UNet, as factors, and the ControlNet of it again."""
