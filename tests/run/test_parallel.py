"""Jobs side by side: in order, few ahead, and out of them at any moment."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from lorakit.lora_ops.run.workers import in_background, ordered_map

# Ctrl-C at any point of the main thread's work: nothing may wait for ever, and nothing but it comes out.
INTERRUPTED = """
import random, signal
from lorakit.lora_ops.run.workers import in_background, ordered_map

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
draw = random.Random(0)
stopped = 0
for _ in range(1500):
    try:
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, 4e-3))
        result, wait = in_background(lambda: 1)
        for _ in ordered_map(lambda i: sum(range(200)), range(400), 2):
            pass
        result()
        wait()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        stopped += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(stopped)
"""


def test_results_come_in_order_and_few_are_ahead() -> None:
    started: list[int] = []

    def job(number: int) -> int:
        started.append(number)
        time.sleep(random.Random(number).uniform(0, 0.003))
        return -number

    for done, result in enumerate(ordered_map(job, range(40), 3, spare=2)):
        assert result == -done
        assert len(started) <= done + 1 + 3 + 2
    assert sorted(started) == list(range(40))


def test_an_error_comes_where_its_result_would_and_stops_the_rest() -> None:
    begun: list[int] = []

    def job(number: int) -> int:
        begun.append(number)
        if number == 5:
            raise ValueError("five")
        return number

    seen = []
    with pytest.raises(ValueError, match="five"):  # noqa: PT012
        for result in ordered_map(job, range(100), 2):
            seen.append(result)
    assert seen == [0, 1, 2, 3, 4]
    assert max(begun) < 10


def test_leaving_early_waits_for_what_runs_and_leaves_no_thread() -> None:
    before, threads = torch.get_num_threads(), threading.active_count()
    results = ordered_map(lambda number: (time.sleep(0.01), number)[1], range(100), 2)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == threads
    assert torch.get_num_threads() == before


def test_a_call_in_the_background_gives_its_result_or_its_error() -> None:
    result, wait = in_background(lambda: 7)
    wait()
    assert result() == 7
    result, wait = in_background(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        result()
    wait()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_an_interrupt_at_any_moment_is_just_that() -> None:
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 100
