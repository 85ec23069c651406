"""The ComfyUI side of lorakit. No node is published yet; the command line and ``lora_ops`` are."""
