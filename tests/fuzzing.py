"""Mutates valid inputs of readers, and finds inputs that crash, hang or exhaust memory.

A reader must give a value or raise the error that it refuses inputs with; everything else is a finding.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

MAX_SECONDS = 5.0
MAX_BYTES = 200_000_000
FINDINGS = Path(__file__).parent / "findings"

Reader = Callable[[bytes], object]
Corpus = Mapping[str, tuple[bytes, tuple[Reader, ...]]]


def mutate(data: bytes, rng: random.Random, words: Sequence[bytes]) -> bytes:
    """Change an input one to four times: replace bytes, cut, repeat, remove, insert words of its format."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(6)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] = rng.randrange(256)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            del changed[at : at + rng.randint(1, 100)]
        elif kind == 3:
            changed[at:at] = changed[at : at + rng.randint(1, 200)]
        elif kind == 4:
            word = rng.choice(words)
            changed[at : at + (len(word) if rng.random() < 0.5 else 0)] = word
        elif len(changed) >= 4:
            place = rng.randrange(max(1, len(changed) // 4)) * 4
            changed[place : place + 4] = rng.randbytes(4)
    return bytes(changed)


def attempt(data: bytes, readers: tuple[Reader, ...], refusal: type[Exception]) -> str:
    """What is wrong with how an input is read; empty when nothing is.

    Args:
        data: The input.
        readers: Functions that read it.
        refusal: The error that they may raise.
    """
    started = time.perf_counter()
    for reader in readers:
        try:
            reader(data)
        except refusal:
            pass
        except Exception as error:  # noqa: BLE001 (every other exception is a finding)
            return f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - started
    return f"took {seconds:.1f} s" if seconds > MAX_SECONDS else ""


def run(
    corpus: Corpus,
    words: Sequence[bytes],
    refusal: type[Exception],
    count: int,
    seed: int = 0,
    counts: Counter[str] | None = None,
) -> Iterator[tuple[str, bytes, str]]:
    """Name of the seed, input and complaint for every finding among `count` mutated inputs.

    Args:
        corpus: Valid inputs and their readers, by name.
        words: Words of the formats.
        refusal: The error that readers may raise.
        count: Number of inputs.
        seed: Seed of the mutations.
        counts: Filled with the number of inputs made from each seed.
    """
    rng = random.Random(seed)
    names = sorted(corpus)
    for _ in range(count):
        name = rng.choice(names)
        data, readers = corpus[name]
        mutated = mutate(data, rng, words)
        complaint = attempt(mutated, readers, refusal)
        if counts is not None:
            counts[name] += 1
        if complaint:
            yield name, mutated, complaint


def options(description: str) -> argparse.Namespace:
    """Parse the options of a command that mutates inputs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="number of mutated inputs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations")
    parser.add_argument("--samples", type=Path, help="folder of real files to mutate as well")
    parser.add_argument("--keep", type=Path, default=FINDINGS, help="folder for findings")
    return parser.parse_args()


def report(corpus: Corpus, words: Sequence[bytes], refusal: type[Exception], chosen: argparse.Namespace) -> int:
    """Mutate, write every finding to a file, print the number of inputs of each kind; returns the exit status."""
    tracemalloc.start()
    findings, counts = 0, Counter[str]()
    started = time.monotonic()
    for name, data, complaint in run(corpus, words, refusal, chosen.count, chosen.seed, counts):
        chosen.keep.mkdir(parents=True, exist_ok=True)
        path = chosen.keep / f"{name}-{findings}.bin"
        path.write_bytes(data)
        findings += 1
        print(f"{path.name}: {complaint}", file=sys.stderr)
    peak = tracemalloc.get_traced_memory()[1]
    if peak > MAX_BYTES:
        print(f"memory: {peak:,} bytes at the peak", file=sys.stderr)
        findings += 1
    seconds = time.monotonic() - started
    print(", ".join(f"{name} {number:,}" for name, number in sorted(counts.items())))
    print(f"{chosen.count:,} inputs in {seconds:.0f} s, peak {peak / 1e6:.1f} MB, findings: {findings}")
    return 1 if findings else 0
