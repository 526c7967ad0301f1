"""The real thing once: a record signed by a device that a real authority certified."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from random import Random

import msgspec
import pytest
from compliance_world import START_MS, FakeCollector, FakeDevice

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.compliance.record import FIRST, RecordKey, RecordSealer, open_record_untrusted, unseal_untrusted
from pcm_p2p.compliance.report import pack
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.trust.identity import DeviceIdentity, verified_identity_untrusted


def test_a_device_certified_by_a_real_authority_is_recognised(tmp_path: Path) -> None:
    collector, fleet, now = FakeCollector(), "ab" * 16, datetime(2026, 3, 1, tzinfo=UTC)
    authority = FleetCA.in_memory(fleet, now=now)
    device = DeviceIdentity.create(tmp_path, authority, now=now)
    packed = pack(msgspec.structs.replace(FakeDevice("any").report(), device=str(device.device_id)))
    sealer = RecordSealer(device.sign, device.certificate_der, (collector.seal_key,), Random(1).randbytes)
    data = sealer.seal(packed, RecordKey(device.device_id, 1, 1), FIRST, START_MS)
    opened = open_record_untrusted(data, lambda der: verified_identity_untrusted(der, authority.pem, fleet=fleet))
    assert opened.device == device.device_id
    assert unseal_untrusted(opened, bytes(collector.private_key)).device == str(device.device_id)
    stranger = FleetCA.in_memory(fleet, now=now)
    with pytest.raises(UntrustedBytes, match="not issued"):
        open_record_untrusted(data, lambda der: verified_identity_untrusted(der, stranger.pem, fleet=fleet))
