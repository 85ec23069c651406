"""Parameter: one parameter of a model, under the name that every file's spelling leads to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Component: TypeAlias = Literal["unet", "te", "vae", "other"]

# Names of a diffusers model that are not translated keep their `transformer.` or `unet.`.
COMPONENTS: dict[str, Component] = {
    "diffusion_model": "unet",
    "transformer": "unet",
    "transformer_2": "unet",
    "unet": "unet",
    "text_encoders": "te",
    "vae": "vae",
}


# A 2-D `.weight` of one of these modules is a table that is looked up, not a matrix that multiplies;
# PEFT stores the factors of its change under names of their own.
TABLES = (
    *("token_embedding", "position_embedding", "embed_tokens", "shared", "word_embeddings"),
    *("position_embeddings", "token_type_embeddings", "relative_attention_bias", "tok_embeddings"),
    *("learned_embedding", "wte", "wpe", "padding_embedding", "word_embedding", "embed_in"),
    *("embed_positions", "embed_tokens_per_layer", "tokens_embed", "positions_embed"),
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of a file under another program's name, which is some rows of a parameter.

    Attributes:
        parameter: By the file's own name, as it lies there.
        rows: Half-open range of the model's rows that it is.
        swapped: Whether it has the halves of these rows in the other order.
        turned: Whether it lies (in, out), where the model's rows are outputs.
    """

    parameter: Parameter
    rows: tuple[int, int]
    swapped: bool = False
    turned: bool = False

    @property
    def is_flat(self) -> bool:
        """Whether the file has these rows as others: an expert's weight as one row of a stack."""
        return self.turned or self.parameter.shape[0] != self.rows[1] - self.rows[0]


@dataclass(frozen=True, slots=True)
class Parameter:
    """Where a parameter lies in its file.

    Attributes:
        name: The canonical name, as ComfyUI calls the parameter of the loaded model:
            ``diffusion_model.….weight``, ``text_encoders.clip_l.transformer.….weight``,
            ``vae.….weight``, and ``other.<key>`` for what belongs to no model.
        key: The tensor's key in the file.
        shape: Shape of this parameter; of its rows where ``rows`` is given.
        rows: Half-open range on axis 0 of the stored tensor, where the file stores projections
            fused that the model loads split; None for the whole tensor.
        transposed: Whether the file stores it (in, out), where the model has (out, in).
        pieces: Its rows, from the first to the last, where the file has them split, turned or with
            halves in the other order; ``key`` is then that of the first. ``rows`` are those of
            all pieces together.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    transposed: bool = False
    pieces: tuple[Piece, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """All tensors of the file that it lies in."""
        return tuple(one.parameter.key for one in self.pieces) or (self.key,)

    @property
    def target(self) -> str:
        """The name without ``.weight``: what an adapter calls it."""
        return self.name.removesuffix(".weight")

    @property
    def component(self) -> Component:
        """The part of the pipeline that it belongs to."""
        return COMPONENTS.get(self.name.partition(".")[0], "other")
