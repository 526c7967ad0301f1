"""The long run: every decoder of foreign bytes, guided by coverage where atheris is installed (``pip install '.[fuzz]'``).

::

    python tests/fuzz/run.py [--decoder NAME ...] [--inputs 1000000] [--seconds S] [--no-atheris] [--keep]

``--inputs`` are shared among the decoders by what an input of each costs, ``--seconds`` is the most that one decoder may take.
Each decoder runs in a process of its own, one after the other. A finding is written to ``tests/fuzz/regressions``, which the
suite replays, and the run goes on; the exit code says whether there was any. ``--keep`` adds what reached new code to
``tests/fuzz/corpus`` (``fuzz_corpus``), from which later runs begin and which the suite replays, too. Half of the inputs are
mutations that keep the structure (``fuzz_mutations``), half are those of libFuzzer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import fuzz_corpus  # noqa: E402 - a module beside this one

COST = {
    "tuf-carried": 60,
    "tuf-signed": 60,
    "session": 8,
    "archive": 8,
    "stored-form": 8,
    "control": 4,
    "bundle": 8,
    "floor": 8,
    "floor-signed": 8,
    "proposal": 8,
    "delta": 4,
}
"""Processor time of one input, where it is far above the others'."""
HANG_S = 25
DIED = "the process died"


def shares(names: list[str], inputs: int) -> dict[str, int]:
    """How many of ``inputs`` each decoder gets: the dear ones fewer, together at least ``inputs``."""
    weight = {name: 1 / COST.get(name, 1) for name in names}
    total = sum(weight.values())
    return {name: max(1, int(inputs * weight[name] / total) + 1) for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the decoders of foreign bytes.")
    parser.add_argument("--decoder", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="over all decoders")
    parser.add_argument("--seconds", type=int, default=0, help="the most for one decoder; 0: no bound")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-atheris", action="store_true", help="mutations only, without coverage")
    parser.add_argument("--keep", action="store_true", help="add what reached new code to tests/fuzz/corpus")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options)
    from fuzz_decoders import DECODERS

    names = options.decoder or [decoder.name for decoder in DECODERS]
    if unknown := set(names) - {decoder.name for decoder in DECODERS}:
        parser.error(f"there is no decoder {', '.join(sorted(unknown))}")
    rows, begin_s = [], time.monotonic()
    print(f"{'decoder':<16}{'inputs':>10}{'edges':>8}{'corpus':>8}{'seconds':>9}  findings", flush=True)
    for name, inputs in shares(names, options.inputs).items():
        row = run_one(name, inputs, options)
        rows.append(row)
        print(
            f"{name:<16}{row['inputs']:>10,}{row['edges']:>8,}{row['corpus']:>8,}{row['seconds']:>9.0f}"
            f"  {'; '.join(row['findings']) or '-'}",
            flush=True,
        )
    total = sum(row["inputs"] for row in rows)
    found = sum(len(row["findings"]) for row in rows)
    print(f"{total:,} inputs over {len(rows)} decoders in {time.monotonic() - begin_s:.0f} s, {found} findings")
    return 1 if found else 0


def run_one(name: str, inputs: int, options: argparse.Namespace) -> dict[str, Any]:
    """One decoder in a child process; what it told, and what libFuzzer said."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        command = [sys.executable, __file__, "--child", name, "--inputs", str(inputs), "--seed", str(options.seed)]
        command += ["--seconds", str(options.seconds), *(["--no-atheris"] if options.no_atheris else [])]
        begin_s = time.monotonic()
        environment = {**os.environ, "FUZZ_FOLDER": folder, "TMPDIR": folder}
        result = subprocess.run(command, env=environment, capture_output=True, check=False)
        said = result.stderr.decode(errors="replace")
        row = {"inputs": 0, "findings": [], "edges": 0, "corpus": 0}
        if told.exists():
            row |= json.loads(told.read_text())
        if found := re.findall(r"cov: (\d+) ft: \d+ corp: (\d+)", said):
            row["edges"], row["corpus"] = (int(number) for number in found[-1])
        if executed := re.search(r"number_of_executed_units: *(\d+)", said):
            row["inputs"] = int(executed[1])
        for artifact in (*Path(folder).glob("crash-*"), *Path(folder).glob("timeout-*"), *Path(folder).glob("oom-*")):
            (HERE / "regressions" / f"{name}-{artifact.name[:20]}").write_bytes(artifact.read_bytes())
            row["findings"].append(artifact.name.partition("-")[0])
        if options.keep and (Path(folder) / "corpus").is_dir():
            fuzz_corpus.add(name, (file.read_bytes() for file in sorted((Path(folder) / "corpus").iterdir())))
        if result.returncode and not row["findings"]:
            row["findings"].append(f"{DIED}: {said[-2_000:]}")
        row["seconds"] = time.monotonic() - begin_s
        return row


def child(name: str, options: argparse.Namespace) -> int:
    """Fuzz one decoder in this process until the inputs or the time are used up."""
    try:
        import atheris
    except ImportError:
        atheris = None
    if options.no_atheris or atheris is None:
        return without_atheris(name, options)
    with atheris.instrument_imports(include=["pcm_p2p", "tuf", "securesystemslib"]):
        from fuzz_decoders import DECODERS
    decoder = next(each for each in DECODERS if each.name == name)
    diary = Diary(decoder)
    corpus = Path(os.environ["FUZZ_FOLDER"]) / "corpus"
    corpus.mkdir()
    for number, sample in enumerate([*decoder.samples(), *fuzz_corpus.load(name)]):
        (corpus / str(number)).write_bytes(sample)

    def mutate(data: bytes, size_bytes_max: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, size_bytes_max))
        return structured(decoder, data, rng)[:size_bytes_max]

    arguments = [
        sys.argv[0], f"-runs={options.inputs}", f"-max_len={decoder.input_bytes_max}", f"-timeout={HANG_S}", "-rss_limit_mb=2048",
        f"-seed={options.seed}", f"-artifact_prefix={os.environ['FUZZ_FOLDER']}/", "-print_final_stats=1",
        *([f"-max_total_time={options.seconds}"] if options.seconds else []), str(corpus),
    ]  # fmt: skip
    atheris.Setup(arguments, diary.take, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


def structured(decoder: Any, data: bytes, rng: random.Random) -> bytes:
    """A mutation that keeps the structure; the byte that chooses a document stays in front of it."""
    from fuzz_mutations import mutated

    if decoder.name.startswith("tuf-"):
        return data[:1] + mutated(data[1:], decoder.form, rng)
    return mutated(data, decoder.form, rng)


def without_atheris(name: str, options: argparse.Namespace) -> int:
    """The same without coverage: mutations of the samples, and of their mutations."""
    from fuzz_decoders import DECODERS

    decoder = next(each for each in DECODERS if each.name == name)
    diary, rng, samples = Diary(decoder), random.Random(options.seed), list(decoder.samples())
    end_s = time.monotonic() + options.seconds if options.seconds else float("inf")
    for _ in range(options.inputs):
        diary.take(structured(decoder, rng.choice(samples), rng)[: decoder.input_bytes_max])
        if time.monotonic() > end_s:
            break
    diary.tell()
    return 0


class Diary:
    """Judges inputs, keeps each finding once, and tells the parent every now and then (libFuzzer leaves without a word)."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._found: dict[str, str] = {}
        self._inputs = 0

    def take(self, data: bytes) -> None:
        from fuzz_verdict import judge, keep

        self._inputs += 1
        finding = judge(self._decoder, data)
        if finding is not None and finding.same_as not in self._found:
            self._found[finding.same_as] = keep(self._decoder, data).name
            print(finding.detail, file=sys.stderr, flush=True)
        if self._inputs % 1_000 == 0 or finding is not None:
            self.tell()

    def tell(self) -> None:
        told = {"inputs": self._inputs, "findings": [f"{what} ({file})" for what, file in self._found.items()]}
        (Path(os.environ["FUZZ_FOLDER"]) / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    sys.exit(main())
