"""Reports, records and acknowledgements: round trips, every refusal, noise."""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest
import zstandard
from blake3 import blake3
from compliance_world import START_MS, FakeCollector, FakeDevice, many_findings, reencoded, verify_certificate
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from pcm_p2p.compliance import acknowledgement, handover, record, report
from pcm_p2p.compliance.acknowledgement import AckEntry, Level, head_of, open_ack_untrusted, seal_ack
from pcm_p2p.compliance.finding import STATES, Finding, clip, tally
from pcm_p2p.compliance.record import (
    FIRST,
    RecordKey,
    open_record_untrusted,
    record_hash,
    seal_record,
    unseal_untrusted,
)
from pcm_p2p.compliance.report import pack, unpack_untrusted
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import DeviceId

ALICE, BOB, COLLECTOR = FakeDevice("alice"), FakeDevice("bob"), FakeCollector()


def sealed(device: FakeDevice = ALICE, seq: int = 1, packed: bytes | None = None, **changed: Any) -> bytes:
    arguments: dict[str, Any] = {
        "sign": device.sign,
        "certificate": device.certificate,
        "key": RecordKey(device.id, 7, seq),
        "previous": FIRST,
        "created_ms": START_MS,
        "collectors": [COLLECTOR.seal_key],
        "random_bytes": Random(seq).randbytes,
        **changed,
    }
    return seal_record(pack(device.report()) if packed is None else packed, **arguments)


def test_a_report_comes_back_as_it_was_written() -> None:
    original = ALICE.report(findings=many_findings(20))
    assert unpack_untrusted(pack(original)) == original


def test_a_report_that_is_too_large_is_shortened_step_by_step_and_says_so() -> None:
    seen = []
    for count, chars in ((200, 200), (900, 200), (1_500, 200), (9_000, 500)):
        findings = many_findings(count, chars)
        packed = pack(ALICE.report(findings=findings))
        assert len(packed) <= report.PACKED_SIZE_BYTES_MAX
        back = unpack_untrusted(packed)
        assert [finding.state for finding in back.findings] == [finding.state for finding in findings], (
            "states are never shortened away"
        )
        seen.append(back.shortened)
    assert seen == [0, 1, 2, 3]


def test_a_report_that_never_fits_is_refused_with_a_remedy() -> None:
    huge = ALICE.report(findings=tuple(Finding("p" * 250, 1, os.urandom(120).hex(), "fail") for _ in range(16_000)))
    with pytest.raises(report.ReportTooLarge) as caught:
        pack(huge)
    assert caught.value.remedy


def test_what_a_reader_would_refuse_fails_at_its_author() -> None:
    with pytest.raises(report.ReportTooLarge):
        pack(msgspec.structs.replace(ALICE.report(), hostname="x" * 300))


def test_a_newer_device_may_say_more_than_an_older_collector_knows() -> None:
    body = msgspec.json.decode(msgspec.json.encode(ALICE.report()))
    body["invented_later"] = {"a": 1}
    packed = zstandard.ZstdCompressor().compress(msgspec.json.encode(body))
    assert unpack_untrusted(packed) == ALICE.report()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"schema":"pcm.report/2"}',
        msgspec.json.encode(ALICE.report()).replace(b"pcm.report/1", b"pcm.report/9"),
        msgspec.json.encode(ALICE.report()).replace(str(ALICE.id).encode(), b"../../etc"),
        b"[" * 100_000,
        b"\xff\xfe",
    ],
    ids=range(7),
)
def test_a_body_that_breaks_its_schema_is_refused(body: bytes) -> None:
    with pytest.raises(UntrustedBytes):
        unpack_untrusted(zstandard.ZstdCompressor().compress(body))


def test_a_packed_report_cannot_be_a_bomb() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    assert len(bomb) < report.PACKED_SIZE_BYTES_MAX
    with pytest.raises(UntrustedBytes, match="are read"):
        unpack_untrusted(bomb)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100)
    with pytest.raises(UntrustedBytes):
        unpack_untrusted(unsized)


def test_a_record_is_opened_by_its_collector_only() -> None:
    opened = open_record_untrusted(sealed(), verify_certificate)
    assert opened.key == RecordKey(ALICE.id, 7, 1)
    assert opened.key_ids == {COLLECTOR.seal_key.id}
    assert unseal_untrusted(opened, bytes(COLLECTOR.private_key)) == ALICE.report()
    other = FakeCollector("other")
    with pytest.raises(UntrustedBytes, match="not sealed to this collector"):
        unseal_untrusted(opened, bytes(other.private_key))


def test_a_record_is_opened_by_each_of_several_collectors() -> None:
    second = FakeCollector("second")
    opened = open_record_untrusted(sealed(collectors=[COLLECTOR.seal_key, second.seal_key]), verify_certificate)
    for collector in (COLLECTOR, second):
        assert unseal_untrusted(opened, bytes(collector.private_key)) == ALICE.report()


def test_nobody_reads_a_report_on_the_way() -> None:
    text = "secret-host-name-of-the-lab"
    data = sealed(packed=pack(msgspec.structs.replace(ALICE.report(), hostname=text)))
    assert text.encode() not in data
    assert zstandard.FRAME_HEADER not in data


def test_nobody_can_sign_the_sealed_report_of_another_device() -> None:
    stolen = msgspec.msgpack.decode(sealed()[:-64])
    stolen[1], stolen[7] = bytes(BOB.id), BOB.certificate
    signed = msgspec.msgpack.encode(stolen)
    opened = open_record_untrusted(signed + BOB.sign(record.DOMAIN, signed), verify_certificate)
    with pytest.raises(UntrustedBytes, match="another device"):
        unseal_untrusted(opened, bytes(COLLECTOR.private_key))


def test_a_signed_record_with_a_broken_report_inside_is_refused() -> None:
    opened = open_record_untrusted(sealed(packed=b"not zstd"), verify_certificate)
    with pytest.raises(UntrustedBytes):
        unseal_untrusted(opened, bytes(COLLECTOR.private_key))


@pytest.mark.parametrize("field", range(10))
def test_no_field_of_a_record_can_be_changed(field: int) -> None:
    def change(fields: list[Any]) -> None:
        value = fields[field]
        if isinstance(value, bytes):
            fields[field] = bytes([value[0] ^ 1]) + value[1:]
        elif isinstance(value, int):
            fields[field] = value + 1
        else:
            fields[field] = [*value, *value]

    with pytest.raises(UntrustedBytes):
        open_record_untrusted(reencoded(sealed(), change), verify_certificate)


def test_a_record_has_one_form_only() -> None:
    """A carrier must not be able to make a second record that verifies: it would count as another one."""
    data = sealed()
    for second in (
        data + b"\0",
        b"\x00" + data,
        data[:-64] + b"\xc0" + data[-64:],
        data[:-1] + bytes([data[-1] ^ 0x80]),
    ):
        with pytest.raises(UntrustedBytes):
            open_record_untrusted(second, verify_certificate)
    fields = msgspec.msgpack.decode(data[:-64])
    assert record_hash(data) == blake3(data[:-64]).digest() == blake3(msgspec.msgpack.encode(fields)).digest()


def test_a_certificate_that_the_fleet_refuses_is_named_as_the_reason() -> None:
    with pytest.raises(UntrustedBytes, match="not issued by this fleet"):
        open_record_untrusted(sealed(certificate=b"forged"), verify_certificate)
    with pytest.raises(UntrustedBytes, match="names another device"):
        open_record_untrusted(sealed(certificate=BOB.certificate), verify_certificate)


def test_a_record_above_its_cap_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(UntrustedBytes, match="at most"):
        open_record_untrusted(bytes(record.RECORD_SIZE_BYTES_MAX + 1), verify_certificate)
    largest = sealed(
        packed=bytes(report.PACKED_SIZE_BYTES_MAX),
        collectors=[FakeCollector(str(number)).seal_key for number in range(record.COLLECTORS_MAX)],
        certificate=b"x" * record.CERTIFICATE_SIZE_BYTES_MAX,
    )
    assert len(largest) <= record.RECORD_SIZE_BYTES_MAX, "what may be sealed always fits"


@pytest.mark.parametrize(
    "wrong",
    [
        {"collectors": []},
        {"previous": b""},
        {"lifetime_s": record.LIFETIME_S_MAX + 1},
        {"key": RecordKey(ALICE.id, 7, 0)},
    ],
    ids=str,
)
def test_a_record_that_nobody_would_take_cannot_be_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot be made"):
        sealed(**wrong)


def entry(seq: int = 3, device: DeviceId = ALICE.id) -> AckEntry:
    return AckEntry(device, 7, seq, head_of(bytes(32)))


def acked(**changed: Any) -> bytes:
    arguments: dict[str, Any] = {
        "collector": COLLECTOR.id,
        "level": Level.DURABLE,
        "issued_ms": START_MS,
        "sign": COLLECTOR.identity.sign,
        **changed,
    }
    return seal_ack([entry()], **arguments)


def test_an_acknowledgement_says_what_was_signed() -> None:
    opened = open_ack_untrusted(acked(), COLLECTOR.keys)
    assert (opened.collector, opened.level, opened.entries) == (COLLECTOR.id, Level.DURABLE, (entry(),))


def test_only_the_fleets_collectors_acknowledge() -> None:
    with pytest.raises(UntrustedBytes, match="not a collector"):
        open_ack_untrusted(acked(), {BOB.id: BOB.public_key})
    with pytest.raises(UntrustedBytes, match="signature"):
        open_ack_untrusted(acked(sign=BOB.sign), COLLECTOR.keys)


def test_a_signature_for_a_record_is_none_for_an_acknowledgement() -> None:
    signed = acked()[:-64]
    with pytest.raises(UntrustedBytes, match="signature"):
        open_ack_untrusted(signed + COLLECTOR.identity.sign(record.DOMAIN, signed), COLLECTOR.keys)


@pytest.mark.parametrize("field", range(5))
def test_no_field_of_an_acknowledgement_can_be_changed(field: int) -> None:
    def change(fields: list[Any]) -> None:
        value = fields[field]
        if isinstance(value, int):
            fields[field] = value + 1
        else:
            fields[field] = bytes(BOB.id) if isinstance(value, bytes) else [*value, *value]

    with pytest.raises(UntrustedBytes):
        open_ack_untrusted(reencoded(acked(), change), COLLECTOR.keys)


def test_an_acknowledgement_of_a_whole_site_fits() -> None:
    devices = [entry(device=DeviceId(number.to_bytes(16, "big"))) for number in range(acknowledgement.ENTRIES_MAX)]
    data = seal_ack(
        devices, collector=COLLECTOR.id, level=Level.DURABLE, issued_ms=START_MS, sign=COLLECTOR.identity.sign
    )
    assert len(open_ack_untrusted(data, COLLECTOR.keys).entries) == acknowledgement.ENTRIES_MAX


def test_an_answer_speaks_about_each_record() -> None:
    data = handover.encode_taken([True, False], [b"ack"])
    assert handover.decode_taken_untrusted(data, 2).taken == (True, False)
    for wrong in (1, 3):
        with pytest.raises(UntrustedBytes):
            handover.decode_taken_untrusted(data, wrong)


def _open_record(data: bytes) -> object:
    return open_record_untrusted(data, verify_certificate)


def _open_ack(data: bytes) -> object:
    return open_ack_untrusted(data, COLLECTOR.keys)


def _decode_taken(data: bytes) -> object:
    return handover.decode_taken_untrusted(data, 1)


@pytest.mark.parametrize(
    ("decode", "genuine"),
    [
        (_open_record, sealed()),
        (_open_ack, acked()),
        (_decode_taken, handover.encode_taken([True], [acked()])),
        (unpack_untrusted, pack(ALICE.report())),
    ],
    ids=["record", "acknowledgement", "taken", "report"],
)
@given(noise=st.binary(max_size=400), at=st.integers(0, 10_000), replace=st.booleans())
@budget(max_examples=200, deadline=None)
def test_noise_raises_one_error_only(
    decode: Callable[[bytes], object], genuine: bytes, noise: bytes, at: int, replace: bool
) -> None:
    at %= len(genuine) + 1
    damaged = genuine[:at] + noise + genuine[at + len(noise) if replace else at :]
    for data in (noise, damaged):
        try:
            decode(data)
        except UntrustedBytes:
            continue


def test_texts_are_clipped_where_they_are_made() -> None:
    assert clip("a" * 600) == "a" * 511 + "…"
    assert clip("line\nbreak\x1b[31m") == "line\ufffdbreak\ufffd[31m"
    assert clip("\udc80name") == "\ufffdname"
    assert tally([Finding("p", 1, "c", "fail")]) == {state: int(state == "fail") for state in STATES}
