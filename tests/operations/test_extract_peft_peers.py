"""Folders of transformers' models, extracted into PEFT's: PEFT loads them, and the model is the tuned one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hugging_face import MODELS, hf, loaded, outputs, pair_of, peft
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import Report, extract_file, open_source, plan_file
from lorakit.lora_ops.errors import ArgumentError, MismatchError

pytestmark = pytest.mark.filterwarnings("ignore")


def extracted(folder: Path, rank: str | int, **options) -> Report:
    """The report of `ours`, made of `base` and `tuned`."""
    with open_source(folder / "base") as base, open_source(folder / "tuned") as tuned:
        plan = plan_file(base, tuned, rank, output=folder / "ours", format="peft", **options)
        return extract_file(plan, base, tuned, folder / "ours", format="peft")


@pytest.mark.parametrize("name", MODELS)
def test_at_full_rank_the_model_says_what_the_tuned_one_says(name: str, tmp_path: Path) -> None:
    base, tuned = pair_of(name, tmp_path)
    report = extracted(tmp_path, 64, full_differences=True)
    assert report.error < 1e-5
    assert {skip.reason for skip in report.skips} <= {"unchanged"}
    with torch.no_grad():
        found, wanted = outputs(loaded(name, tmp_path), name), outputs(tuned, name)
        before = outputs(base, name)
    assert float((before - wanted).norm()) > 0.02
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_that_peft_merges_miss_what_the_report_says(name: str, tmp_path: Path) -> None:
    """At a low rank each weight lies as far from the tuned one as its row of the report."""
    _, tuned = pair_of(name, tmp_path)
    report = extracted(tmp_path, 3)
    merged = dict(loaded(name, tmp_path).merge_and_unload().named_parameters())
    missed = {own: float((one - merged[own]).norm()) for own, one in tuned.named_parameters()}
    squares: dict[str, float] = dict.fromkeys(missed, 0.0)

    def named(target: str) -> str:
        own = target.removeprefix("text_encoders.transformer.")
        stack = own.rpartition(".")[0]  # of an expert
        return next(one for one in (own, f"{own}.weight", stack) if one in squares)

    for layer in report.layers:
        squares[named(layer.target)] += layer.residual**2
    for skip in report.skips:
        squares[named(skip.target)] += skip.norm**2
    assert len(report.layers) > 5
    for own, one in missed.items():
        assert one == pytest.approx(math.sqrt(squares[own]), rel=1e-3, abs=1e-5), own


def test_each_expert_has_a_change_of_its_own_rank(tmp_path: Path) -> None:
    """Experts of one stack whose ranks differ are stored at the largest; one that did not change has zeros."""
    base, _ = pair_of("gpt-oss", tmp_path)
    changed = dict(base.named_parameters())
    with torch.no_grad():
        stack = changed["model.layers.0.mlp.experts.down_proj"]
        for expert, rank in enumerate((1, 3)):
            stack[expert] += torch.randn(stack.shape[1], rank) @ torch.randn(rank, stack.shape[2])
    base.save_pretrained(tmp_path / "tuned")
    report = extracted(tmp_path, "energy=0.9999999")
    assert [layer.rank for layer in report.layers] == [1, 3]
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["target_parameters"] == ["model.layers.0.mlp.experts.down_proj"]
    assert (config["r"], config["target_modules"]) == (3, [])
    merged = dict(loaded("gpt-oss", tmp_path).merge_and_unload().named_parameters())
    torch.testing.assert_close(
        merged["model.layers.0.mlp.experts.down_proj"], stack, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_shards_give_what_one_file_gives(name: str, tmp_path: Path) -> None:
    pair_of(name, tmp_path, max_shard_size="8KB")
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 2
    extracted(tmp_path, 3)
    whole = tmp_path / "whole"
    pair_of(name, whole)
    extracted(whole, 3)
    files = [at / "ours" / "adapter_model.safetensors" for at in (tmp_path, whole)]
    sharded, one = map(load_file, files)
    assert sharded.keys() == one.keys()
    assert all(torch.equal(one[key], sharded[key]) for key in one)


@pytest.mark.parametrize("name", ["llama", "neox", "bert"])
def test_embeddings_and_heads_get_factors_where_that_is_asked_for(
    name: str, tmp_path: Path
) -> None:
    _, tuned = pair_of(name, tmp_path)
    extracted(tmp_path, 64, full_differences=True, embeddings="lora")
    held = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert any("lora_embedding_A" in key for key in held)
    with torch.no_grad():
        model, wanted = loaded(name, tmp_path), outputs(tuned, name)
        torch.testing.assert_close(outputs(model, name), wanted, rtol=1e-4, atol=1e-5)
        merged = outputs(model.merge_and_unload(), name)
    torch.testing.assert_close(merged, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2, tied", "gpt2", "t5"])
def test_tied_embeddings_get_no_factors(name: str, tmp_path: Path) -> None:
    """PEFT 0.21 forgets the head, or adds them twice when it merges: they are kept whole or refused."""
    _, tuned = pair_of(name, tmp_path)
    with pytest.raises(ArgumentError, match="keep embeddings whole"):
        extracted(tmp_path, 4, embeddings="lora")
    assert not (tmp_path / "ours").exists()
    extracted(tmp_path, 64, full_differences=True)
    merged = loaded(name, tmp_path).merge_and_unload()
    with torch.no_grad():
        found, wanted = outputs(merged, name), outputs(tuned, name)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_embeddings_that_are_not_asked_for_are_left_out_with_their_norm(tmp_path: Path) -> None:
    base, tuned = pair_of("llama", tmp_path)
    report = extracted(tmp_path, 3, embeddings="none")
    lost = {skip.target: skip for skip in report.skips if "not asked for" in skip.reason}
    assert [one.rpartition(".")[2] for one in sorted(lost)] == ["lm_head", "embed_tokens"]
    skip = lost["text_encoders.transformer.lm_head"]
    change = tuned.lm_head.weight - base.lm_head.weight
    assert skip.norm == pytest.approx(float(change.detach().norm()), rel=1e-5)
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None


def test_a_vocabulary_that_grew_is_kept_whole_and_said(tmp_path: Path) -> None:
    """The base must have as many words first, as PEFT itself asks for; nothing is cut off."""
    base, tuned = pair_of("llama", tmp_path)
    torch.manual_seed(3)
    tuned.resize_token_embeddings(44)
    tuned.save_pretrained(tmp_path / "tuned")
    with pytest.raises(ArgumentError, match=r"has 44 rows in .* and 40 in"):
        extracted(tmp_path, 64, embeddings="lora")
    report = extracted(tmp_path, 64, full_differences=True)
    assert any("(44, 16)" in note and "resize_token_embeddings" in note for note in report.notes)
    base.resize_token_embeddings(44)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    words = {"input_ids": torch.tensor([[1, 41, 43, 7]])}
    with torch.no_grad():
        found, wanted = model(**words).logits, tuned(**words).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_head_that_only_the_tuned_model_has_is_kept_whole(tmp_path: Path) -> None:
    """A classifier on the body of a base, which is saved without the body's name in front."""
    _, tuned = pair_of("bert", tmp_path)
    body = hf.BertModel.from_pretrained(tmp_path / "base", add_pooling_layer=True)
    body.save_pretrained(tmp_path / "base")
    report = extracted(tmp_path, 64, full_differences=True)
    assert any("`classifier" in note and "only in the tuned" in note for note in report.notes)
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert "classifier" in config["modules_to_save"]
    model = loaded("bert", tmp_path, num_labels=3)
    with torch.no_grad():
        found, wanted = outputs(model, "bert"), outputs(tuned, "bert")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_base_is_called_as_its_folder_and_no_path_is_told(tmp_path: Path) -> None:
    """What its configuration calls it is often the model that it was trained from."""
    pair_of("llama", tmp_path)
    at = tmp_path / "base" / "config.json"
    at.write_text(json.dumps({**json.loads(at.read_text()), "_name_or_path": "an/ancestor"}))
    extracted(tmp_path, 1)
    text = (tmp_path / "ours" / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == "base"
    assert str(tmp_path) not in text


def test_a_model_in_the_cache_of_hugging_face_has_its_name(tmp_path: Path) -> None:
    pair_of("llama", tmp_path)
    place = tmp_path / "models--some--model" / "snapshots" / "abc"
    place.parent.mkdir(parents=True)
    (tmp_path / "base").rename(place)
    (tmp_path / "base").symlink_to(place)
    extracted(tmp_path, 1)
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/model"


def test_a_pipeline_of_several_models_is_refused(tmp_path: Path) -> None:
    for side in ("base", "tuned"):
        for part in ("unet", "text_encoder"):
            file = tmp_path / side / part / "model.safetensors"
            file.parent.mkdir(parents=True)
            save_file({"conv_in.weight": torch.ones(2, 2) * (1 + (side == "tuned"))}, file)
    with pytest.raises(MismatchError, match="holds several models"):
        extracted(tmp_path, 1)
    assert not (tmp_path / "ours").exists()


def test_a_folder_does_not_get_the_name_of_a_file(tmp_path: Path) -> None:
    pair_of("llama", tmp_path)
    with open_source(tmp_path / "base") as base, open_source(tmp_path / "tuned") as tuned:
        with pytest.raises(ArgumentError, match=r"give a name without `\.safetensors`"):
            plan_file(base, tuned, 2, output=tmp_path / "x.safetensors", format="peft")
        plan_file(base, tuned, 2, output=tmp_path / "x-v1.5", format="peft")
