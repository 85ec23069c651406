from ..latest import ComfyExtension as ComfyExtension
from ..latest import io as io
from ..latest import ui as ui
