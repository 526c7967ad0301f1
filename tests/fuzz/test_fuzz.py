"""Hostile bytes for every decoder: a little in each run of the suite, everything that was ever found, and no decoder left out."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import fuzz_corpus
import fuzz_tuf
import pytest
import run as fuzz_run
from fuzz_decoders import DECODERS, EXEMPT
from fuzz_mutations import mutated
from fuzz_verdict import REGRESSIONS, Decoder, Finding, judge
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.errors import UntrustedBytes

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "pcm_p2p"
DEAR = set(fuzz_run.COST)
decoders = pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)


@pytest.fixture(autouse=True, scope="module")
def _device_is_cleaned_up() -> Iterator[None]:
    yield
    if fuzz_tuf.device.cache_info().currsize:
        fuzz_tuf.device().close()


def by_name(name: str) -> Decoder:
    return next(decoder for decoder in DECODERS if decoder.name == name)


def of_file(path: Path) -> Decoder:
    """The decoder that a file of ``regressions`` is for: the longest name that its own begins with."""
    return max((each for each in DECODERS if path.name.startswith(f"{each.name}-")), key=lambda each: len(each.name))


def refuse(finding: Finding | None) -> None:
    assert finding is None, f"{finding.same_as}\n{finding.detail}"


@decoders
def test_samples_are_what_honest_people_send(decoder: Decoder, quick_disk: None) -> None:
    for sample in decoder.samples():
        assert len(sample) <= decoder.input_bytes_max
        decoder.decode(sample)


@pytest.mark.parametrize("decoder", [each for each in DECODERS if each.name not in DEAR], ids=lambda each: each.name)
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(st.one_of(st.binary(max_size=300), st.integers(0, 2**32)))
def test_noise_and_mutations_end_in_the_documented_error(decoder: Decoder, noise: bytes | int) -> None:
    if isinstance(noise, int):
        rng = random.Random(noise)
        noise = mutated(rng.choice(decoder.samples()), decoder.form, rng)
    refuse(judge(decoder, noise))


@pytest.mark.parametrize("name", sorted(DEAR))
def test_a_few_mutations_of_what_is_dear_to_decode(name: str, quick_disk: None) -> None:
    decoder, rng = by_name(name), random.Random(name)
    for _ in range(8):
        refuse(judge(decoder, fuzz_run.structured(decoder, rng.choice(decoder.samples()), rng)))


@pytest.mark.parametrize("path", sorted(REGRESSIONS.iterdir()), ids=lambda path: path.name)
def test_what_was_found_once_stays_fixed(path: Path, quick_disk: None) -> None:
    refuse(judge(of_file(path), path.read_bytes()))


def test_no_decoder_of_foreign_bytes_is_left_out() -> None:
    named = set(re.findall(r"\b_?[a-z_]+_untrusted\b", (HERE / "fuzz_decoders.py").read_text()))
    there = {name for path in PACKAGE.rglob("*.py") for name in re.findall(r"def (\w*_untrusted)\b", path.read_text())}
    assert there <= named, (
        f"{there - named}: give each a row in DECODERS, or name in EXEMPT the row that its bytes come through"
    )
    assert set(EXEMPT) <= there, f"exempt and gone: {set(EXEMPT) - there}"
    assert set(EXEMPT.values()) <= {decoder.name for decoder in DECODERS}


def boom(data: bytes) -> None:
    if data == b"crash":
        raise KeyError
    if data == b"slow":
        sum(range(3_000_000))
    if data == b"large":
        bytearray(b"x" * (256 << 20))
    raise UntrustedBytes("as documented")


@pytest.mark.parametrize("data", [b"crash", b"slow", b"large", b"fine"])
def test_the_judge_finds_crashes_slowness_and_memory(data: bytes) -> None:
    decoder = Decoder("boom", boom, list, cpu_s_max=0.01 if data == b"slow" else 60)
    finding = judge(decoder, data)
    assert (finding.kind if finding else "") == {b"crash": "crash", b"slow": "slow", b"large": "memory", b"fine": ""}[
        data
    ]


def test_a_run_shares_out_at_least_the_inputs_that_were_asked_for() -> None:
    names = [decoder.name for decoder in DECODERS]
    assert sum(fuzz_run.shares(names, 1_000_000).values()) >= 1_000_000
    assert fuzz_run.COST.keys() <= set(names)


KEPT = sorted(fuzz_corpus.FOLDER.glob("*.txt"))


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.stem)
def test_what_reached_new_code_ends_in_the_documented_error(file: Path) -> None:
    decoder = by_name(file.stem)
    inputs = fuzz_corpus.load(file.stem)
    assert 0 < len(inputs) <= fuzz_corpus.INPUTS_MAX
    for one in inputs:
        refuse(judge(decoder, one))
