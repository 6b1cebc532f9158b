"""Memory that tensors free stays with the process while it trains, and is returned afterwards."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from search.study.machine import ALLOCATOR_VARIABLES

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these options")

MIB = 64  # of each block
BLOCKS = 10
SCRIPT = f"""
import resource, torch
from search.study import machine
from search.study.machine import keep_freed_memory, spare_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({BLOCKS}):
        torch.zeros({MIB}, 2**18).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

usual = faults()
keep_freed_memory()
faults()
kept, held = faults(), resident()
spare_memory()
small = held - resident()  # given back, though it is a small share of the machine's memory
machine.HELD_SHARE = 0.0
spare_memory()
print(usual * resource.getpagesize(), kept * resource.getpagesize(), small, held - resident())
"""


def bytes_of(environment: dict[str, str]) -> list[int]:
    """Return the bytes that are cleared for ten blocks, usually and when memory is kept, and those given back."""
    clean = {name: value for name, value in os.environ.items() if name not in ALLOCATOR_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True, env=clean | environment
    )
    return list(map(int, done.stdout.split()))


def test_blocks_are_not_cleared_again_and_are_given_back_in_the_end() -> None:
    usual, kept, small, returned = bytes_of({})
    assert kept < usual / 20
    assert small < MIB * 2**20 / 20
    assert returned > 0.9 * MIB * 2**20


def test_a_choice_of_the_user_stays() -> None:
    usual, kept, *_ = bytes_of({"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"})
    assert kept > 0.9 * usual
