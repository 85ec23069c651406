"""The methods of Merge Models, and those of the core that depend on inner products."""

from __future__ import annotations

import nodes_models


def answer(question):
    """Names of both."""
    nodes_models.load_pack()
    from lorakit.lora_ops.operations.methods import MERGE_METHODS, Span
    from lorakit.nodes.merge import mixing

    spans = [name for name, one in MERGE_METHODS.items() if isinstance(one.how, Span)]
    return {"node": list(mixing.METHODS), "spans": spans}
