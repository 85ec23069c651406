"""What is asked of `lorakit merge`: a line, terms, or a recipe; and the files of it, opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..lora_ops import (
    ArgumentError,
    FileSource,
    FormatError,
    Recipe,
    RecipeFile,
    find_files,
    open_recipe,
    parse_line,
)
from ..lora_ops.adapters.formats import modules
from ..lora_ops.models.pairing import nearest
from ..lora_ops.operations.merge.recipes.expression import recipe_of_terms
from ..lora_ops.operations.merge.recipes.recipe import Step, Term
from ..lora_ops.operations.methods.choosing import check_legacy
from ..lora_ops.text import plain
from .recipe import MERGED
from .terms import existing, parse_method, parse_term

_RECIPES = (".toml", ".json", ".yaml", ".yml", ".mecha", ".csv", ".txt")
_MODELS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".index.json")
# NAME=PATH: a name has no colon or slash, else it is a term with rules, or a path with `=` in it.
_GIVEN = re.compile(r"(?P<name>[^=:/\\]+)=(?P<path>.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Asked:
    """The options that shape a recipe; a document says most of them itself.

    Attributes:
        base: What the terms are changes of.
        method: `NAME[,PARAMETER=VALUE]`.
        blocks: Block weights of the terms that have none.
        where: Rules by name of the terms.
        seed: Of random masks, and of rounding by chance.
        parts: Whether a component is taken from a file.
    """

    base: str = ""
    method: str = ""
    blocks: str = ""
    where: tuple[str, ...] = ()
    seed: int | None = None
    parts: bool = False


@dataclass(slots=True)
class Request:
    """A recipe, and its files as they are opened.

    Attributes:
        open_file: Opens a file, to be closed when the command ends.
        is_checked: Whether a merged model is held against its recipe, not merged.
        sources: By the recipe's names.
        notes: What is worth a sentence of how the recipe was read.
    """

    open_file: Callable[[Path], FileSource]
    is_checked: bool = False
    sources: dict[str, FileSource] = field(default_factory=dict[str, FileSource])
    notes: list[str] = field(default_factory=list[str])

    def read(self, words: Sequence[str], asked: Asked, search: Sequence[Path]) -> Recipe:
        """Read what is asked for, and open its files.

        Args:
            words: Terms, or a line and NAME=PATH, or a recipe and NAME=PATH.
            asked: The options.
            search: Where to look for the files of a recipe.

        Raises:
            ArgumentError: It means nothing, or a file is nowhere.
        """
        given, rest = _sorted(words)
        recipes = [one for one in rest if _document([one], is_lone=False)]
        if recipes and len(rest) > 1:
            raise ArgumentError(
                f"`{plain(recipes[0])}` is a recipe, which says all that is merged; give other files by "
                "its names for them, as in `B=PATH`"
            )
        document = _document(rest, is_lone=not asked.parts and not asked.base)
        if document is not None:
            return self._of_document(document, asked, given, search)
        if search:
            raise ArgumentError("files are looked for where one recipe is given, and nothing else")
        if given or (len(rest) == 1 and not _is_term(rest[0])):
            return self._of_line(" ".join(rest), asked, given)
        return self._of_terms(rest, asked)

    def place(self, recipe: Recipe, text: str) -> tuple[str, Recipe]:
        """Return the name of a file or step, which a part may come from; a new file is opened.

        Args:
            recipe: Where the name is looked for.
            text: The name, or a path.
        """
        if text in recipe.files or text in {step.name for step in recipe.steps}:
            return text, recipe
        key = self._opened(Path(text), [*recipe.files, *(step.name for step in recipe.steps)])
        return key, replace(recipe, files={**recipe.files, key: self._file(key)})

    def _of_document(
        self, path: Path, asked: Asked, given: Mapping[str, Path], search: Sequence[Path]
    ) -> Recipe:
        if asked.method or asked.blocks or asked.where:
            raise ArgumentError(
                "a recipe says its own methods, blocks and rules: change them there, or write `$name` "
                "for a number, and give that"
            )
        is_model = path.is_dir() or path.name.lower().endswith(_MODELS)
        if is_model:
            self.open_file(path)  # if it is broken, that is what is said of it
        try:
            found = open_recipe(path)
        except FormatError as error:
            if is_model:
                told = (
                    error
                    if path.name.lower().endswith(MERGED) or path.is_dir()
                    else f"{path}: no recipe is in it"
                )
                raise ArgumentError(f"{told}; give a second model to merge it with") from error
            raise
        if found.recipe is None:
            raise FormatError("no recipe is recorded in it", path=path)
        if is_model:
            self.notes.append(f"made again by the recipe in {path.name}")
        self.notes += [f"not carried: {one}" for one in found.lost]
        recipe = found.recipe
        if asked.seed is not None:
            steps = tuple(replace(step, seed=asked.seed) for step in recipe.steps)
            recipe = replace(recipe, steps=steps)
        for name in given:
            if name not in recipe.files:
                raise ArgumentError(
                    f"the recipe has no file `{plain(name)}`; nearest: {nearest(name, recipe.files)}"
                )
        missing = {key: one for key, one in recipe.files.items() if key not in given}
        where = find_files(replace(recipe, files=missing), list(search) or [path.parent])
        lost = [key for key in missing if key not in where.paths]
        if lost:
            told = next(note for note in where.notes if f"`{missing[lost[0]].name}`" in note)
            way_out = "say where it is with --search FOLDER"
            if not self.is_checked:
                way_out = f"say where it is, as in `{lost[0]}=PATH`, or look with --search FOLDER"
            raise ArgumentError(f"{told}; {way_out}")
        self.notes += where.notes
        for key in recipe.files:
            self.sources[key] = self.open_file(given.get(key) or where.paths[key])
        return self._with_base(recipe, asked.base) if asked.base else recipe

    def _with_base(self, recipe: Recipe, base: str) -> Recipe:
        """A recipe whose last step gives a change, with the model that is changed."""
        *first, last = recipe.steps
        if last.base:
            raise ArgumentError(f"the recipe says its base itself: `{plain(last.base)}`")
        key, recipe = self.place(recipe, base)
        return replace(recipe, steps=(*first, replace(last, base=key)))

    def _of_line(self, line: str, asked: Asked, given: Mapping[str, Path]) -> Recipe:
        if asked.base:
            raise ArgumentError("a line says its base itself, as in `A + 0.3*(B - A)`")
        if not given:
            raise ArgumentError(
                f"`{plain(line)}` is no file; if it is a line, say which files its names are, as in "
                "A=PATH"
            )
        for name, path in given.items():
            self.sources[name] = self.open_file(path)
        files = {name: self._file(name) for name in given}
        try:
            recipe = parse_line(line, files, deltas=self._deltas())
        except ArgumentError as error:
            first, *marked = str(error).splitlines()
            raise ArgumentError(
                f"{first} of the line `{plain(line)}`" if marked else first
            ) from error
        (step,) = recipe.steps
        used = {step.base, *(name for term in step.terms for name in (term.of, term.minus))}
        if idle := [name for name in self.sources if name not in used]:
            raise ArgumentError(f"`{plain(idle[0])}` is given and not in the line `{plain(line)}`")
        return replace(recipe, steps=(_shaped(step, asked),))

    def _of_terms(self, words: Sequence[str], asked: Asked) -> Recipe:
        terms: list[Term] = []
        base = self._opened(Path(asked.base)) if asked.base else ""
        for one in map(parse_term, words):
            key = self._opened(one.path)
            terms.append(Term(key, weight=one.strength, blocks=one.blocks or ""))
        deltas = self._deltas()
        if deltas and not base and len(deltas) < len(self.sources):
            raise ArgumentError(
                f"{self.sources[deltas[0]].name} is a LoRA, which is a change and has no share in a "
                "mean; give the model that is changed as `base=`"
            )
        files = {name: self._file(name) for name in self.sources}
        recipe = recipe_of_terms(terms, files, base=base, deltas=deltas)
        (step,) = recipe.steps
        return replace(recipe, steps=(_shaped(step, asked),))

    def _opened(self, path: Path, taken: Sequence[str] = ()) -> str:
        """Open a file, once however often it is named, and return its name in the recipe."""
        for key, source in self.sources.items():
            if Path(source.name) == path:
                return key
        stem = plain(path.name).replace("$", "_").removesuffix(".json").removesuffix(".index")
        stem = next((stem[: -len(end)] for end in _MODELS if stem.lower().endswith(end)), stem)
        known, number, key = {*self.sources, *taken, "step1"}, 2, stem
        while key in known:
            key, number = f"{stem} {number}", number + 1
        self.sources[key] = self.open_file(path)
        return key

    def _file(self, key: str) -> RecipeFile:
        kind = "lora" if key in self._deltas() else ""
        return RecipeFile(Path(self.sources[key].name).name, kind=kind)

    def _deltas(self) -> list[str]:
        return [key for key, one in self.sources.items() if modules(one.keys()).is_adapter]


def _sorted(words: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """The files that are given by name, and the rest."""
    given: dict[str, Path] = {}
    rest: list[str] = []
    for word in words:
        found = _GIVEN.fullmatch(word)
        if found is None or existing(word) is not None:
            rest.append(word)
        elif found["name"] in given:
            raise ArgumentError(f"`{plain(found['name'])}` is given twice")
        else:
            given[found["name"]] = Path(found["path"])
    return given, rest


def _document(rest: Sequence[str], *, is_lone: bool) -> Path | None:
    """The recipe, or the merged model with one, where nothing else is to be merged."""
    if len(rest) != 1:
        return None
    path, name = Path(rest[0]), rest[0].lower()
    if name.endswith(_MODELS) or path.is_dir():
        return path if is_lone else None
    return path if name.endswith(_RECIPES) else None


def _is_term(text: str) -> bool:
    """Whether it is, or is meant as, a file with its weight, not a line."""
    return existing(text) is not None or parse_term(text).path.name.lower().endswith(_MODELS)


def _shaped(step: Step, asked: Asked) -> Step:
    """A step with what the options say of it."""
    if asked.method:
        name, parameters = parse_method(asked.method)
        own = {key: str(parameters.pop(key)) for key in ("sparsify", "legacy") if key in parameters}
        check_legacy(name, own.get("legacy", "no"), own.get("sparsify", "none"))
        step = replace(step, method=name, parameters=parameters, **own)
    if asked.blocks or asked.where:
        if not step.base:
            raise ArgumentError(
                "blocks and rules say how much of a change is taken; give the model that is changed as "
                "`base=`, or write a line such as `A + 0.3*(B - A)`"
            )
        terms = tuple(
            replace(one, blocks=one.blocks or asked.blocks, where=(*asked.where, *one.where))
            for one in step.terms
        )
        step = replace(step, terms=terms)
    return replace(step, seed=step.seed if asked.seed is None else asked.seed)
