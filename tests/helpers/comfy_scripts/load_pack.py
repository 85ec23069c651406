"""Loads the pack from a folder as ComfyUI does when it starts."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import sys
import time
from types import SimpleNamespace

import server
from comfy_api.latest import io as api
from comfy_config import config_parser

import nodes


def answer(question):
    """Load `question["folder"]`; say what came of it.

    With `without`, the host's Schema knows no such fields, as an older one.
    """
    folder, without = question["folder"], set(question.get("without", ()))
    registered = []
    # Of the server, which is not running here.
    server.PromptServer.instance = SimpleNamespace(
        node_replace_manager=SimpleNamespace(register=registered.append)
    )
    before, known = set(sys.modules), set(nodes.NODE_CLASS_MAPPINGS)
    said = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(said)
    with older_schema(without):
        start = time.process_time()
        loaded = asyncio.run(nodes.load_custom_node(folder))
        taken = time.process_time() - start
    logging.getLogger().removeHandler(said)
    root = folder.replace(".", "_x_")
    new = set(sys.modules) - before
    found = {
        name: nodes.NODE_CLASS_MAPPINGS.pop(name) for name in set(nodes.NODE_CLASS_MAPPINGS) - known
    }
    config = config_parser.extract_node_configuration(folder)
    return {
        "loaded": loaded,
        "said": said.stream.getvalue(),
        "nodes": sorted(found),
        "own": sorted(name.removeprefix(root) for name in new if name.startswith(root)),
        "others": sorted(name for name in new if not name.startswith(root)),
        "seconds": taken,  # of the processor; a figure for RESULTS.md, held to by no test
        "replaced": len(registered),
        "recipe": config.model_dump(),
    }


@contextlib.contextmanager
def older_schema(without):
    """A Schema that refuses some fields."""
    current = api.Schema

    class Older(current):
        def __init__(self, **fields):
            assert not without & fields.keys(), f"unexpected keyword {without & fields.keys()}"
            super().__init__(**fields)

    fields = current.__dataclass_fields__.items()
    Older.__dataclass_fields__ = {name: field for name, field in fields if name not in without}
    api.Schema = Older if without else current
    try:
        yield
    finally:
        api.Schema = current
