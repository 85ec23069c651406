"""Random bits by position, against published answers and a Philox in whole numbers of Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.lora_ops.linalg.random_bits import random_bits, random_key

# Random123's kat_vectors, philox4x64 with 10 rounds: counter, key, answer.
ANSWERS = [
    (
        "0000000000000000 0000000000000000 0000000000000000 0000000000000000",
        "0000000000000000 0000000000000000",
        "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b",
    ),
    (
        "ffffffffffffffff ffffffffffffffff ffffffffffffffff ffffffffffffffff",
        "ffffffffffffffff ffffffffffffffff",
        "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
    ),
    (
        "243f6a8885a308d3 13198a2e03707344 a4093822299f31d0 082efa98ec4e6c89",
        "452821e638d01377 be5466cf34e90c6c",
        "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
    ),
]
MASK = (1 << 64) - 1


def whole(words: list[int]) -> int:
    return sum(word << (64 * place) for place, word in enumerate(words))


def halves(words: list[int]) -> list[int]:
    """Each word as four numbers of 16 bits with a sign, the lowest first."""
    numbers = [(word >> shift) & 0xFFFF for word in words for shift in (0, 16, 32, 48)]
    return [number - (1 << 16) if number >> 15 else number for number in numbers]


def philox(key: int, block: int) -> list[int]:
    """Salmon et al.'s Philox4x64-10, from the paper."""
    k0, k1 = key & MASK, key >> 64
    c0, c1, c2, c3 = ((block >> (64 * place)) & MASK for place in range(4))
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (
            (second >> 64) ^ c1 ^ k0,
            second & MASK,
            (first >> 64) ^ c3 ^ k1,
            first & MASK,
        )
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("counter", "key", "answer"), ANSWERS)
def test_the_published_answers(counter, key, answer):
    counter, key, answer = (
        [int(word, 16) for word in text.split()] for text in (counter, key, answer)
    )
    assert philox(whole(key), whole(counter)) == answer
    assert random_bits(whole(key), 16 * whole(counter), 16).tolist() == halves(answer)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, (1 << 128) - 1), st.integers(0, 1 << 60), st.integers(0, 70))
def test_any_part_is_that_of_the_whole(key, first, count):
    blocks = range(first // 16, (first + count) // 16 + 1)
    stream = [number for block in blocks for number in halves(philox(key, block))]
    got = random_bits(key, first, count)
    assert got.dtype == torch.int16
    assert got.tolist() == stream[first % 16 : first % 16 + count]


def test_keys_differ_in_all_that_they_are_made_of():
    keys = {
        random_key(seed, name, index)
        for seed in (0, 1, -1, 10)
        for name in ("a", "b", "0", "")
        for index in (0, 1, 10)
    }
    assert len(keys) == 48
    # Fixed for ever: a recipe of today must make the same file.
    assert (
        random_key(7, "diffusion_model.out.2.weight", 1) == 24693128240795998125796978256485126559
    )
