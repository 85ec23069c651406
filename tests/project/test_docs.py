"""README, docs and CHANGELOG are run and followed, not believed.

The convention: in a fence marked `console`, every line that begins with `$ lorakit ` is run, in the order
of the page and in one folder, which holds `base.safetensors`, `tuned.safetensors` and `tuned2.safetensors` (the digits).
What follows it, up to the next `$ ` or the end of the fence, must be what it prints (stdout, then
stderr), with exit status 1 or 2 if that begins with `Error:` or `Usage:`, else 0. Runs of spaces count
as one; empty lines, seconds and SHA-256 sums are not compared; decimals may differ by a hundredth (of
themselves or of one: the last places depend on the machine); a line that is only `…` stands for any
lines. A command without output under it is run, and must succeed. Fences marked `python` are run in the
same folder, each on its own. Nothing else is run: other fences and other commands are prose.

`python tests/test_docs.py` writes what the commands print under those that have no output yet.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import DIGITS, ROOT, Run, lorakit_here

import lorakit
from lorakit.cli import main

README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", DIGITS / "README.md", *sorted(ROOT.glob("docs/*.md"))]
SKIP = "…"

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(?![\w.]*\w)")
_TIMELESS = ((re.compile(r"\b\d+\.\d s\b"), "# s"), (re.compile(r"\b[0-9a-f]{64}\b"), "#"))


@dataclass(frozen=True)
class Shown:
    """A command on the page, what the page shows under it, and where that ends in the text."""

    words: str
    output: str
    end: int


def commands_in(text: str) -> Iterator[Shown]:
    for fence in _FENCE.finditer(text):
        if fence[1] != "console":
            continue
        for part in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", fence[2], re.MULTILINE):
            if part[1].startswith("lorakit "):
                yield Shown(part[1].removeprefix("lorakit "), part[2], fence.start(2) + part.end())


def programs_in(text: str) -> list[str]:
    return [fence[2] for fence in _FENCE.finditer(text) if fence[1] == "python"]


@contextlib.contextmanager
def folder_of_the_page() -> Iterator[None]:
    """Work in a new folder with the digits; leave it and remove it afterwards."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        for side in ("base", "tuned", "tuned2"):
            shutil.copy(DIGITS / f"{side}.safetensors", folder)
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def run_all(shown: list[Shown]) -> list[Run]:
    return [lorakit_here(*shlex.split(command.words)) for command in shown]


def agrees(shown: str, printed: str) -> bool:
    """Whether the page shows what was printed, as far as the convention compares it."""
    wanted, found = _lines(shown), _lines(printed)
    if SKIP not in wanted:
        return len(wanted) == len(found) and all(map(_alike, wanted, found))
    gap = wanted.index(SKIP)
    head, rest = wanted[:gap], wanted[gap + 1 :]
    if len(found) < len(head) or not all(map(_alike, head, found[:gap])):
        return False
    return any(
        agrees("\n".join(rest), "\n".join(found[start:])) for start in range(gap, len(found) + 1)
    )


def _lines(text: str) -> list[str]:
    for pattern, stand_in in _TIMELESS:
        text = pattern.sub(stand_in, text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def _alike(wanted: str, found: str) -> bool:
    if _NUMBER.sub("0.0", wanted) != _NUMBER.sub("0.0", found):
        return False
    pairs = zip(_NUMBER.findall(wanted), _NUMBER.findall(found), strict=True)
    return all(float(a) == pytest.approx(float(b), rel=0.01, abs=0.01) for a, b in pairs)


COMMANDS = list(commands_in(README.read_text("utf-8")))
PROGRAMS = programs_in(README.read_text("utf-8"))


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    with folder_of_the_page():
        return run_all(COMMANDS)


@pytest.mark.parametrize("index", range(len(COMMANDS)), ids=[c.words for c in COMMANDS])
def test_commands_print_what_the_readme_shows(index: int, runs: list[Run]) -> None:
    shown, run = COMMANDS[index], runs[index]
    refused = shown.output.startswith(("Error:", "Usage:"))
    assert (run.status in (1, 2)) if refused else (run.status == 0), run.err
    if shown.output.strip():
        assert agrees(shown.output, run.out + run.err), run.out + run.err


@pytest.mark.parametrize("index", range(len(PROGRAMS)))
def test_programs_run(index: int) -> None:
    with folder_of_the_page():
        exec(compile(PROGRAMS[index], f"README.md, program {index}", "exec"), {})


def test_the_readme_shows_commands_and_a_program() -> None:
    names = {command.words.split()[0] for command in COMMANDS}
    assert {"extract", "verify", "info"} <= names
    assert any(command.output.startswith("Error:") for command in COMMANDS)
    assert PROGRAMS


@pytest.mark.parametrize("name", main.commands)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"`lorakit {name}" in README.read_text("utf-8")


def test_the_changelog_knows_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## \[?{re.escape(lorakit.__version__)}\b", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text("utf-8")):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), link


def anchors(text: str) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


class TestTheConvention:
    """The reader of pages, on pages that are made up."""

    PAGE = (
        "```console\n$ lorakit info a\nkind  x\n\n$ lorakit info b\n$ ls\nfile\n```\n"
        "```bash\n$ lorakit no\n```\n```python\n1 + 1\n```\n"
    )

    def test_commands_are_found_with_their_output(self) -> None:
        found = [(c.words, c.output) for c in commands_in(self.PAGE)]
        assert found == [("info a", "kind  x\n\n"), ("info b", "")]
        assert [self.PAGE[c.end :][:2] for c in commands_in(self.PAGE)] == ["$ ", "$ "]
        assert programs_in(self.PAGE) == ["1 + 1\n"]

    @pytest.mark.parametrize(
        ("shown", "printed"),
        [
            ("a  b\n\nc\n", "\n a b  \nc"),
            ("417.8 kB, 0.5 s\n", "417.8 kB, 12.3 s\n"),
            ("error 0.5879, 65.43%", "error 0.5880, 65.44%"),
            ("1\n…\n9", "1\n2\n3\n9"),
            ("…\n9", "9"),
            ("…", "1\n2"),
            ("hash " + "a" * 64, "hash " + "b" * 64),
        ],
    )
    def test_equal_enough(self, shown: str, printed: str) -> None:
        assert agrees(shown, printed)

    @pytest.mark.parametrize(
        ("shown", "printed"),
        [
            ("a", "b"),
            ("a", "a\nb"),
            ("a\nb", "a"),
            ("8 layers", "9 layers"),
            ("error 0.5879", "error 0.6879"),
            ("error 0.5879", "error none"),
            ("1\n…\n9", "1\n2\n3"),
            ("1\n…\n9", "2\n9"),
            ("Error: x", ""),
        ],
    )
    def test_different(self, shown: str, printed: str) -> None:
        assert not agrees(shown, printed)


def fill(page: Path) -> None:
    """Write what commands print under those that show nothing yet."""
    text = page.read_text("utf-8")
    shown = list(commands_in(text))
    with folder_of_the_page():
        results = run_all(shown)
    for command, run in reversed(list(zip(shown, results, strict=True))):
        if not command.output.strip():
            lines = [line.rstrip() for line in (run.out + run.err).strip("\n").splitlines()]
            text = (
                text[: command.end] + "".join(f"{line}\n" for line in lines) + text[command.end :]
            )
    page.write_text(text, "utf-8")


if __name__ == "__main__":
    fill(README)
