"""The ComfyUI side of lorakit: nodes that gather, call one function of `lora_ops`, and wrap.

Importing this loads nothing: `extension` and the nodes need ComfyUI around them, and they import
`lora_ops` when they run, so that the host starts as fast as without them.
"""
