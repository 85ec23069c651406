"""Runs under ComfyUI's Python: `python imports.py COMFYUI` imports what a server does, and ends."""

from __future__ import annotations

import sys

sys.path.insert(1, sys.argv[1])
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import server  # noqa: E402, F401

import nodes  # noqa: E402, F401
