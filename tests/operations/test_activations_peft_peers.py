"""Activations in an extraction into PEFT's folder: recorded in the live model, and what PEFT merges is nearer by them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hugging_face import MODELS, loaded, pair_of
from torch import Tensor, nn

from lorakit.lora_ops import Report, extract_file, open_source, plan_file, record
from lorakit.lora_ops.errors import ArgumentError, MismatchError

pytestmark = pytest.mark.filterwarnings("ignore")


def words(name: str) -> dict[str, Tensor]:
    """Some input, which leaves most of what can go in unused."""
    torch.manual_seed(5)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 1, 1).expand(2, 3, 8, 8)}
    return {"input_ids": torch.randint(3, 9, (4, 7))}


def recorded(name: str, folder: Path, model: nn.Module) -> None:
    with torch.no_grad(), record(model) as recorder:
        model(**words(name))
    recorder.save(folder / "record.safetensors")


def extracted(folder: Path, rank: int, *, weighed: bool, out: str, **options) -> Report:
    with (
        open_source(folder / "base") as base,
        open_source(folder / "tuned") as tuned,
        open_source(folder / "record.safetensors") as told,
    ):
        options |= {"activations": told} if weighed else {}
        plan = plan_file(base, tuned, rank, output=folder / out, format="peft", **options)
        return extract_file(plan, base, tuned, folder / out, format="peft")


@pytest.mark.parametrize("name", ["llama", "vit", "bert", "gpt-oss"])
def test_each_layer_misses_as_much_of_its_output_as_the_report_says(
    name: str, tmp_path: Path
) -> None:
    """Measured in float64: what the merged weights miss, times the very inputs that were recorded."""
    _, tuned = pair_of(name, tmp_path)
    recorded(name, tmp_path, tuned)
    inputs: dict[str, Tensor] = {}  # of linear layers alone, each called once

    def keep(own: str, given: tuple[Tensor, ...]) -> None:
        inputs[own] = given[0].detach().double().reshape(-1, given[0].shape[-1])

    hooks = [
        module.register_forward_pre_hook(lambda _, given, own=own: keep(own, given))
        for own, module in tuned.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        tuned(**words(name))
    for hook in hooks:
        hook.remove()
    report = extracted(tmp_path, 2, weighed=True, out="ours", embeddings="none")
    plain = extracted(tmp_path, 2, weighed=False, out="plain", embeddings="none")
    found = {
        out: dict(loaded(name, tmp_path, out).merge_and_unload().named_parameters())
        for out in ("ours", "plain")
    }
    wanted = dict(tuned.named_parameters())
    weighed = {one.target: one for one in report.layers if one.weighted is not None}
    assert len(weighed) >= 8
    for target, one in weighed.items():
        own = target.removeprefix("text_encoders.transformer.")
        if own not in inputs:
            continue

        def missed(out: str, own: str = own) -> float:
            rest = (wanted[f"{own}.weight"] - found[out][f"{own}.weight"]).double()
            return float((inputs[own] @ rest.mT).norm())

        assert missed("ours") == pytest.approx(one.weighted.residual, rel=1e-3, abs=1e-5), own
        assert missed("ours") <= missed("plain") * (1 + 1e-4)
    assert report.error >= plain.error


def test_the_model_says_more_of_what_the_tuned_one_says(tmp_path: Path) -> None:
    _, tuned = pair_of("llama", tmp_path)
    recorded("llama", tmp_path, tuned)
    given, missed = words("llama"), {}
    for weighed, out in ((True, "ours"), (False, "plain")):
        extracted(tmp_path, 2, weighed=weighed, out=out)
        with torch.no_grad():
            made = loaded("llama", tmp_path, out)(**given).logits
            missed[out] = float((made - tuned(**given).logits).norm())
    assert missed["ours"] < 0.8 * missed["plain"]


def test_the_folder_names_its_activations_and_odd_ones_are_refused(tmp_path: Path) -> None:
    _, tuned = pair_of("llama", tmp_path)
    recorded("llama", tmp_path, tuned)
    extracted(tmp_path, 2, weighed=True, out="ours")
    with open_source(tmp_path / "ours") as made:
        assert made.metadata["lorakit.activations"] == "record.safetensors"
        assert len(made.metadata["lorakit.activations_sha256"]) == 64
    with pytest.raises(ArgumentError, match="mean=2"):
        extracted(tmp_path, "mean=2", weighed=True, out="budget")
    other = MODELS["bert"]()
    other(**words("bert"))
    (tmp_path / "record.safetensors").unlink()
    recorded("bert", tmp_path, other)
    with pytest.raises(MismatchError, match="of other layers, the first"):
        extracted(tmp_path, 2, weighed=True, out="strange")
