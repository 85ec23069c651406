"""What transformers calls the modules of the model that it makes of a folder, where the files do not.

The names are those of transformers 5, which joins the experts of a layer in stacks of three axes, and has
renamed what its older models were saved with. Data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Rule = tuple[re.Pattern[str], str]


def _rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), to) for pattern, to in pairs)


@dataclass(frozen=True, slots=True)
class Experts:
    """Weights that files have one by one, and the model in one stack.

    Attributes:
        pattern: The name of one in a file; its last group is the expert's number.
        stack: What the model calls the stack.
        parts: What may stand for `{}` in the pattern: the rows of one expert, in their order.
    """

    pattern: str
    stack: str
    parts: tuple[str, ...]


# Models whose own code comes with their files have modules of their own: these rows are not for them.
_BLOCKS = r"^(.*\.(?:mlp|feed_forward))\.experts\.(\d+)\.{}\.weight$"
_SPARSE = r"^(.*)\.block_sparse_moe\.experts\.(\d+)\.{}\.weight$"
EXPERTS = (
    Experts(_BLOCKS, r"\1.experts.gate_up_proj", ("gate_proj", "up_proj")),
    Experts(_BLOCKS, r"\1.experts.down_proj", ("down_proj",)),
    Experts(_SPARSE, r"\1.mlp.experts.gate_up_proj", ("w1", "w3")),
    Experts(_SPARSE, r"\1.mlp.experts.down_proj", ("w2",)),
)

#: A stack of experts in a file that has it as the model does.
STACK = re.compile(r"\.experts\.\w+$")
#: In the order in which a model has its stacks, which decides how PEFT names their factors.
IN_ORDER = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
#: By `model_type`: those whose stacks are (experts, in, out), where others have (experts, out, in).
IN_FIRST = ("gpt_oss", "aria", "openai_privacy_filter")

_VIT = _rules(
    (r"(^|\.)encoder\.layer\.(?=\d)", r"\1layers."),
    (r"\.attention\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
_SPARSE_BLOCK = _rules((r"\.block_sparse_moe\.", ".mlp."))
#: By `model_type`: what is renamed of a name, one after another.
RENAMES: dict[str, tuple[Rule, ...]] = {
    "vit": _VIT,
    "gpt_neox": _rules((r"^embed_out\.", "lm_head.")),
    "mixtral": _SPARSE_BLOCK,
    "minimax": _SPARSE_BLOCK,
    "minimax_m2": _SPARSE_BLOCK,
    "phimoe": (*_SPARSE_BLOCK, *_rules((r"\.mlp\.gate\.", ".mlp.router."))),
}

#: The layer that gives the vocabulary's scores, and those that give a task's answers.
OUTPUTS = ("lm_head", "embed_out")
ANSWERS = (*OUTPUTS, "classifier", "score", "qa_outputs", "classification_head")
#: By the end of the model's class: modules that have the embedding's weight, unless they are told not to.
TIED = (
    (r"T5ForConditionalGeneration$", ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")),
    (r"T5EncoderModel$", ("encoder.embed_tokens",)),
    (r"T5Model$", ("encoder.embed_tokens", "decoder.embed_tokens")),
    (r"^(?:Bert|Electra|MobileBert)ForMaskedLM$", ("cls.predictions.decoder",)),
    (r"^(?:XLM)?RobertaForMaskedLM$", ("lm_head.decoder",)),
    (r"ForCausalLM$|LMHeadModel$", ("lm_head",)),
)
#: The embedding of words, by the ends of its names.
WORDS = (
    "embed_tokens",
    "word_embeddings",
    "wte",
    "shared",
    "embed_in",
    "tok_embeddings",
    "tokens_embed",
)
#: Its name where PEFT ties what is trained of it to the head by itself.
PEFT_TIES = "embed_tokens"
#: Modules of a model with experts that are no linear layers in transformers 5, or that PEFT takes for
#: parts of experts by the ends of their names: it adapts them as parameters.
BESIDE_EXPERTS = ("gate", "router", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
