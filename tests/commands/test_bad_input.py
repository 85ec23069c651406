"""Wrong files and wrong requests: one clear line, the right exit status, and nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from commands import ROOT, contents, lorakit_here, python, tiny, tiny_pair
from hostile import HEADERS, OTHERS, malicious
from safetensors.torch import load_file, save_file
from torch import Tensor

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX limits or permissions")

COULD_NOT, ASKED_WRONGLY = 1, 2


LINEAR = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
BIAS = LINEAR.replace(".weight", ".bias")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with base.safetensors and tuned.safetensors."""
    tiny_pair(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(status: int, *words: object) -> str:
    """Run a command that must be refused; return what it says after `Error: `."""
    before = contents(Path())
    run = lorakit_here(*words)
    assert run.out == ""
    assert (run.status, run.err.count("\n")) == (status, 1), run.err
    assert run.err.startswith("Error: ")
    assert run.err.endswith("\n")
    assert contents(Path()) == before
    return run.err.removeprefix("Error: ").rstrip("\n")


def extraction(
    status: int = COULD_NOT, *options: str, base: object = "base.safetensors",
    tuned: object = "tuned.safetensors", output: object = "out.safetensors",
) -> str:  # fmt: skip
    return refusal(status, "extract", base, tuned, "-o", output, *options)


def altered(name: str, change: Mapping[str, Tensor] | Callable[[Tensor], Tensor]) -> str:
    """The tuned model with some tensors replaced, or all of them converted, as a file."""
    tensors = load_file("tuned.safetensors")
    if isinstance(change, Mapping):
        tensors |= change
    else:
        tensors = {key: change(tensor) for key, tensor in tensors.items()}
    save_file(tensors, name)
    return name


class TestFilesThatAreNotThere:
    @pytest.mark.parametrize("command", ["info", "extract", "verify"])
    def test_missing(self, here: Path, command: str) -> None:
        words = {
            "info": ["tund.safetensors"],
            "extract": ["base.safetensors", "tund.safetensors", "-o", "out.safetensors"],
            "verify": ["base.safetensors", "tuned.safetensors", "tund.safetensors"],
        }
        message = refusal(ASKED_WRONGLY, command, *words[command])
        assert message == "tund.safetensors: no such file; did you mean `tuned.safetensors`?"

    def test_missing_folder(self, here: Path) -> None:
        message = refusal(ASKED_WRONGLY, "info", "no/base.safetensors")
        assert message == "no/base.safetensors: no such file: the folder `no` does not exist"

    def test_a_folder_without_weights(self, here: Path) -> None:
        (here / "empty").mkdir()
        assert "empty: the folder holds no weights" in extraction(base="empty")

    @posix_only
    def test_a_file_that_may_not_be_read(self, here: Path) -> None:
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        (here / "base.safetensors").chmod(0)
        assert "base.safetensors: cannot be opened: Permission denied" in extraction(ASKED_WRONGLY)

    def test_a_name_with_a_line_break_is_still_one_line(self, here: Path) -> None:
        assert refusal(ASKED_WRONGLY, "info", "a\nb\x1b[2J").startswith(
            r"a\nb\x1b[2J: no such file"
        )


class TestFilesOfAnotherKind:
    @pytest.mark.parametrize("name", [*HEADERS, *OTHERS])
    def test_damaged_hostile_or_foreign(self, here: Path, name: str) -> None:
        content, words = (HEADERS | OTHERS)[name]
        (here / "bad.safetensors").write_bytes(content)
        message = refusal(COULD_NOT, "info", "bad.safetensors")
        assert message.startswith("bad.safetensors: ")
        assert words in message

    @pytest.mark.parametrize(
        "name", ["empty", "truncated", "lfs", "html", "gguf", "zip", "overlap"]
    )
    @pytest.mark.parametrize("side", ["base", "tuned"])
    def test_as_a_side_of_an_extraction(self, here: Path, name: str, side: str) -> None:
        whole = (here / "base.safetensors").read_bytes()
        content, words = {**HEADERS, **OTHERS, "truncated": (whole[:-1], "truncated")}[name]
        (here / "bad.safetensors").write_bytes(content)
        message = extraction(**{side: "bad.safetensors"})
        assert message.startswith("bad.safetensors: ")
        assert words in message

    @pytest.mark.parametrize("kind", ["zip", "legacy", "protocol 0", "protocol 4"])
    def test_malicious_pickles(self, here: Path, kind: str) -> None:
        (here / "bad.ckpt").write_bytes(malicious(here / "trace", kind))
        message = extraction(tuned="bad.ckpt")
        assert message.startswith("bad.ckpt: ")
        assert not (here / "trace").exists()


class TestNumbers:
    @pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
    @pytest.mark.parametrize("key", [LINEAR, BIAS])
    @pytest.mark.parametrize("side", ["base", "tuned"])
    def test_not_finite(self, here: Path, value: str, key: str, side: str) -> None:
        tensor = load_file("tuned.safetensors")[key]
        tensor.view(-1)[3] = float(value)
        altered("bad.safetensors", {key: tensor})
        message = extraction(**{side: "bad.safetensors"})
        counts = "1 NaN and 0 infinite" if value == "nan" else "0 NaN and 1 infinite"
        assert message.startswith(f"bad.safetensors: `{key}` holds {counts} values")

    def test_too_large_for_the_factors(self, here: Path) -> None:
        altered("bad.safetensors", {LINEAR: torch.full((8, 8), 1e12)})
        message = extraction(COULD_NOT, "--dtype", "fp16", tuned="bad.safetensors")
        assert "do not fit float16" in message
        assert "use --dtype bf16 or fp32" in message

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
    def test_integers(self, here: Path, dtype: torch.dtype) -> None:
        altered("bad.safetensors", lambda tensor: (10 * tensor).to(dtype))
        message = extraction(tuned="bad.safetensors")
        assert message.startswith("bad.safetensors: the weights are quantised (packed integers in ")

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
    @pytest.mark.parametrize("side", ["base", "tuned"])
    def test_other_numbers_that_are_no_weights(
        self, here: Path, dtype: torch.dtype, side: str
    ) -> None:
        altered("bad.safetensors", lambda tensor: (10 * tensor).to(dtype))
        assert "bad.safetensors" in extraction(**{side: "bad.safetensors"})

    @pytest.mark.parametrize(
        ("scheme", "keys"),
        [
            ("scaled fp8", {"scaled_fp8": torch.zeros(2), f"{LINEAR[:-7]}.scale_weight": torch.ones(1) * 2}),
            ("comfy_quant", {f"{LINEAR[:-7]}.comfy_quant": torch.zeros(9, dtype=torch.uint8)}),
            ("bitsandbytes nf4", {f"{LINEAR}.quant_state.bitsandbytes__nf4": torch.zeros(9)}),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("side", ["base", "tuned"])
    def test_quantised(
        self, here: Path, scheme: str, keys: Mapping[str, Tensor], side: str
    ) -> None:
        altered("bad.safetensors", keys)
        message = extraction(**{side: "bad.safetensors"})
        assert message.startswith(f"bad.safetensors: the weights are quantised ({scheme}")
        assert "give the unquantised" in message


class TestFilesThatDoNotBelongTogether:
    def test_the_same_file_twice(self, here: Path) -> None:
        message = extraction(tuned="base.safetensors")
        assert message.startswith("base.safetensors and base.safetensors are one file")

    @pytest.mark.parametrize("how", [shutil.copy, os.link, os.symlink])
    def test_the_same_numbers_twice(self, here: Path, how: Callable[[str, str], object]) -> None:
        how("base.safetensors", "again.safetensors")
        message = extraction(tuned="again.safetensors")
        assert "base.safetensors and again.safetensors" in message.replace(" between", "")
        assert "no layer differs" in message

    def test_another_architecture(self, here: Path) -> None:
        other = {
            f"double_blocks.{i}.img_attn.{name}.weight": torch.randn(8, 8)
            for i in range(3)
            for name in ("qkv", "proj")
        }
        save_file(other, "other.safetensors")
        for side in ("base", "tuned"):
            message = extraction(**{side: "other.safetensors"})
            assert "other.safetensors" in message
            assert "0 of" in message or "names" in message

    def test_another_size(self, here: Path) -> None:
        wide = {k: torch.cat([v, v]) for k, v in load_file("tuned.safetensors").items()}
        save_file(wide, "wide.safetensors")
        message = extraction(tuned="wide.safetensors")
        assert message.startswith("only 0 of ")
        assert "(8, 4, 3, 3) in base.safetensors and (16, 4, 3, 3) in wide.safetensors" in message

    def test_a_checkpoint_as_lora(self, here: Path) -> None:
        words = ("verify", "base.safetensors", "tuned.safetensors", "tuned.safetensors")
        assert "is a checkpoint or a part of one" in refusal(COULD_NOT, *words)

    @pytest.mark.parametrize("side", ["base", "tuned"])
    def test_a_lora_as_checkpoint(self, here: Path, side: str) -> None:
        lora("lora.safetensors")
        assert "lora.safetensors is an adapter" in extraction(**{side: "lora.safetensors"})

    def test_loras_as_checkpoints(self, here: Path) -> None:
        """The difference of two sets of factors is no difference of models."""
        lora("one.safetensors", "-r", "2")
        altered("tuned.safetensors", lambda tensor: tensor + tensor.square())
        lora("two.safetensors", "-r", "2")
        assert "is an adapter" in extraction(base="one.safetensors", tuned="two.safetensors")

    def test_a_lora_of_another_model(self, here: Path) -> None:
        lora("lora.safetensors")
        factors = load_file("lora.safetensors")
        moved = {k.replace("input_blocks.1", "input_blocks.7"): v for k, v in factors.items()}
        save_file(moved, "moved.safetensors")
        message = refusal(
            COULD_NOT, "verify", "base.safetensors", "tuned.safetensors", "moved.safetensors"
        )
        assert message.startswith(
            "3 of 4 layers of moved.safetensors are not in both base.safetensors"
        )
        assert "nearest: `diffusion_model.input_blocks.1." in message

    def test_a_lora_between_equal_models(self, here: Path) -> None:
        """There is nothing to be close to: an error of 0 would be the opposite of the truth."""
        lora("lora.safetensors")
        shutil.copy("base.safetensors", "same.safetensors")
        message = refusal(
            COULD_NOT, "verify", "base.safetensors", "same.safetensors", "lora.safetensors"
        )
        assert "no layer differs" in message

    def test_a_lora_with_one_layer_too_many(self, here: Path) -> None:
        """A layer for a weight that did not change counts: the total is a number, above the others."""
        lora("lora.safetensors")
        altered("mixed.safetensors", {LINEAR: load_file("base.safetensors")[LINEAR]})
        run = lorakit_here(
            "verify", "base.safetensors", "mixed.safetensors", "lora.safetensors", "--allow-other"
        )
        assert run.status == 0
        assert re.search(r"4 layers, relative error [\d.]+ ", run.out)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_float8_is_no_bad_input(here: Path, dtype: torch.dtype, side: str) -> None:
    """The twin of the refusals: narrow, but plain numbers. The change is above their spacing."""
    altered("fp8.safetensors", lambda tensor: tensor.to(dtype))
    altered("three.safetensors", lambda tensor: 3 * tensor)
    sides = ["fp8.safetensors", "three.safetensors"][:: 1 if side == "base" else -1]
    run = lorakit_here("extract", *sides, "-o", "out.safetensors")
    assert run.status == 0


def lora(name: str, *options: str) -> None:
    words = ("extract", "base.safetensors", "tuned.safetensors", "-o", name, *options)
    assert lorakit_here(*words).status == 0


class TestOutputs:
    @pytest.mark.parametrize("options", [(), ("--force",)])
    def test_an_input_is_never_replaced(self, here: Path, options: tuple[str, ...]) -> None:
        Path("link.safetensors").symlink_to("base.safetensors")
        os.link("tuned.safetensors", "hard.safetensors")
        for name in ("base", "tuned", "link", "hard"):
            message = extraction(ASKED_WRONGLY, *options, output=f"{name}.safetensors")
            assert "the output is the same file as the input" in message

    def test_what_exists_needs_force(self, here: Path) -> None:
        (here / "out.safetensors").write_bytes(b"mine")
        assert extraction(ASKED_WRONGLY) == (
            "out.safetensors: exists already; choose another name or use --force"
        )

    @pytest.mark.parametrize(
        ("output", "words"),
        [
            ("no/where/out.safetensors", "the folder `no/where` does not exist"),
            (".", "is a folder"),
            ("folder.safetensors", "is a folder"),
            ("out", "must end in `.safetensors`"),
            ("out.ckpt", "must end in `.safetensors`"),
            (f"{'n' * 300}.safetensors", "File name too long"),
        ],
    )
    def test_places_where_nothing_can_be(self, here: Path, output: str, words: str) -> None:
        (here / "folder.safetensors").mkdir()
        assert words in extraction(ASKED_WRONGLY, output=output)

    @posix_only
    def test_a_folder_that_is_read_only(self, here: Path) -> None:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        (here / "closed").mkdir(mode=0o500)
        assert "may not be written to" in extraction(ASKED_WRONGLY, output="closed/out.safetensors")

    @posix_only
    def test_a_full_disk(self, here: Path) -> None:
        """A limit on file sizes stands for it: the system refuses to write on."""
        limited = (
            "import resource, signal, sys\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
            "from lorakit.cli import main\n"
            "main(sys.argv[1:])"
        )
        (here / "out.safetensors").write_bytes(b"mine")
        before = contents(here)
        sides = [ROOT / "examples" / "digits" / f"{side}.safetensors" for side in ("base", "tuned")]
        run = python(limited, "extract", *sides, "-o", here / "out.safetensors", "--force")
        assert (run.status, run.out) == (COULD_NOT, "")
        assert run.err.startswith(
            f"Error: {here / 'out.safetensors'}: could not be written: File too"
        )
        assert run.err.count("\n") == 1
        assert contents(here) == before


class TestReports:
    @pytest.mark.parametrize(
        "name", ["base.safetensors", "out.safetensors", "report", "report.txt"]
    )
    @pytest.mark.parametrize("command", ["info", "extract"])
    def test_no_model_is_lost_to_a_report(self, here: Path, name: str, command: str) -> None:
        more = {"info": ["base.safetensors"], "extract": ["base.safetensors", "tuned.safetensors",
                "-o", "out.safetensors"]}[command]  # fmt: skip
        message = refusal(ASKED_WRONGLY, command, *more, "--json", name)
        assert message == f"{name}: a report must end in `.json`; `-` is stdout"

    def test_nor_an_index(self, here: Path) -> None:
        keys = dict.fromkeys(tiny(), "base.safetensors")
        text = str({"weight_map": keys}).replace("'", '"')
        (here / "model.safetensors.index.json").write_text(text)
        name = "model.safetensors.index.json"
        assert "same file as an input" in refusal(ASKED_WRONGLY, "info", name, "--json", name)

    @pytest.mark.parametrize(
        ("name", "words"), [("no/r.json", "`no` does not exist"), ("r.json", "is a folder")]
    )
    def test_it_is_refused_before_the_work(self, here: Path, name: str, words: str) -> None:
        (here / "r.json").mkdir()
        assert words in extraction(ASKED_WRONGLY, "--json", name)


class TestRequests:
    @pytest.mark.parametrize(
        ("rule", "words"),
        [
            ("enrgy=0.9", "did you mean `energy`?"),
            ("energy=1.5", "a share between 0 and 1"),
            ("energy=nan", "a share between 0 and 1"),
            ("ratio=0.5", "a number above 1"),
            ("99999999", "a whole number from 1"),
            ("-3", "a rank is a whole number from 1"),
            ("", "use a number or one of rank, energy"),
            ("min=4", "start it with a rank"),
            ("8,16", "holds two rules"),
            ("8,min=9,max=4", "min=9 is above max=4"),
            ("8,max=²", "a whole number from 1"),
            ("8,conv=enrgy=1", "did you mean `energy`?"),
            ("size=50XB", "is not a size"),
            ("size=1kB", "is too small: the smallest single rank takes"),
            ("0", "rank 0"),
        ],
    )
    def test_rank_rules(self, here: Path, rule: str, words: str) -> None:
        assert words in extraction(ASKED_WRONGLY, f"--rank={rule}")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--format", "kohya"], "format `kohya` is not offered for an unknown architecture"),
            (["--format", "kohya", "--dry-run"], "format `kohya` is not offered"),
            (["--format", "kohya", "--full-differences"], "no place for full differences"),
            (["--include", "*atn1*"], "pattern `*atn1*` fits none of 4 targets"),
            (["--exclude", "*"], "leave none of 4 layers"),
            (["--components", "unet,vea"], "unknown component `vea`; choose among unet, te, vae"),
            (["--components", ""], "unknown component"),
            (["--device", "cuad"], "device `cuad` is not available; here are: auto, cpu"),
            (["--device", "cuda:99"], "device `cuda:99` is not available"),
            (["--device", "meta"], "device `meta` is not available"),
            (["--device", "cpu", "--vram", "1kB"], "raise --vram"),
            (["--vram", "0"], "give a positive number"),
            (["--vram", "-5"], "give a positive number"),
            (["--vram", "much"], "`much` is not a size; write 8GB, 512MiB"),
            (["--vram", "inf"], "`inf` is not a size"),
            (["--vram", ""], "`` is not a size"),
        ],
    )
    def test_options(self, here: Path, options: list[str], words: str) -> None:
        assert words in extraction(ASKED_WRONGLY, *options)

    def test_a_component_that_is_not_there(self, here: Path) -> None:
        message = extraction(COULD_NOT, "--components", "unet, te")
        assert message.startswith(
            "base.safetensors and tuned.safetensors: no weights of a text enc"
        )
        assert "leave `te` out" in message

    @pytest.mark.parametrize("strength", ["nan", "inf"])
    def test_strengths(self, here: Path, strength: str) -> None:
        lora("lora.safetensors")
        sides = ("base.safetensors", "tuned.safetensors", "lora.safetensors")
        message = refusal(ASKED_WRONGLY, "verify", *sides, "--strength", strength)
        assert strength in message
