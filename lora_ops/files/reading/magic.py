"""What a file is by its first bytes, for the ones that are not what their name says."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import FormatError

#: How many bytes from the start `identify` wants to see.
HEAD = 256


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of file that is not a safetensors file.

    Attributes:
        starts: What such a file begins with, in lower case.
        sentence: What it is and what to do about it.
        error: The error to raise.
        pickled: Whether `PickledFile` reads it.
        text: Whether blanks and a mark of Unicode may stand before it.
    """

    starts: tuple[bytes, ...]
    sentence: str
    error: type[FormatError] = FormatError
    pickled: bool = False
    text: bool = False


_CONVERT = "a PyTorch {} by its content; give it the ending .pt, or convert it to safetensors"
_SHIFTED = (
    "blanks or line ends stand before what would be its first byte, so it was changed on the way; "
    "download or copy it again"
)
_DOWNLOAD = "the download is not the file itself but {}; download it again"

_KINDS = (
    Kind((b"pk\x03\x04",), _CONVERT.format("zip archive"), pickled=True),
    Kind(
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        _CONVERT.format("pickle"),
        pickled=True,
    ),
    Kind(
        (b"gguf",),
        "a GGUF file by its content; give it the ending .gguf",
    ),
    Kind(
        (b"version https://git-lfs",),
        _DOWNLOAD.format("a Git LFS pointer") + " with `git lfs pull` or from the web page",
        text=True,
    ),
    Kind(
        (b"<!doctype", b"<html", b"<?xml"),
        _DOWNLOAD.format("a web page (perhaps a log-in page)"),
        text=True,
    ),
    Kind((b"{", b"["), "a JSON text by its content, not a file of tensors", text=True),
    Kind(
        (b"\0" * 16,),
        "begins with zeros: the download was probably not finished; download it again",
    ),
)


def identify(head: bytes) -> Kind | None:
    """Tell what else a file is that is no safetensors file.

    Args:
        head: The first bytes of the file, `HEAD` of them where it has so many.

    Returns:
        The kind, or None where nothing is recognised.
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = next((kind for kind in _KINDS if text.startswith(kind.starts)), None)
    if kind is not None and not kind.text and not head.lower().startswith(kind.starts):
        return Kind(kind.starts, _SHIFTED)
    return kind
