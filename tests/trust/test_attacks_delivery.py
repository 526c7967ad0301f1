"""Attacks of a carrier that lies about bytes: endless, short, swapped, slow, junk, damaged; and what two thousand mutations give.

Each by the name that the catalogue (``attacks``) gives it. The device is left with what it had.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attack_kit import TIMESTAMP, accepted, device_of, refused
from repository_simulator import RepositorySimulator, TreeSource
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import Metadata, Timestamp  # type: ignore[attr-defined]

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.index import METADATA_SIZE_BYTES_MAX, decode_index_untrusted


@pytest.fixture
def device(fleet: RepositorySimulator) -> Iterator[TrustClient]:
    with device_of(fleet) as device:
        yield device


def path_of(fleet: RepositorySimulator, ending: str) -> str:
    return max(path for path in fleet.tree() if path.endswith(ending))


# 6: lengths and hashes


@pytest.mark.parametrize(
    "victim", ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json", "second.toml"]
)
def test_endless_data_is_read_no_further_than_the_bound(
    fleet: RepositorySimulator, device: TrustClient, victim: str
) -> None:
    fleet.publish_policy("second")
    asked: dict[str, int] = {}

    class Endless(TreeSource):
        async def fetch(self, path: str, size_bytes_max: int) -> bytes:
            asked[path] = size_bytes_max
            return bytes(size_bytes_max + 1) if path.endswith(victim) else await super().fetch(path, size_bytes_max)

    refused(device, Endless(fleet.origin), "incomplete", reason="at most")
    bound = next(size for path, size in asked.items() if path.endswith(victim))
    signed = {"2.root.json": METADATA_SIZE_BYTES_MAX["root"], "timestamp.json": METADATA_SIZE_BYTES_MAX["timestamp"]}
    assert bound == (signed.get(victim) or len(fleet.tree()[path_of(fleet, victim)]))


@pytest.mark.parametrize("what", ["short", "swapped", "long", "empty"])
def test_a_target_that_is_not_what_was_signed(fleet: RepositorySimulator, device: TrustClient, what: str) -> None:
    fleet.publish_policy("second", "version = 2\n")
    path = path_of(fleet, "second.toml")
    data = fleet.tree()[path]
    served = {"short": data[:-1], "swapped": data[::-1], "long": data + b"\n", "empty": b""}[what]
    refused(device, fleet.source(replaced={path: served}), "incomplete" if what == "long" else "bad")
    accepted(device, fleet.source())


@pytest.mark.parametrize("victim", [TIMESTAMP, "2.snapshot.json", "2.targets.json", "second.toml"])
@pytest.mark.parametrize("rate_bytes_per_s", [0, 1], ids=["nothing after the head", "a byte a second"])
async def test_a_slow_carrier_is_cut_at_the_deadline_and_the_next_one_serves(
    fleet: RepositorySimulator, rate_bytes_per_s: int, victim: str
) -> None:
    """10.4: virtual time runs while the worker thread waits for the loop; the wall does not."""

    class Dripping(TreeSource):
        async def fetch(self, path: str, size_bytes_max: int) -> bytes:
            data = await super().fetch(path, size_bytes_max)
            if path.endswith(victim):
                await trio.sleep(len(data) / rate_bytes_per_s if rate_bytes_per_s else math.inf)
            return data

    clock = trio.testing.MockClock(rate=0)
    with fleet.client(file_timeout_s=10, attempt_timeout_s=60) as device:
        outcome: list[Any] = []

        def main() -> None:
            async def both() -> None:
                await device.attempt(fleet.source())
                fleet.publish_policy("second")
                began_s = trio.current_time()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ticks, clock)
                    outcome.append(await device.attempt(Dripping(fleet.origin)))
                    outcome.append(trio.current_time() - began_s)
                    outcome.append(await device.attempt(fleet.source()))
                    nursery.cancel_scope.cancel()

            trio.run(both, clock=clock)

        await trio.to_thread.run_sync(main)
    cut, took_s, after = outcome
    assert cut.kind == "incomplete", cut.reason
    assert "within 10 s" in cut.reason
    assert took_s <= 60 + 1
    assert after.kind == "good"


async def ticks(clock: trio.testing.MockClock) -> None:
    """A second of virtual time whenever everybody has had a turn."""
    while True:
        await trio.testing.wait_all_tasks_blocked(0.001)
        clock.jump(1)


# 7: not metadata at all

STRANGE: dict[str, bytes] = {
    "not JSON": b"<html>captive portal</html>",
    "nothing": b"",
    "8000 levels": b"[" * 8_000 + b"]" * 8_000,
    "a number of 5000 digits": b'{"signatures": [], "signed": {"_type": "timestamp", "version": '
    + b"9" * 5_000
    + b"}}",
    "not a number": b'{"signatures": [], "signed": {"_type": "timestamp", "version": NaN}}',
    "infinity": b'{"signatures": [], "signed": {"_type": "timestamp", "version": Infinity}}',
    "a list": b"[]",
    "a text": b'"timestamp"',
    "another encoding": '{"signatures": []}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_no_metadata(fleet: RepositorySimulator, device: TrustClient, name: str) -> None:
    refused(device, fleet.source(replaced={TIMESTAMP: STRANGE[name]}), "bad")


SIGNED_STRANGE: dict[str, dict[str, Any]] = {
    "specification 2.0": {"spec_version": "2.0.0"},
    "no specification": {"spec_version": ""},
    "another type": {"_type": "snapshot"},
    "a type of no role": {"_type": "mirrors"},
    "version as text": {"version": "2"},
    "version zero": {"version": 0},
    "negative version": {"version": -1},
    "version true": {"version": True},
    "expires as number": {"expires": 1},
    "expires in another zone": {"expires": "2099-01-01T00:00:00+02:00"},
    "meta as list": {"meta": []},
    "meta without snapshot": {"meta": {}},
    "length as text": {"meta": {"snapshot.json": {"version": 2, "length": "9", "hashes": {"sha256": "0" * 64}}}},
    "negative length": {"meta": {"snapshot.json": {"version": 2, "length": -1, "hashes": {"sha256": "0" * 64}}}},
    "hash of a name that is no algorithm": {
        "meta": {"snapshot.json": {"version": 2, "length": 9, "hashes": {"x": "0"}}}
    },
    "issued as number": {"x-pcm-issued": 7},
    "issued in the year 9999": {"x-pcm-issued": "9999-12-31T23:59:59-14:00"},
}


@pytest.mark.parametrize("name", SIGNED_STRANGE)
def test_a_signed_document_with_a_strange_field_never_breaks_the_device(
    fleet: RepositorySimulator, device: TrustClient, name: str
) -> None:
    """A thief of the timestamp key signs what no publisher would: refused, or harmless where the field is only a remark."""
    fleet.publish_policy("second")
    document = json.loads(fleet.tree()[TIMESTAMP])
    document["signed"] |= SIGNED_STRANGE[name]
    signature = fleet.keys.timestamp.sign(str(encode_canonical(document["signed"])).encode())
    document["signatures"] = [signature.to_dict()]
    source = fleet.source(replaced={TIMESTAMP: json.dumps(document).encode()})
    if name.startswith("issued"):
        accepted(device, source)
        end = Metadata[Timestamp].from_bytes(fleet.tree()[TIMESTAMP]).signed.expires
        assert device.now() in {fleet.clock.now, end}, (
            "a signed moment counts to the end of its document, and no further"
        )
    else:
        refused(device, source, "bad", "incomplete")


# junk: padding and false signatures around genuine documents


def padded(data: bytes, size_bytes: int) -> bytes:
    return data + b" " * (size_bytes - len(data))


def with_false_signatures(data: bytes, count: int) -> bytes:
    document = json.loads(data)
    document["signatures"] += [{"keyid": f"{number:064x}", "sig": "ab" * 64} for number in range(count)]
    return json.dumps(document).encode()


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_not_a_byte_can_be_added_to_what_is_bound_by_length_and_hash(
    fleet: RepositorySimulator, device: TrustClient, role: str
) -> None:
    fleet.publish_policy("second")
    path = f"metadata/2.{role}.json"
    data = fleet.tree()[path]
    for served in (data + b" ", with_false_signatures(data, 20_000)):
        refused(device, fleet.source(replaced={path: served}), "incomplete")


@pytest.mark.parametrize(("path", "role"), [(TIMESTAMP, "timestamp"), ("metadata/2.root.json", "root")])
def test_junk_around_what_nothing_binds_is_bounded(
    fleet: RepositorySimulator, device: TrustClient, path: str, role: str
) -> None:
    """Timestamp and root are named by nobody, so a carrier can pad them: up to the bound, and not beyond."""
    fleet.publish_policy("second")
    fleet.publish_root(lambda root: None)
    data = fleet.tree()[path]
    bound = METADATA_SIZE_BYTES_MAX[role]
    refused(device, fleet.source(replaced={path: with_false_signatures(data, 20_000)}), "incomplete")
    refused(device, fleet.source(replaced={path: padded(data, bound + 1)}), "incomplete")
    # Within the bound it is read, and what is kept and handed on is what was signed.
    document = json.loads(with_false_signatures(data, 20))
    document["x"] = "y" * 1_000
    document["signatures"][0]["x"] = "y" * 1_000
    document["signatures"][0]["sig"] = " " * 500 + document["signatures"][0]["sig"].upper()
    accepted(device, fleet.source(replaced={path: padded(json.dumps(document).encode(), bound)}))
    served = device.serve(path)
    assert served is not None
    assert json.loads(served) == json.loads(data)
    assert len(served) <= len(data)


@pytest.mark.parametrize("signature", [7, None, "zz", ["ab"]], ids=repr)
def test_a_signature_of_a_known_key_that_is_no_text_is_not_handed_on(tmp_path: Path, signature: object) -> None:
    """Beside enough good ones, where nothing binds what a carrier puts."""
    fleet = RepositorySimulator(tmp_path, owners=("alice", "bob", "carol"), root_threshold=2)
    fleet.publish_root(lambda root: None)
    path = "metadata/2.root.json"
    document = json.loads(fleet.tree()[path])
    document["signatures"][0]["sig"] = signature
    with fleet.client() as device:
        accepted(device, fleet.source(replaced={path: json.dumps(document).encode()}))
        assert len(json.loads(device.serve(path) or b"{}")["signatures"]) == 2


# 10.13: mutations


def mutant(data: bytes, rng: random.Random) -> bytes:
    """Flipped, cut, doubled, or a JSON value in the place of another."""
    match rng.randrange(4):
        case 0:
            at = rng.randrange(len(data))
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            at = rng.randrange(len(data))
            return data[:at] + data[at + rng.choice((1, 2, 8)) :]
        case 2:
            at = rng.randrange(len(data))
            return (
                data[:at]
                + rng.choice((b'"', b"}", b"null", b"1e999", b"-1", b"\\u0000", b"\xff", b",", b" "))
                + data[at:]
            )
        case _:
            document = json.loads(data)
            pending, places = [document], []
            while pending:
                node = pending.pop()
                keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
                places += [(node, key) for key in keys]
                pending += [node[key] for key in keys]
            node, key = rng.choice(places)
            node[key] = rng.choice((None, -1, 2**63, "", "..", [], {}, True, 10**30, "0" * 64, [[[]]], {"a": "b"}))
            return json.dumps(document).encode()


KINDS = {"good", "unchanged", "older", "expired", "incomplete", "bad"}


@pytest.mark.parametrize("part", range(4))
def test_two_thousand_mutations_end_in_a_verdict_and_accept_only_what_was_signed(
    fleet_in_memory: RepositorySimulator, part: int
) -> None:
    """Any file of a newer state, or one it no longer needs, mutated, in four parts.

    There is a verdict each time, and what is accepted was signed so.
    """
    fleet, rng, kinds = fleet_in_memory, random.Random(part), Counter[str]()
    with device_of(fleet) as device:
        assert device.view is not None
        former = path_of(fleet, "index.json")
        fleet.publish_policy("second")
        tree, before, begun = fleet.tree(), device.view, device.digest()
        (index,) = (path for path in tree if path.endswith("index.json") and path != former)
        roles = {role: f"metadata/2.{role}.json" for role in ("snapshot", "targets")} | {"timestamp": TIMESTAMP}
        genuine = {role: Metadata[Any].from_bytes(tree[path]).signed_bytes for role, path in roles.items()}
        paths = (TIMESTAMP, TIMESTAMP, *roles.values(), index, former)

        async def main() -> None:
            for _ in range(500):
                path = rng.choice(paths)
                result = await device.attempt(TreeSource({**tree, path: mutant(tree[path], rng)}))
                kinds[result.kind] += 1
                if result.kind == "good":
                    assert result.view is not None
                    for role, signed in genuine.items():
                        data = result.view.metadata(f"metadata/{role}.json")
                        assert data is not None
                        assert Metadata[Any].from_bytes(data).signed_bytes == signed, role
                    device.close()
                    forget(fleet.folder / "device", before.folder)
                    device.open()
                assert device.digest() == begun

        trio.run(main)
    assert kinds.keys() <= KINDS
    assert min(kinds["bad"], kinds["good"], kinds["incomplete"]) > 5, f"the mutations reach all of it: {kinds}"


def forget(folder: Path, generation: Path) -> None:
    """Back to the state before the newest swap, floor included: only the test can do that."""
    for path in (folder / "generations").iterdir():
        if path != generation:
            shutil.rmtree(path)
    (folder / "current").write_text(f"{generation.name}\n")
    (folder / "floor.json").unlink()


def test_the_index_is_judged_like_everything_else() -> None:
    for data in STRANGE.values():
        with pytest.raises(UntrustedBytes):
            decode_index_untrusted(data)
