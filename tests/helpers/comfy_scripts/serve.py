"""Runs in ComfyUI's process: `python serve.py COMFYUI`; a question a line in, an answer a line out."""

from __future__ import annotations

import importlib
import json
import sys


def serve():
    """Make ComfyUI importable, on the CPU, and answer until stdin ends."""
    # Whatever ComfyUI prints must not get between the reader and the answers.
    out, sys.stdout = sys.stdout, sys.stderr
    sys.path.insert(1, sys.argv[1])
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    for line in sys.stdin:
        script, question = json.loads(line)
        # An error ends the process: whoever asked finds the traceback in its log.
        out.write(json.dumps({"answer": importlib.import_module(script).answer(question)}) + "\n")
        out.flush()


if __name__ == "__main__":
    serve()
