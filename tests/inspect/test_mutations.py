"""Files that are nearly right: every command says what is wrong with them, and none of them breaks."""

from __future__ import annotations

import itertools

import mutations
import pytest
from safetensors.torch import save_file

from lorakit.lora_ops import DictSource, open_source
from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.errors import LoraOpsError
from lorakit.lora_ops.inspect.info import describe
from lorakit.lora_ops.inspect.lint import lint
from lorakit.lora_ops.operations.convert.convert import convert
from lorakit.lora_ops.operations.resize.resize import resize

#: Half pairs, truth values, complex alphas, names that are a prefix alone: lint broke on these.
BROKE = (1, 3, 10, 48, 113, 1246, 3417)
SEEDS = range(400)

OTHERS = {
    "info": describe,
    "decode": lambda source: [layer.shape for layer in decode(source).layers.values()],
    "convert": lambda source: convert(decode(source), "kohya"),
    "resize": lambda source: resize(decode(source), 1),
}


def source_of(mutant):
    return DictSource(mutant.tensors, mutant.metadata)


def tried(mutant, operation):
    """Whether it went through; an error of ours is fine, any other is told with its file."""
    try:
        operation(source_of(mutant))
    except LoraOpsError as error:
        assert str(error)  # noqa: PT017  the message is what is asked of it
        return False
    except Exception as error:  # noqa: BLE001  whatever it is, it is a fault
        pytest.fail(f"seed {mutant.seed}, {mutant.told}: {type(error).__name__}: {error}")
    return True


def checked(source):
    found = lint(source)
    keys = set(source.keys())
    assert found.to_dict()["findings"] is not None
    for verdict in found.verdicts:
        assert set(verdict.left) <= keys
        assert verdict.count("loads") + verdict.count("perhaps") <= verdict.layers


def test_lint_has_findings_or_an_error_of_ours():
    mutants = itertools.chain(
        mutations.mutants(SEEDS),
        *(mutations.mutants(range(seed, seed + 1)) for seed in BROKE),
    )
    done = [tried(mutant, checked) for mutant in mutants]
    assert 0.9 * len(done) < sum(done) < len(done), "most files are read, and some are not"


@pytest.mark.parametrize("name", OTHERS)
def test_other_readers_have_a_result_or_an_error_of_ours(name):
    done = [tried(mutant, OTHERS[name]) for mutant in mutations.mutants(range(120))]
    assert any(done)


def test_files_on_a_disk(tmp_path):
    """As above with what only files have: hashes, old spellings, their own reader."""
    for mutant in mutations.mutants(range(40)):
        path = tmp_path / "lora.safetensors"
        told = {key: t.contiguous().clone() for key, t in mutant.tensors.items()}
        save_file(told, path, mutant.metadata)

        def read(_, path=path):
            with open_source(path) as source:
                checked(source)

        tried(mutant, read)
