from typing import Any

# None for a file that is no ControlNet
def load_controlnet(
    ckpt_path: str, model: Any = None, model_options: dict[str, Any] = {}
) -> Any | None: ...
