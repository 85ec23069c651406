"""A user's program that takes every public name in hand, with its types written out.

Type-checked against the installed wheel under pyright's strict mode (`.ci/user.json`), and run by
tests/test_api.py: a name that is missing from it is found there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lorakit.lora_ops import (
    Adapter,
    AddOptions,
    Ancestor,
    Architecture,
    ArgumentError,
    BakedLayer,
    BakePlan,
    Budget,
    CheckpointComparison,
    Comparison,
    Conflict,
    ControlOptions,
    ControlPlan,
    Convention,
    ConvertOptions,
    Described,
    DictSource,
    Division,
    EditPlan,
    EditReport,
    Element,
    Embeddings,
    FileSource,
    Finding,
    FormatError,
    Found,
    FullLayer,
    GroupComparison,
    Info,
    Ingredient,
    Layer,
    LayerComparison,
    LayerConflict,
    LayerReport,
    LayerShapeError,
    Likeness,
    Lint,
    LoraLayer,
    LoraOpsError,
    MemoryFile,
    MergeCheck,
    MergedSource,
    MergeOptions,
    MergePlan,
    MergeReport,
    MetadataEdit,
    MetadataPlan,
    MetadataReport,
    MismatchError,
    MissingPartsError,
    NonFiniteError,
    Output,
    Pair,
    Pairing,
    ParameterComparison,
    Part,
    Placement,
    Plan,
    PlannedLayer,
    PlanOptions,
    Preview,
    Processes,
    Progress,
    QuantisedError,
    RankRule,
    RayTasks,
    Read,
    Recipe,
    RecipeFile,
    Recorder,
    Report,
    RequantisePlan,
    ResizeOptions,
    Rounding,
    SeveralComparison,
    Sidecar,
    Skip,
    Spectrum,
    TargetMismatchError,
    TensorSource,
    Term,
    Thumbnail,
    UnknownFormatError,
    UnsafePickleError,
    UnsupportedLayerError,
    Verdict,
    Weighted,
    WeightShapeError,
    WriteError,
    add,
    add_files,
    architecture_named,
    as_toml,
    bake,
    bake_control_file,
    bake_file,
    collect,
    compare,
    compare_checkpoints,
    compare_several,
    convert,
    convert_file,
    decode,
    describe,
    described,
    disable,
    edit_metadata,
    edit_metadata_file,
    eject,
    enable,
    extract,
    extract_control_file,
    extract_file,
    extract_files,
    find_files,
    inject,
    is_control_lora,
    lint,
    merge,
    merge_file,
    merge_into,
    open_recipe,
    open_source,
    parse_document,
    parse_line,
    parse_rank,
    parse_rule,
    place,
    plan_add_files,
    plan_bake,
    plan_bake_file,
    plan_control_bake_file,
    plan_control_file,
    plan_convert_file,
    plan_extraction,
    plan_file,
    plan_merge,
    plan_merge_file,
    plan_metadata_file,
    plan_requantise_file,
    plan_resize_file,
    plan_scale_file,
    preview_bake,
    preview_control,
    preview_control_bake,
    preview_extraction,
    preview_files,
    preview_merge,
    preview_requantise,
    read_metadata,
    read_recipe,
    read_sidecar,
    recipe_of_loras,
    record,
    requantise_file,
    resize,
    resize_file,
    save_adapter,
    scale,
    scale_file,
    set_strength,
    spectra,
    store_frozen,
    trigger_words,
    unmerge,
    verify,
    verify_merge,
)

PAPER: Convention = "paper"


def counting() -> tuple[Progress, list[str]]:
    """Return a callback, and the list of names that it fills."""
    names: list[str] = []

    def progress(done: int, total: int, name: str) -> None:
        assert 0 < done <= total
        names.append(name)

    return progress, names


def sums(adapter: Adapter) -> dict[str, float]:
    """Return the norm of each layer's change."""
    found: dict[str, float] = {}
    for target, layer in adapter.layers.items():
        own: Layer = layer
        if isinstance(layer, LoraLayer):
            factors: tuple[Tensor, Tensor] = (layer.up, layer.down)
            assert factors[0].shape[1] == factors[1].shape[0] == layer.factor_rank
        elif isinstance(layer, FullLayer):
            assert layer.diff.shape == torch.Size(layer.shape)
        found[target] = float(own.delta(torch.float64).square().sum()) ** 0.5
    return found


def extraction(base: TensorSource, tuned: TensorSource, output: Output) -> Adapter:
    """Extract in memory and into a file; both are the same."""
    progress, names = counting()
    rule: RankRule = parse_rank("4,conv=2")
    options: PlanOptions = {"full_differences": False, "dtype": torch.float32}
    adapter, report = extract(base, tuned, rule, progress=progress, exact=True, **options)
    assert len(names) >= len(report.layers) == len(adapter.layers)

    plan: Plan = plan_extraction(base, tuned, "4,conv=2", **options)
    pairing: Pairing = plan.pairing
    pairs: tuple[Pair, ...] = pairing.candidates
    ranks: dict[str, int] = {both.target: plan.most_ranks(both) for both in pairs}
    layers: tuple[LayerReport, ...] = report.layers
    assert all(one.rank <= ranks[one.target] and 0 <= one.error < 1 for one in layers)
    outputs: list[Weighted] = [one.weighted for one in layers if one.weighted is not None]
    assert not outputs
    told: list[Rounding] = [one.rounding for one in layers if one.rounding is not None]
    assert (report.estimated_error is None) == (told == [])
    skips: tuple[Skip, ...] = report.skips
    assert {one.reason for one in skips} or report.left_out == 0

    placement: Placement = place("cpu", memory=10**9)
    words: Embeddings | None = None
    again: Plan = plan_file(base, tuned, rule, output=output, embeddings=words, **options)
    written: Report = extract_file(again, base, tuned, output, placement=placement, exact=True)
    assert written.size > 0
    return adapter


def several(base: FileSource, tuned: FileSource, folder: Path) -> None:
    """Extract several, of which there is one here, against one base."""
    found: dict[Path, Preview | LoraOpsError] = preview_files(base, tuned.paths, folder, 4)
    made: dict[Path, Report | LoraOpsError] = extract_files(base, tuned.paths, folder, 4)
    assert list(found) == list(made) == list(tuned.paths)
    assert not any(isinstance(one, LoraOpsError) for one in made.values())


def in_parts(base: FileSource, tuned: FileSource, output: Path, asked: Division) -> tuple[str, ...]:
    """Make one part of an extraction, and see what is missing of the rest."""
    plan = plan_file(base, tuned, 4, output=output)
    extract_file(plan, base, tuned, output, division=asked)
    try:
        extract_file(plan, base, tuned, output, division=Division(options={"rank": 4}, finish=True))
    except MissingPartsError as error:
        return error.items
    return ()


def engines() -> list[Division]:
    """Parts made by two processes, and by a cluster."""
    return [Division(engine=Processes(["cpu", "cpu"])), Division(engine=RayTasks("10.0.0.1:6379"))]


def editing(lora: FileSource, base: FileSource, folder: Path) -> None:
    """Edit one adapter in memory, and its file."""
    adapter = decode(lora)
    budget: RankRule | Budget = parse_rule("mean=2")
    smaller, report = resize(adapter, budget, dora=PAPER)
    edits = [one for one in report.layers if isinstance(one, EditReport)]
    was: list[tuple[int, ...]] = [one.was for one in edits]
    assert len(was) == len(smaller.layers)
    assert resize_file(lora, folder / "small.safetensors", budget, relative_to=base).size > 0

    half, _ = scale(adapter, 0.5, where=["*=0.5"])
    whole = sums(adapter)
    assert all(abs(norm - 0.25 * whole[name]) < 1e-3 for name, norm in sums(half).items())
    assert scale_file(Ingredient(lora, 0.5), folder / "half.safetensors").layers

    total, _ = add([Term(adapter), Term(half, dict.fromkeys(half.layers, -1.0), "half")])
    both = [Ingredient(lora), Ingredient(lora, -0.5, where=("*=1",))]
    assert len(add_files(both, folder / "sum.safetensors", 2).layers) == len(total.layers)

    found: Comparison = compare(adapter, half)
    lines: Sequence[LayerComparison] = found.layers
    assert all(abs(one.cosine - 1) < 1e-6 for one in lines)

    several: SeveralComparison = compare_several([adapter, half, total], share=0.1)
    total_conflict: Conflict = several.total
    each: Sequence[LayerConflict] = several.layers
    assert len(each) == len(adapter.layers)
    assert abs(total_conflict.cosines[0][1] - 1) < 1e-6

    model: Architecture = architecture_named("sd1")
    renamed, _ = convert(adapter, "kohya", architecture=model)
    memory = MemoryFile("kohya.safetensors")
    assert len(convert_file(lora, memory, "kohya", architecture="sd1").layers) == len(
        renamed.layers
    )
    save_adapter(renamed, folder / "kohya.safetensors")


def planning(base: FileSource, tuned: FileSource, lora: FileSource, output: Path) -> int:
    """Say what would be done, and return the bytes that all of it would take."""
    smaller: ResizeOptions = {"base": base, "dora": PAPER}
    sums_of: AddOptions = {"method": "average"}
    named: ConvertOptions = {"architecture": "sd1"}
    plans: list[EditPlan] = [
        plan_resize_file(lora, output, 2, **smaller),
        plan_scale_file(Ingredient(lora, 0.5), output),
        plan_add_files([Ingredient(lora), Ingredient(lora)], output, **sums_of),
        plan_convert_file(lora, output, "kohya", **named),
    ]
    previews: list[Preview] = [
        *(plan.preview() for plan in plans),
        preview_extraction(plan_extraction(base, tuned, 4), output),
        preview_bake(plan_bake(base, [Ingredient(lora)]), output),
    ]
    layers: list[PlannedLayer] = [one for found in previews for one in found.layers]
    assert {one.component for one in layers} == {"unet"}
    assert not output.exists()
    return sum(found.size_at_most for found in previews)


def baking(checkpoint: FileSource, lora: FileSource, output: Path) -> None:
    """Bake in memory and into a file, and verify what came of it."""
    plan: BakePlan = plan_bake(checkpoint, [Ingredient(lora, 0.5)])
    assert plan.operation == "bake"
    tensors, report = bake(checkpoint, [Ingredient(lora, 0.5)], dtype=torch.float32)
    cosines = [one.cosine for one in report.layers if isinstance(one, BakedLayer)]
    assert min(cosines) > 0.99
    bake_file(plan_bake_file(checkpoint, plan.ingredients, output=output), checkpoint, output)
    ties, named, notes = recipe_of_loras(checkpoint, plan.ingredients, "ties", {"density": 0.5})
    assert merge(ties, named)[0].keys() == tensors.keys()
    assert notes == ()
    baked: TensorSource = DictSource(tensors, {"made": "here"}, "baked")
    element: Element = baked.element(next(iter(tensors)))
    assert element.title == str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    found = verify(checkpoint, baked, lora, strength=0.5, convention=PAPER, allow_other=True)
    assert found.error < 1e-3
    models: CheckpointComparison = compare_checkpoints(checkpoint, baked)
    weights: tuple[ParameterComparison, ...] = models.parameters
    groups: Mapping[str, GroupComparison] = models.components()
    alike: list[Likeness] = [*weights, *groups.values(), models.total]
    assert all(one.cosine > 0.9 for one in alike)


def controlling(folder: Path) -> None:
    """Make a Control-LoRA of a ControlNet of two layers, and the ControlNet of it again."""
    shared = {"input_blocks.0.0.weight": torch.eye(8).reshape(8, 2, 2, 2)}
    own = ("input_hint_block.0.weight", "zero_convs.0.0.weight", "middle_block_out.0.weight")
    parts = {name: torch.ones(4, 4, 1, 1) for name in own}
    base = MemoryFile("base", {f"diffusion_model.{name}": one for name, one in shared.items()})
    net = MemoryFile("net", {**{name: 2 * one for name, one in shared.items()}, **parts})
    options: ControlOptions = {"dtype": torch.float32}
    plan: ControlPlan = plan_control_file(base, net, 8, **options)
    made = MemoryFile("made")
    assert extract_control_file(plan, base, net, made).error < 1e-6
    assert is_control_lora(made)
    output = folder / "net.safetensors"
    again: BakePlan = plan_control_bake_file(base, made, output=output)
    previews = [preview_control(plan, output), preview_control_bake(again, base, output)]
    assert all(one.layers for one in previews)
    bake_control_file(again, base, made, output)
    with open_source(output) as back:
        assert back.keys() == list(net.keys())


def storing(checkpoint: FileSource, output: Path) -> None:
    """Write a checkpoint with scales."""
    plan: RequantisePlan = plan_requantise_file(checkpoint, "int8", output=output)
    size = preview_requantise(plan, output).size_at_most
    report = requantise_file(plan, output)
    assert 0 < report.error < 0.05
    assert report.size <= size


def merging(base: FileSource, tuned: FileSource, folder: Path) -> None:
    """Merge in memory, into a file, and again from what the file says of itself."""
    files = {name: RecipeFile(f"{name}.safetensors") for name in ("base", "tuned")}
    line: Recipe = parse_line("base + $share*(tuned - base)", files)
    sources: Mapping[str, TensorSource] = {"base": base, "tuned": tuned}
    recipe = line.bind({"share": 0.5}).with_output(dtype={"all": "fp32"})
    assert parse_document(as_toml(recipe)) == recipe

    options: MergeOptions = {"strict": True}
    plan: MergePlan = plan_merge(recipe, sources, **options)
    tensors, report = merge(recipe, sources, **options)
    assert set(tensors) == set(MergedSource(plan).keys())
    output = folder / "merged.safetensors"
    planned = plan_merge_file(recipe, sources, output=output)
    preview: Preview = preview_merge(planned, output)
    written: MergeReport = merge_file(planned, output)
    assert written.size <= preview.size_at_most
    assert written.sizes.keys() == report.sizes.keys() == {"unet"}

    found: Ancestor = open_recipe(output)
    assert found.recipe is not None
    with open_source(output) as merged:
        check: MergeCheck = verify_merge(found.recipe, sources, merged)
    assert check.is_same
    where: Found = find_files(found.recipe, [path.parent for path in base.paths])
    assert where.paths["base"] == base.paths[0]
    (folder / "merged.toml").write_text(as_toml(found.recipe), "utf-8")
    assert read_recipe(folder / "merged.toml") == found.recipe


def looking(lora: FileSource) -> None:
    """Look at a file as people and as programs do."""
    info: Info = describe(lora)
    components: Mapping[str, Part] = info.components
    assert sum(part.parameters for part in components.values()) > 0
    found: Lint = lint(lora, ["comfy"])
    verdicts: tuple[Verdict, ...] = found.verdicts
    reads: Mapping[str, Read] = verdicts[0].reads
    assert {one.state for one in reads.values()} <= {"loads", "perhaps", "left"}
    findings: tuple[Finding, ...] = found.findings
    assert [one.message for one in findings if one.severity == "error"] == []
    strongest: Spectrum = max(spectra(decode(lora)), key=lambda one: one.square or 0)
    assert strongest.square is not None
    assert abs(float(strongest.s.square().sum()) / strongest.square - 1) < 1e-6


def training() -> Adapter:
    """Put an adapter into a module, use every switch, and take it out."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    x = torch.randn(3, 64)
    names: list[str] = inject(model, ["2"], rank=2, name="own")
    assert names == ["2"]
    set_strength(model, 0.5)
    disable(model)
    enable(model, "own")
    before: Tensor = model(x)
    merge_into(model)
    assert torch.allclose(model(x), before)
    unmerge(model)
    adapter: Adapter = collect(model)
    eject(model)
    replaced: int = store_frozen(model, ["0"], store="int8")
    assert replaced == 1
    return adapter


def recording() -> Mapping[str, int]:
    """Record what goes into the layers of a module."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    recorder: Recorder = record(model)
    with recorder:
        model(torch.randn(3, 64))
    return recorder.counts


def blame(error: LoraOpsError) -> str:
    """Return what an error is about: a file, two of them, the request or the disk."""
    file: tuple[type[LoraOpsError], ...] = (
        *(FormatError, UnknownFormatError, UnsupportedLayerError, LayerShapeError),
        *(QuantisedError, UnsafePickleError, NonFiniteError),
    )
    if isinstance(error, file):
        return "file"
    if isinstance(error, MismatchError | TargetMismatchError | WeightShapeError):
        return "pair"
    return "disk" if isinstance(error, WriteError) else "request"


def describing(path: Path, output: Path) -> Described:
    """Write words about a file into it, and read them back."""
    beside: Sidecar = read_sidecar(path)
    assert not trigger_words(read_metadata(path), beside)
    edit: MetadataEdit = edit_metadata(read_metadata(path), {"modelspec.title": "mine"})
    assert "modelspec.title" in edit.changed
    words = {
        "modelspec.trigger_phrase": "a word",
        "modelspec.thumbnail": "data:image/png;base64,AAAA",
    }
    plan: MetadataPlan = plan_metadata_file(path, words, ["ss_*"], output=output)
    report: MetadataReport = edit_metadata_file(plan, output)
    assert report.size == output.stat().st_size
    told = described(read_metadata(output))
    picture: Thumbnail | None = told.thumbnail
    assert picture is not None
    return told


def main(base_path: str, tuned_path: str, room: Path) -> LoraOpsError | None:
    """Do all of it on two checkpoints; return what was said where there is nothing to extract."""
    with open_source(base_path) as base, open_source(tuned_path) as tuned:
        adapter = extraction(base, tuned, room / "lora.safetensors")
        several(base, tuned, room / "several")
        half = Division(options={"rank": 4}, part=(1, 2))
        assert all(one.engine for one in engines())
        assert in_parts(base, tuned, room / "parts.safetensors", half)
        with open_source(room / "lora.safetensors") as lora:
            assert sums(adapter).keys() == sums(decode(lora)).keys()
            editing(lora, base, room)
            assert planning(base, tuned, lora, room / "planned.safetensors") > 0
            baking(base, lora, room / "baked.safetensors")
            controlling(room)
            storing(base, room / "stored.safetensors")
            merging(base, tuned, room)
            looking(lora)
        told = describing(room / "lora.safetensors", room / "told.safetensors")
        assert told.trigger_words == ("a word",)
        assert len(training().layers) == 1
        assert set(recording().values()) == {3}
        try:
            extract(base, base, "4")
        except (ArgumentError, MismatchError, WriteError) as error:
            return error if blame(error) == "pair" else None
    return None
