"""Draws the cards of the example workflows: what each does, before and after, on the digits models.

The workflows name models that are not here; so each card shows the same thing done to the small models of
`examples/digits`, and sampled from them: `python docs/make_cards.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lorakit.examples.digits.demo import BASE, TUNED, TUNED2, record_activations, tensors_of
from lorakit.examples.digits.sample import load_model, sample_digits, starting_noise
from lorakit.lora_ops import (
    Adapter,
    FileSource,
    Recipe,
    TensorSource,
    Term,
    add,
    extract,
    find_files,
    merge_file,
    open_recipe,
    open_source,
    parse_line,
    plan_merge_file,
    resize,
)
from lorakit.lora_ops.models.architectures import parameters

EXAMPLES = Path(__file__).resolve().parent.parent / "example_workflows"
SIZE = (1280, 720)
TILE, GAP, DIGITS = 240, 36, (3, 8)
_PAGE, _STRONG, _WEAK = (19, 21, 28), (240, 242, 248), (146, 152, 170)
Model = Mapping[str, Tensor]
Strength = Callable[[str], float]


def cards() -> Iterator[tuple[str, Image.Image]]:
    """The name of each example workflow, and its card."""
    with open_source(BASE) as base, open_source(TUNED) as tuned, open_source(TUNED2) as tuned2:
        keys = {one.target: one.key for one in parameters(base).values()}
        start, neon, frame = (tensors_of(one) for one in (base, tuned, tuned2))
        one, two = (extract(base, other, 16)[0] for other in (tuned, tuned2))

        def with_lora(model: Model, lora: Adapter, strength: Strength = lambda key: 1.0) -> Model:
            return _with_lora(model, lora, keys, strength)

        few, used = extract(base, tuned, 4)[0], _by_outputs(base, tuned, 4)
        first, second = with_lora(start, one), with_lora(start, two)
        both = with_lora(first, two)
        small, _ = resize(one, 4)
        late = with_lora(start, one, lambda key: 0.2 if "input_blocks" in key else 1.0)
        merged = {
            key: torch.lerp(start[key].float(), neon[key].float(), 0.8 * ("output_blocks" in key))
            for key in start
        }
        yield _card(
            "many_loras", "Many LoRAs in one node",
            {"no LoRA": start, "LoRA A": first, "LoRA B": second, "A and B": both},
        )  # fmt: skip
        yield _card(
            "apply_two_added_loras", "Two LoRAs as one",
            {"before": start, "the sum, applied": both},
        )  # fmt: skip
        added = {
            name: with_lora(start, add([Term(one), Term(two)], method=name)[0])
            for name in ("sum", "np", "ties")
        }
        yield _card("compare_add_methods", "Three ways to add, side by side", added)
        yield _card(
            "extract_from_two_checkpoints", "A LoRA from two checkpoints",
            {"base": start, "tuned": neon, "base + LoRA": first},
        )  # fmt: skip
        yield _card(
            "record_activations", "A LoRA by what the model uses",
            {"base": start, "rank 4": with_lora(start, few), "by outputs": with_lora(start, used), "tuned": neon},
        )  # fmt: skip
        yield _card(
            "shrink_and_compare", "A smaller LoRA, and what it costs",
            {"no LoRA": start, "rank 16": first, "rank 4": with_lora(start, small)},
        )  # fmt: skip
        yield _card(
            "block_weights", "Strengths by block",
            {"no LoRA": start, "all blocks": first, "IN=0.2": late},
        )  # fmt: skip
        without = {
            f"{label} off": with_lora(start, one, lambda key, part=part: float(part not in key))
            for label, part in (("IN", "input_blocks"), ("M", "middle_block"), ("OUT", "output_blocks"))
        }  # fmt: skip
        yield _card("block_sweep", "What does each block do?", {"whole": first, **without})
        yield _card(
            "merge_by_block", "A merge by block",
            {"A": start, "B": neon, "0.8 of B in OUT": merged},
        )  # fmt: skip
        merge, again = _merged_twice()
        yield _card(
            "recipe_replay", "A merge, made again from its file",
            {"A": neon, "B": frame, "merged": merge, "made again": again},
        )  # fmt: skip


def _by_outputs(base: TensorSource, tuned: FileSource, rank: int) -> Adapter:
    """A LoRA that is cut by what the tuned model uses while it draws other digits."""
    with tempfile.TemporaryDirectory() as folder:
        path = record_activations(tensors_of(tuned), Path(folder, "activations.safetensors"))
        with open_source(path) as known:
            return extract(base, tuned, rank, activations=known)[0]


def _merged_twice() -> tuple[Model, Model]:
    """Two models merged to a file, and what the recipe in that file gives."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "merged.safetensors"), Path(folder, "again.safetensors")
        _merge(parse_line("0.5*tuned + 0.5*tuned2"), {"tuned": TUNED, "tuned2": TUNED2}, first)
        if (recipe := open_recipe(first).recipe) is None:
            raise SystemExit("the merged file says no recipe")
        _merge(recipe, find_files(recipe, [TUNED.parent]).paths, second)
        with open_source(first) as one, open_source(second) as two:
            return tensors_of(one), tensors_of(two)


def _merge(recipe: Recipe, files: Mapping[str, Path], output: Path) -> None:
    with ExitStack() as stack:
        sources = {name: stack.enter_context(open_source(path)) for name, path in files.items()}
        merge_file(plan_merge_file(recipe, sources, output=output), output)


def _with_lora(
    model: Model, lora: Adapter, keys: Mapping[str, str], strength: Strength
) -> dict[str, Tensor]:
    made = dict(model)
    for target, layer in lora.layers.items():
        weight = made[keys[target]].float()
        made[keys[target]] = weight + strength(keys[target]) * layer.change(weight)
    return made


def _card(name: str, title: str, models: Mapping[str, Model]) -> tuple[str, Image.Image]:
    """A title, and below it a column of pictures a model, with its name."""
    card = Image.new("RGB", SIZE, _PAGE)
    draw = ImageDraw.Draw(card)
    draw.text((SIZE[0] // 2, 58), title, _STRONG, ImageFont.load_default(52), anchor="mm")
    width = len(models) * (TILE + GAP) - GAP
    for column, (label, model) in enumerate(models.items()):
        left = (SIZE[0] - width) // 2 + column * (TILE + GAP)
        font = ImageFont.load_default(32)
        draw.text((left + TILE // 2, 138), label, _WEAK, font, anchor="mm")
        images = sample_digits(load_model(model), starting_noise())
        for row, digit in enumerate(DIGITS):
            levels = (images[digit] * 255).round().to(torch.uint8).permute(1, 2, 0)
            tile = Image.fromarray(levels.contiguous().numpy())
            tile = tile.resize((TILE, TILE), Image.Resampling.NEAREST)
            card.paste(tile, (left, 178 + row * (TILE + GAP // 2)))
    return name, card


if __name__ == "__main__":
    for each, card in cards():
        card.save(EXAMPLES / f"{each}.jpg", quality=85)
