"""What a file says of itself, for people: trigger words, title, what it was trained on, a picture.

The entries are kohya's (`ss_*`) and those of the model specification (`modelspec.*`). Anybody may have
written them: an entry that is not what it should be counts as absent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from .common import from_json
from .kohya import COMMENT
from .sidecar import Sidecar
from .thumbnail import Thumbnail, read_thumbnail

TRIGGER_PHRASE = "modelspec.trigger_phrase"
TAG_FREQUENCY = "ss_tag_frequency"
#: The most training tags that are taken for trigger words.
MOST_TAGS = 10
_MOST_WORDS = 100
_LONGEST = 10_000  # characters of a phrase
_ABSENT = ("", "None", "null")
# What is said of the training, by the entries that say it: the first that is there.
_TRAINING = {
    "rank": ("ss_network_dim",),
    "alpha": ("ss_network_alpha",),
    "module": ("ss_network_module",),
    "resolution": ("ss_resolution",),
    "images": ("ss_num_train_images",),
    "epochs": ("ss_epoch", "ss_num_epochs"),
    "steps": ("ss_steps", "ss_max_train_steps"),
    "learning rate": ("ss_unet_lr", "ss_learning_rate"),
    "optimizer": ("ss_optimizer",),
    "clip skip": ("ss_clip_skip",),
    "date": ("modelspec.date",),
}


@dataclass(frozen=True, slots=True)
class Described:
    """What a file, and what lies beside it, says of it. Texts are empty where nothing is said.

    Attributes:
        title: A name for people.
        trigger_words: See `trigger_words`.
        description: Of any length.
        usage_hint: One line on how to use it.
        base_model: What it was trained on: the file, the family, or both.
        author: Who made it.
        licence: A name, a link, or the terms.
        labels: What its maker files it under: style, person, …
        tags: The captions of its training: how many images have each, most first.
        training: What is known of the training: rank, alpha, resolution, images, ….
        comment: Of the training.
        notes: The user's own, from a sidecar.
        preferred_weight: The strength to use it at; None: not told.
        thumbnail: A picture, undecoded; None: there is none.
    """

    title: str = ""
    trigger_words: tuple[str, ...] = ()
    description: str = ""
    usage_hint: str = ""
    base_model: str = ""
    author: str = ""
    licence: str = ""
    labels: tuple[str, ...] = ()
    tags: Mapping[str, int] = field(default_factory=dict[str, int])
    training: Mapping[str, str] = field(default_factory=dict[str, str])
    comment: str = ""
    notes: str = ""
    preferred_weight: float | None = None
    thumbnail: Thumbnail | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as dicts, strings and numbers; of the picture, its type and bytes."""
        found = asdict(self)
        if self.thumbnail is not None:
            found["thumbnail"] = {"type": self.thumbnail.type, "bytes": len(self.thumbnail.data)}
        return found


def described(metadata: Mapping[str, str], sidecar: Sidecar | None = None) -> Described:
    """Return what a file says of itself.

    What is in the file comes before what lies beside it.

    Args:
        metadata: The file's string map.
        sidecar: Of `read_sidecar`; None: nothing lies beside it.
    """
    beside = sidecar or Sidecar()

    def said(*keys: str) -> str:
        return next((text for key in keys if (text := _text(metadata, key))), "")

    tags = training_tags(metadata)
    training = {name: said(*keys) for name, keys in _TRAINING.items()}
    return Described(
        title=said("modelspec.title") or beside.title or said("ss_output_name"),
        trigger_words=_chosen(metadata, beside) or _standing_out(tags),
        description=said("modelspec.description") or beside.description,
        usage_hint=said("modelspec.usage_hint"),
        base_model=_base_model(metadata) or beside.base_model,
        author=said("modelspec.author"),
        licence=said("modelspec.license"),
        labels=tuple(_words(said("modelspec.tags"))),
        tags=tags,
        training={name: text for name, text in training.items() if text},
        comment=said(COMMENT),
        notes=beside.notes,
        preferred_weight=beside.preferred_weight,
        thumbnail=read_thumbnail(metadata),
    )


def trigger_words(metadata: Mapping[str, str], sidecar: Sidecar | None = None) -> tuple[str, ...]:
    """Return the words that call what a LoRA has learned.

    They are those that somebody chose: `modelspec.trigger_phrase`, then what a sidecar says, its
    `activation text` first. Only where nobody did they are taken from the captions of the training: the tags
    that half as many images have as the most frequent one, over all datasets; ten at most, and none where that
    tells nothing, as every caption is another.

    Args:
        metadata: The file's string map.
        sidecar: Of `read_sidecar`; None: nothing lies beside it.

    Returns:
        Each word or phrase once, in this order; joined by commas they are part of a prompt.
    """
    return _chosen(metadata, sidecar or Sidecar()) or _standing_out(training_tags(metadata))


def training_tags(metadata: Mapping[str, str]) -> dict[str, int]:
    """Return how often each tag stood in the captions of the training, in all datasets, most first."""
    read = from_json(_text(metadata, TAG_FREQUENCY))
    found = Counter[str]()
    for name, value in cast("dict[str, object]", read).items() if isinstance(read, dict) else ():
        # By dataset; some programs leave that level out.
        tags = cast("dict[str, object]", value) if isinstance(value, dict) else {name: value}
        for tag, count in tags.items():
            if isinstance(count, int) and not isinstance(count, bool) and count > 0 and tag.strip():
                found[tag.strip()] += count
    return dict(found.most_common())


def _chosen(metadata: Mapping[str, str], sidecar: Sidecar) -> tuple[str, ...]:
    """The words that somebody wrote down, each once."""
    told = [_text(metadata, TRIGGER_PHRASE), *sidecar.trigger_words]
    return tuple(dict.fromkeys(word for text in told for word in _words(text)))[:_MOST_WORDS]


def _standing_out(tags: Mapping[str, int]) -> tuple[str, ...]:
    most = max(tags.values(), default=0)
    found = [tag for tag, count in tags.items() if 2 * count >= most]
    return () if most == 1 and len(found) > MOST_TAGS else tuple(found[:MOST_TAGS])


def _base_model(metadata: Mapping[str, str]) -> str:
    # A path says more of a stranger's disk than of the model.
    name = re.split(r"[/\\]", _text(metadata, "ss_sd_model_name"))[-1]
    family = _text(metadata, "ss_base_model_version")
    family = family or _text(metadata, "modelspec.architecture").removesuffix("/lora")
    return f"{name} ({family})" if name and family else name or family


def _text(metadata: Mapping[str, str], key: str) -> str:
    """An entry without what programs write for nothing."""
    value: object = metadata.get(key)
    text = value.strip() if isinstance(value, str) else ""
    return "" if text in _ABSENT else text


def _words(text: str) -> Iterator[str]:
    """The words of a phrase: between commas and ends of lines, but those within brackets."""
    word, depth = "", 0
    for char in f"{text[:_LONGEST]}\n":
        depth = max(depth + (char in "([") - (char in ")]"), 0)
        if char == "\n" or (char == "," and not depth):
            if word.strip():
                yield word.strip()
            word, depth = "", 0
        else:
            word += char
