"""Parts from Python: how work is shared, what makes two plans one, and threads at all parts at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pytest
from commands import DIGITS, contents, tiny_pair
from hypothesis import given
from hypothesis import strategies as some

from lorakit.lora_ops import (
    Division,
    Ingredient,
    MemoryFile,
    MissingPartsError,
    bake_file,
    extract_file,
    open_source,
    plan_bake_file,
    plan_file,
)
from lorakit.lora_ops.errors import ArgumentError, MismatchError
from lorakit.lora_ops.parts.manifest import shares
from lorakit.lora_ops.run.job import Job

BASE, LORA = DIGITS / "base.safetensors", DIGITS / "lora.safetensors"


@given(some.lists(some.integers(0, 10**12), max_size=40), some.integers(1, 60))
def test_every_job_is_in_one_share_and_none_is_too_large(costs, count):
    jobs = [Job(str(number), number, cost) for number, cost in enumerate(costs)]
    found = shares(jobs, count)
    assert list(chain(*(found[number] for number in sorted(found)))) == jobs
    assert set(found) <= set(range(1, count + 1))
    for part in found.values():
        most = max(job.cost for job in part)
        assert sum(job.cost for job in part) <= sum(costs) / count + most


def baked(output: Path, strength: float, division: Division | None = None):
    with open_source(BASE) as base, open_source(LORA) as lora:
        plan = plan_bake_file(base, [Ingredient(lora, strength)], output=output)
        return bake_file(plan, base, output, division=division)


def test_other_strengths_are_another_plan_though_nobody_says_so(tmp_path):
    output = tmp_path / "out.safetensors"
    baked(output, 1.0, Division(part=(1, 2)))
    with pytest.raises(MismatchError, match="another recipe, or another record of it"):
        baked(output, 0.5, Division(part=(2, 2)))
    with pytest.raises(MissingPartsError) as caught:
        baked(output, 1.0, Division(finish=True))
    assert len(caught.value.items) > 10
    baked(output, 1.0, Division(part=(2, 2)))
    report = baked(output, 1.0, Division(finish=True))
    (tmp_path / "once").mkdir()
    assert baked(tmp_path / "once" / output.name, 1.0).layers == report.layers
    assert (tmp_path / "once" / output.name).read_bytes() == output.read_bytes()
    assert not (tmp_path / "out.safetensors.parts").exists()


def extracted(pair: tuple[Path, Path], output: Path | MemoryFile, division: Division | None = None):
    with open_source(pair[0]) as base, open_source(pair[1]) as tuned:
        plan = plan_file(base, tuned, 2, output=output)
        return extract_file(plan, base, tuned, output, division=division)


def test_threads_at_all_parts_at_once(tmp_path):
    """Each is made twice, too."""
    pair = tiny_pair(tmp_path)
    for name in ("once", "apart"):
        (tmp_path / name).mkdir()
    output = tmp_path / "apart" / "out.safetensors"
    extracted(pair, tmp_path / "once" / "out.safetensors")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: extracted(pair, output, Division(part=(n, 4))), [1, 2, 3, 4] * 2))
    extracted(pair, output, Division(finish=True, verify=True))
    assert contents(tmp_path / "apart") == contents(tmp_path / "once")


def test_a_file_in_memory_has_no_parts(tmp_path):
    with pytest.raises(ArgumentError, match="a file in memory is not made in parts"):
        extracted(tiny_pair(tmp_path), MemoryFile("out.safetensors"), Division(part=(1, 2)))


@pytest.mark.parametrize("part", [(0, 2), (3, 2)])
def test_there_is_no_such_part(part, tmp_path):
    with pytest.raises(ArgumentError, match="parts are 1 to 2"):
        extracted(tiny_pair(tmp_path), tmp_path / "out.safetensors", Division(part=part))
