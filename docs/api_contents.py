"""What docs/api.md says beside the docstrings: the order of the names, and what leads elsewhere."""

from __future__ import annotations

from dataclasses import fields

from lorakit.lora_ops import Architecture

HEAD = """\
# The Python interface

Made from the code by `docs/make_api.py`. All names are in `lorakit.lora_ops`.
[examples/](../examples) has a short program for each of the common jobs.

Operations come in two forms. Those on objects take and give what is in memory (`resize`, `add`, `bake`). Those on files
(`resize_file`, `add_files`, `bake_file`) stream, so that memory stays bounded, and write a file that is complete under its
name or not there at all. What is opened is closed by `with`. Tensors that are handed in are never written into; what `inject`
and its like change is the module.
"""
#: What the page has, in its order: title, what to say first, names.
THEMES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Open and save",
        "A file, or a dict of tensors, is a source; `decode` makes an adapter of a source.",
        (
            *(
                "open_source",
                "decode",
                "save_adapter",
                "Adapter",
                "Layer",
                "LoraLayer",
                "FullLayer",
            ),
            *("TensorSource", "Element", "DictSource", "FileSource", "MemoryFile", "Output"),
        ),
    ),
    (
        "Extract a LoRA",
        "From two checkpoints; `verify` measures any LoRA against them. A rule is a number or text, such as "
        '`"energy=0.9,max=64,conv=8"`: [all of them](../README.md#ranks).',
        (
            *("extract", "plan_file", "extract_file", "extract_files", "verify"),
            *(
                "plan_extraction",
                "PlanOptions",
                "Embeddings",
                "preview_extraction",
                "preview_files",
            ),
            *("Plan", "Pairing", "Pair", "RankRule", "parse_rank"),
        ),
    ),
    (
        "Control-LoRAs",
        "Of a ControlNet and the checkpoint that it was made from, and the ControlNet of it again: "
        "[what they are](control_loras.md).",
        (
            *("plan_control_file", "extract_control_file", "preview_control", "ControlOptions"),
            *("ControlPlan", "is_control_lora", "plan_control_bake_file", "bake_control_file"),
            "preview_control_bake",
        ),
    ),
    (
        "Edit adapters",
        "From the factors alone; nothing large is decomposed. Rules are those of above, and budgets for all layers "
        'together: `"size=50MB"`, `"mean=16"`, `"total_error=0.1"`.',
        (
            *("resize", "resize_file", "scale", "scale_file", "add", "add_files", "convert"),
            *(
                "plan_resize_file",
                "ResizeOptions",
                "plan_scale_file",
                "plan_add_files",
                "AddOptions",
            ),
            *("plan_convert_file", "ConvertOptions", "EditPlan"),
            *("convert_file", "Term", "Ingredient", "Budget", "parse_rule", "Convention"),
            *("Architecture", "architecture_named"),
        ),
    ),
    (
        "Checkpoints with adapters",
        "Baked in at a strength, or taken out again with `sign=-1`.",
        ("bake", "plan_bake_file", "bake_file", "plan_bake", "BakePlan", "preview_bake"),
    ),
    (
        "Merge checkpoints",
        "By a recipe: a line, a document, or what a merged file says of itself; [merging.md](merging.md), [recipes.md](recipes.md).",
        (
            *("merge", "plan_merge_file", "merge_file", "plan_merge", "MergeOptions", "MergePlan"),
            *(
                "preview_merge",
                "MergeReport",
                "MergedSource",
                "verify_merge",
                "MergeCheck",
                "Recipe",
                "RecipeFile",
                "parse_line",
                "recipe_of_loras",
                "read_recipe",
            ),
            *("parse_document", "as_toml", "open_recipe", "Ancestor", "find_files", "Found"),
        ),
    ),
    (
        "Store checkpoints with scales",
        "Float8, int8, mxfp8 and nvfp4, as ComfyUI loads them; [quantised.md](quantised.md).",
        ("plan_requantise_file", "requantise_file", "RequantisePlan", "preview_requantise"),
    ),
    (
        "Look into files",
        "",
        (
            *("describe", "Info", "Part", "compare", "Comparison", "LayerComparison"),
            *("compare_checkpoints", "CheckpointComparison", "ParameterComparison"),
            *("GroupComparison", "Likeness"),
            *("compare_several", "SeveralComparison", "LayerConflict", "Conflict", "lint"),
            *("Lint", "Finding", "Verdict", "Read", "spectra", "Spectrum"),
        ),
    ),
    (
        "What a file says of itself",
        "Kohya's entries and those of the model specification, and what other programs keep beside a file.",
        (
            *("described", "Described", "trigger_words", "Thumbnail", "read_sidecar", "Sidecar"),
            *("read_metadata", "plan_metadata_file", "edit_metadata_file", "MetadataPlan"),
            *("MetadataReport", "edit_metadata", "MetadataEdit"),
        ),
    ),
    (
        "Train in a module",
        "[training.md](training.md) says how they play together.",
        (
            *("inject", "collect", "eject", "enable", "disable", "set_strength", "merge_into"),
            *("unmerge", "store_frozen"),
        ),
    ),
    (
        "What a model uses",
        "[activations.md](activations.md) says what it is good for.",
        ("record", "Recorder"),
    ),
    (
        "Results, and where to compute",
        "",
        (
            *("Report", "LayerReport", "Rounding", "Weighted", "EditReport", "BakedLayer", "Skip"),
            *("Progress", "Preview", "PlannedLayer"),
            *("place", "Placement", "Division", "Processes", "RayTasks"),
        ),
    ),
    (
        "Errors",
        "",
        (
            *("LoraOpsError", "FormatError", "UnknownFormatError", "UnsupportedLayerError"),
            *("LayerShapeError", "QuantisedError", "UnsafePickleError", "MismatchError"),
            *("TargetMismatchError", "WeightShapeError", "ArgumentError", "WriteError"),
            *("NonFiniteError", "MissingPartsError"),
        ),
    ),
)
#: Where the reader finds what docstrings call by the name of something that is not on the page.
ELSEWHERE = {
    "ranks": "../README.md#ranks",
    "budgets": "../README.md#editing-loras",
    "methods": "../README.md#editing-loras",
    "rules": "blocks.md",
    "lint.programs": "lint.md",
    "Resizing": "#resize_file",
    "run_bake": "#bake_file",
    "to_lora": "kinds.md",
    "foreign.read_foreign": "recipes.md",
    "RenamedSource": "#class-filesource",
}
#: What layers say of themselves to the operations.
_OF_LAYERS = {
    *("has_factors", "is_full", "is_proportional", "is_made_whole", "is_compact", "is_peft_only"),
    *("is_pair", "inner_rank", "stored_alpha", "bias", "stored_numbers", "in_dtype"),
    *("times", "with_alpha", "at_scale", "with_rows", "stored_change", "norm", "missed"),
    *("kronecker", "factors_of"),
}
#: What is public for the package's own sake.
INNER = {
    **dict.fromkeys(("Layer", "FullLayer", "LoraLayer"), _OF_LAYERS),
    "Architecture": {field.name for field in fields(Architecture)} - {"name", "title"},
    "BakePlan": {"changes", "lost", "idle", "tensors", "wanted", "gguf", "outside"},
    "ControlPlan": {"own"},
    "EditPlan": {"draft", "work", "describe", "foresee", "told", "notes", "ahead"},
    "FileSource": {"stamps", "parts", "own_key", "copy_into"},
    "Ingredient": {"record"},
    "MemoryFile": {"copy_into"},
    "MergePlan": {"tensors", "surveys", "gguf"},
    "Pair": {"base", "tuned"},
    "Placement": {"scope", "batches"},
    "Plan": {"activations", "form", "form_for", "moment", "sides", "working_set"},
    "Recipe": {"steps", "output"},
    "RequantisePlan": {"tensors", "wanted", "gguf"},
    "RankRule": {"first_guess", "choose", "choose_within"},
}
#: Types that people make themselves; the others are handed to them.
MADE = {
    *("Adapter", "DictSource", "FullLayer", "LoraLayer", "MemoryFile", "Ingredient", "Term"),
    *("Budget", "Placement", "RankRule", "MergedSource", "RecipeFile"),
    *("Division", "Processes", "RayTasks"),
}
#: What a name that is no class and no function stands for.
ALIASES = {
    "Output": "Where a result goes: a path on disk, or a file in memory, which is filled.",
    "Progress": "Called with what is done, what there is in all, and the name of what was finished.",
    "Convention": "Where programs differ: as the kind's paper and its authors' program define it, or "
    "as ComfyUI applies it; see docs/kinds.md.",
    "Embeddings": "What becomes of embeddings and heads that changed in a folder of PEFT: kept whole, given "
    "factors, or left out.",
}
