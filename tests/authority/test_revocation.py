"""Revoking devices and replacing the certificate authority: what is proposed, in which order, and after a crash anywhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from repository_simulator import PASSPHRASE, RepositorySimulator, TreeSource, attempt, killed_before

from pcm_p2p.authority import ca_folder
from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.authority.revocation import change_deny_list, proposed_deny_list, published_deny_list
from pcm_p2p.errors import InputError
from pcm_p2p.ids import DeviceId
from pcm_p2p.trust.deny import decode_deny_untrusted
from pcm_p2p.trust.identity import authorities_untrusted, verified_identity_untrusted
from pcm_p2p.trust.index import AUTHORITIES, DENY

ONE, TWO = DeviceId(b"1" * 16), DeviceId(b"2" * 16)


def revoke(fleet: RepositorySimulator, *devices: DeviceId) -> None:
    change_deny_list(fleet.fleet, lambda held: held.with_devices(devices, "lost", fleet.clock.now))


def tree_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_revoking_changes_the_proposal_and_nothing_that_devices_see(fleet: RepositorySimulator) -> None:
    before = tree_of(fleet.origin)
    revoke(fleet, ONE)
    assert tree_of(fleet.origin) == before
    assert published_deny_list(fleet.fleet).devices == ()
    assert [one.device_id for one in proposed_deny_list(fleet.fleet).devices] == [ONE]
    (proposal,) = fleet.fleet.proposals()
    assert DENY in [change.path for change in proposal.changes]
    fleet.fleet.discard()
    assert proposed_deny_list(fleet.fleet).devices == ()


def test_a_device_reads_the_list_once_it_is_signed_and_published(fleet: RepositorySimulator) -> None:
    client = fleet.client()
    with client:
        assert attempt(client, TreeSource(fleet.origin)).kind == "good"
        assert client.view is not None
        assert DENY not in client.view.kept
        revoke(fleet, ONE, TWO)
        fleet.sign()
        fleet.publish()
        assert attempt(client, TreeSource(fleet.origin)).kind == "good"
        told = decode_deny_untrusted(client.view.read(DENY), fleet.fleet.fleet_id)
        assert [one.device_id for one in told.devices] == [ONE, TWO]


def test_the_epoch_grows_over_revoking_and_restoring_published_or_not(fleet: RepositorySimulator) -> None:
    revoke(fleet, ONE)
    fleet.sign()
    fleet.publish()
    assert published_deny_list(fleet.fleet).epoch == 1
    change_deny_list(fleet.fleet, lambda held: held.without_devices([ONE]))
    revoke(fleet, ONE)
    assert proposed_deny_list(fleet.fleet).epoch == 3
    revoke(fleet, ONE)
    assert proposed_deny_list(fleet.fleet).epoch == 3, "nothing changed"


# Certificate authorities


def found_next(fleet: RepositorySimulator) -> FleetCA:
    ca = fleet.fleet.path / "ca"
    return ca_folder.found_next(ca, fleet.fleet.fleet_id, PASSPHRASE, owner="desk", preset="lab", now=fleet.clock.now)


def test_an_authority_is_replaced_in_three_steps_and_certificates_of_both_hold_in_between(
    fleet: RepositorySimulator,
) -> None:
    ca, now = fleet.fleet.path / "ca", fleet.clock.now
    first = FleetCA.load(ca, PASSPHRASE)
    old = first.issue(b"\x01" * 32, "device", now=now)
    assert ca_folder.believed_pem(ca) == first.pem
    second = found_next(fleet)
    assert FleetCA.load(ca, PASSPHRASE).der == first.der, "the first one still certifies"
    assert ca_folder.believed_pem(ca) == first.pem + second.pem
    ca_folder.use_next(ca)
    assert FleetCA.load(ca, PASSPHRASE).der == second.der
    new = second.issue(b"\x02" * 32, "device", now=now)
    both = ca_folder.believed_pem(ca)
    assert both == second.pem + first.pem, "the one that certifies comes first"
    for certificate in (old, new):
        verified_identity_untrusted(certificate, both, fleet=first.fleet, at=now)
    (gone,) = ca_folder.retire(ca)
    assert gone.public_bytes(Encoding.DER) == first.der
    assert ca_folder.believed_pem(ca) == second.pem
    with pytest.raises(InputError, match="no former"):
        ca_folder.retire(ca)


def test_steps_out_of_order_are_refused_with_the_next_step(fleet: RepositorySimulator) -> None:
    ca = fleet.fleet.path / "ca"
    with pytest.raises(InputError, match="no next authority"):
        ca_folder.use_next(ca)
    with pytest.raises(InputError, match="no former"):
        ca_folder.retire(ca)
    found_next(fleet)
    with pytest.raises(InputError, match="made already") as caught:
        found_next(fleet)
    assert "--use" in caught.value.remedy


def test_what_is_staged_names_every_authority_that_is_believed(fleet: RepositorySimulator) -> None:
    second = found_next(fleet)
    fleet.fleet.stage_fleet_document()
    staged = authorities_untrusted(fleet.fleet.read_target(AUTHORITIES))
    assert [one.public_bytes(Encoding.DER) for one in staged][1] == second.der
    assert len(staged) == 2


def test_a_crash_while_the_next_authority_takes_over_is_finished_by_the_same_step(
    fleet: RepositorySimulator, tmp_path: Path
) -> None:
    second = found_next(fleet)
    kept = fleet.fleet.path / "ca"
    step = 0
    while True:
        ca = tmp_path / f"ca-{step}"
        shutil.copytree(kept, ca)
        if not killed_before(step, lambda ca=ca: ca_folder.use_next(ca)):  # type: ignore[misc]
            break
        if ca_folder.next_authority(ca) is not None:
            ca_folder.use_next(ca)
        assert FleetCA.load(ca, PASSPHRASE).der == second.der
        assert len(ca_folder.former(ca)) == 1
        assert len(authorities_untrusted(ca_folder.believed_pem(ca))) == 2
        step += 1
    assert step >= 5, "the step touches the disk several times"
