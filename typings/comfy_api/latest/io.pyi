from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

class Input:
    id: str
    def __init__(
        self,
        id: str,
        display_name: str | None = None,
        optional: bool = False,
        tooltip: str | None = None,
        *,
        advanced: bool | None = None,
    ) -> None: ...

class Output:
    def __init__(
        self,
        id: str | None = None,
        display_name: str | None = None,
        tooltip: str | None = None,
        is_output_list: bool = False,
    ) -> None: ...

# Within the classes below, `Input` and `Output` are their own.
_Input = Input
_Output = Output

class ComfyTypeIO:
    class Input(_Input): ...
    class Output(_Output): ...

def Custom(io_type: str) -> type[ComfyTypeIO]: ...

class AnyType(ComfyTypeIO): ...
class Clip(ComfyTypeIO): ...
class ControlNet(ComfyTypeIO): ...
class Image(ComfyTypeIO): ...
class LoraModel(ComfyTypeIO): ...
class Model(ComfyTypeIO): ...
class Vae(ComfyTypeIO): ...

class Boolean(ComfyTypeIO):
    class Input(_Input):
        def __init__(
            self,
            id: str,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            *,
            default: bool | None = None,
            label_on: str | None = None,
            label_off: str | None = None,
            advanced: bool | None = None,
        ) -> None: ...

class Int(ComfyTypeIO):
    class Input(_Input):
        def __init__(
            self,
            id: str,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            *,
            default: int | None = None,
            min: int | None = None,
            max: int | None = None,
            step: int | None = None,
            advanced: bool | None = None,
        ) -> None: ...

class NumberDisplay(Enum):
    slider = "slider"

class Float(ComfyTypeIO):
    class Input(_Input):
        def __init__(
            self,
            id: str,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            *,
            default: float | None = None,
            min: float | None = None,
            max: float | None = None,
            step: float | None = None,
            round: float | None = None,
            display_mode: NumberDisplay | None = None,
            advanced: bool | None = None,
        ) -> None: ...

class String(ComfyTypeIO):
    class Input(_Input):
        def __init__(
            self,
            id: str,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            *,
            multiline: bool = False,
            placeholder: str | None = None,
            default: str | None = None,
            advanced: bool | None = None,
        ) -> None: ...

class RemoteOptions:
    def __init__(self, route: str, refresh_button: bool) -> None: ...

class Combo(ComfyTypeIO):
    class Input(_Input):
        def __init__(
            self,
            id: str,
            options: list[str] | None = None,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            *,
            default: str | None = None,
            remote: RemoteOptions | None = None,
            advanced: bool | None = None,
        ) -> None: ...

class DynamicCombo:
    class Option:
        def __init__(self, key: str, inputs: Sequence[_Input]) -> None: ...

    class Input(_Input):
        def __init__(
            self,
            id: str,
            options: Sequence[DynamicCombo.Option],
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
        ) -> None: ...

class Autogrow:
    class TemplatePrefix:
        def __init__(self, input: _Input, prefix: str, min: int = 1, max: int = 10) -> None: ...

    class TemplateNames:
        def __init__(self, input: _Input, names: list[str], min: int = 1) -> None: ...

    class Input(_Input):
        def __init__(
            self,
            id: str,
            template: Autogrow.TemplatePrefix | Autogrow.TemplateNames,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
        ) -> None: ...

class Hidden(Enum):
    prompt = "PROMPT"
    unique_id = "UNIQUE_ID"
    extra_pnginfo = "EXTRA_PNGINFO"

class HiddenHolder:
    # The graph as it was sent, by node; None where it was not asked for.
    prompt: dict[str, dict[str, Any]] | None
    unique_id: str | None
    extra_pnginfo: dict[str, Any] | None

@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = ...
    inputs: list[Input] = ...
    outputs: list[Output] = ...
    hidden: list[Hidden] = ...
    description: str = ...
    search_aliases: list[str] = ...
    is_output_node: bool = ...
    has_intermediate_output: bool = ...
    accept_all_inputs: bool = ...

class ComfyNode:
    # While one runs.
    hidden: HiddenHolder
    @classmethod
    def define_schema(cls) -> Schema: ...

class NodeOutput:
    # What it was made of; `ui` is what the front end shows on the node.
    args: tuple[Any, ...]
    ui: Any
    def __init__(self, *args: Any, ui: Any = None) -> None: ...
