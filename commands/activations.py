"""The option that names a record of what goes into the layers."""

from __future__ import annotations

import click

from .options import PATH

activations_option = click.option(
    "--activations",
    type=PATH,
    metavar="FILE",
    help="Second moments of what goes into the layers (docs/activations.md): the error of their output counts, not "
    "that of the weights.  [default: none]",
)
