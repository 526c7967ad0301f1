"""The deny list: what it may say, that its epoch only grows, and that nobody gets off it by an old list."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.trust.deny import DEVICES_MAX, REASON_LENGTH_MAX, SIZE_BYTES_MAX, DenyList, decode_deny_untrusted, newer

FLEET, NOW = "ab" * 16, datetime(2026, 3, 1, 6, tzinfo=UTC)
ONE, TWO, THREE = (DeviceId(bytes([number]) * 16) for number in (1, 2, 3))
EMPTY = DenyList.empty(FLEET)
devices = st.sets(st.sampled_from([ONE, TWO, THREE]))


def test_a_revoked_device_is_on_the_list_with_reason_and_time_and_a_restored_one_is_not() -> None:
    revoked = EMPTY.with_devices([ONE, TWO], "stolen", NOW)
    entry = revoked.device(ONE)
    assert entry is not None
    assert (entry.reason, entry.since, entry.device_id) == ("stolen", NOW, ONE)
    assert revoked.device(THREE) is None
    restored = revoked.without_devices([ONE])
    assert restored.device(ONE) is None
    assert restored.device(TWO) is not None
    assert (EMPTY.epoch, revoked.epoch, restored.epoch) == (0, 1, 2)


def test_who_is_revoked_again_keeps_the_first_entry_and_the_list_its_epoch() -> None:
    revoked = EMPTY.with_devices([ONE], "stolen", NOW)
    assert revoked.with_devices([ONE], "lost", NOW.replace(year=2027)) == revoked


def test_an_authority_is_named_by_the_hash_of_its_certificate() -> None:
    denied = EMPTY.with_authorities([b"certificate"], "its key leaked", NOW)
    assert denied.authority(b"certificate") is not None
    assert denied.authority(b"certificatf") is None
    assert denied.with_authorities([b"certificate"], "again", NOW) == denied


@pytest.mark.parametrize("reason", ["", "x" * (REASON_LENGTH_MAX + 1), "a\x1b[2J", "two\nlines"])
def test_a_reason_is_one_printable_line(reason: str) -> None:
    with pytest.raises(InputError, match="reason"):
        EMPTY.with_devices([ONE], reason, NOW)


def test_who_is_not_revoked_cannot_be_restored() -> None:
    with pytest.raises(InputError, match="is not revoked"):
        EMPTY.with_devices([ONE], "x", NOW).without_devices([ONE, TWO])


def test_the_list_has_a_bound_which_its_bytes_keep_too() -> None:
    many = [DeviceId(number.to_bytes(16, "big")) for number in range(DEVICES_MAX)]
    full = EMPTY.with_devices(many, "r" * REASON_LENGTH_MAX, NOW)
    assert decode_deny_untrusted(full.encoded(), FLEET) == full
    with pytest.raises(InputError, match="would exceed"):
        EMPTY.with_devices(many, "\N{OGHAM LETTER BEITH}" * REASON_LENGTH_MAX, NOW)
    with pytest.raises(InputError, match="at most 10000"):
        full.with_devices([DeviceId(b"\xff" * 16)], "x", NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "pcm.deny/2"},
        {"fleet": "cd" * 16},
        {"epoch": -1},
        {"epoch": 1 << 53},
        {"devices": [{"id": "1" * 32, "since": "2026-03-01T06:00:00", "reason": "no offset"}]},
        {"devices": [{"id": "1" * 31, "since": "2026-03-01T06:00:00Z", "reason": "x"}]},
        {"devices": [{"id": "1" * 32, "since": "2026-03-01T06:00:00Z", "reason": ""}]},
        {"devices": [{"id": "1" * 32, "since": "2026-03-01T06:00:00Z", "reason": "x"}] * 2},
        {"authorities": [{"sha256": "1" * 64, "since": "2026-03-01T06:00:00Z", "reason": "x"}] * 2},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_list_that_breaks_a_rule_is_refused(change: dict[str, object]) -> None:
    good = json.loads(EMPTY.with_devices([ONE], "x", NOW).encoded())
    with pytest.raises(UntrustedBytes, match="deny list"):
        decode_deny_untrusted(json.dumps({**good, **change}).encode(), FLEET)


@given(st.binary(max_size=300))
def test_junk_is_refused_with_the_one_error(data: bytes) -> None:
    with pytest.raises(UntrustedBytes):
        decode_deny_untrusted(data, FLEET)


def test_an_oversize_list_is_not_parsed() -> None:
    with pytest.raises(UntrustedBytes, match="at most"):
        decode_deny_untrusted(b" " * (SIZE_BYTES_MAX + 1), FLEET)


@given(st.lists(st.tuples(st.booleans(), devices), max_size=12))
def test_the_list_says_what_was_done_last_and_survives_its_encoding(steps: list[tuple[bool, set[DeviceId]]]) -> None:
    now: set[DeviceId] = set()
    held = EMPTY
    for revoke, named in steps:
        before = held
        if revoke:
            held, now = held.with_devices(named, "x", NOW), now | named
        else:
            held, now = held.without_devices(named & now), now - named
        assert held.epoch >= before.epoch
        assert (held.epoch > before.epoch) == (held.devices != before.devices)
    assert {one.device_id for one in held.devices} == now
    assert decode_deny_untrusted(held.encoded(), FLEET) == held


def test_an_old_list_sets_nobody_free() -> None:
    first = EMPTY.with_devices([ONE], "x", NOW)
    second = first.with_devices([TWO], "x", NOW)
    assert newer(second, first) is second
    assert newer(first, second) is second
    assert newer(second, EMPTY) is second
    other = msgspec.structs.replace(second, devices=())
    assert newer(second, other) is second, "same epoch, other content: who holds one keeps it"
