"""The folder of a site that acts alone, and the fleet's floor in it: what is refused, when, and what must never be."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import floors
import msgspec
import pytest
from floors import EVERYTHING, Fleet, floor
from repository_simulator import (
    PASSPHRASE,
    Clock,
    RepositorySimulator,
    full_disk_from,
    killed_before,
    put_segment,
    small_manifest,
)
from tuf.api.metadata import Metadata, Root, TargetFile, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority import halting
from pcm_p2p.authority.fleet_floor import FleetFloor
from pcm_p2p.authority.held_floor import NAME, held_floor, keep_floor, set_aside_alone
from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.keys.signing_key import open_signing_key
from pcm_p2p.authority.people.expiry import Level
from pcm_p2p.authority.people.founders import Founders
from pcm_p2p.authority.people.health import check
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.authority.site_folder import NAME as SITE_FACTS
from pcm_p2p.authority.site_repository import found_site
from pcm_p2p.errors import InputError, StorageError, TrustError
from pcm_p2p.trust.delegation import TARGETS
from pcm_p2p.trust.index import INDEX, Index

OBSERVE = b'schema = "pcm.allowances/1"\n[default]\n'


def policy(name: str, *, mode: str = "observe", version: int = 1) -> bytes:
    return f'schema = "pcm.policy/1"\nid = "{name}"\nversion = {version}\nmode = "{mode}"\n'.encode()


class Office:
    """The authority of site berlin, and the fleet that it belongs to."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.fleet = Clock(), Fleet()
        self.folder = FleetFolder.open(folder / "office", wall_clock=self.clock)
        self.tree = folder / "tree"

    def takes(self, policies: dict[str, bytes] | None = None, *, allowances: bytes | None = OBSERVE) -> FleetFloor:
        said = floor(self.fleet.says(policies, allowances=allowances))
        keep_floor(self.folder, said)
        return said

    def sign(self, role: str = "targets") -> None:
        self.folder.sign(self.folder.path / "keys" / f"{role}-olga.key", PASSPHRASE)

    def publish(self) -> None:
        publish(self.folder, self.tree, OnlineKeys.open(self.folder, PASSPHRASE))

    def put(self, name: str, *, mode: str = "observe", version: int = 1) -> None:
        """As another tool would, that judges nothing."""
        self.folder.stage_policy(name, policy(name, mode=mode, version=version))

    def published(self) -> list[str]:
        targets = self.folder.targets()
        return sorted(targets.signed.targets) if targets is not None else []


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    found_site(
        folder / "office",
        floors.FLEET,
        "berlin",
        Founders(owners=("olga",)),
        PASSPHRASE,
        preset="lab",
        wall_clock=Clock(),
    )
    return folder


@pytest.fixture
def office(founded: Path, tmp_path: Path, quick_disk: None) -> Office:
    shutil.copytree(founded / "office", tmp_path / "office")
    return Office(tmp_path)


# Refused


def test_without_a_floor_no_new_policy_is_signed_and_the_remedy_is_named(office: Office) -> None:
    office.put("own")
    with pytest.raises(InputError, match="what the fleet lets site berlin set is not held here") as caught:
        office.sign()
    assert "pcm-p2p site floor" in caught.value.remedy
    office.takes()
    office.sign()
    (office.folder.path / NAME).unlink()
    with pytest.raises(InputError, match="is not held here"):
        office.publish()
    assert not office.tree.joinpath("metadata").exists()


def test_a_policy_that_devices_would_set_aside_is_neither_signed_nor_published(office: Office) -> None:
    office.takes({"base": policy("base")})
    office.put("bold", mode="enforce")
    with pytest.raises(
        TrustError, match="policy bold of site berlin: its mode is enforce, and the site may observe only"
    ):
        office.sign()
    office.folder.discard()
    office.put("base")
    with pytest.raises(TrustError, match="policy base of site berlin: a policy of higher rank has this id"):
        office.sign()
    office.folder.discard()
    office.put("own")
    office.sign()
    office.publish()
    assert "policies/own.toml" in office.published()


def test_what_was_signed_before_the_fleet_said_less_is_not_published(office: Office) -> None:
    office.takes(allowances=EVERYTHING)
    office.put("bold", mode="enforce")
    office.sign()
    office.takes(allowances=OBSERVE)
    with pytest.raises(TrustError, match="refused to publish: policy bold of site berlin: its mode is enforce"):
        office.publish()
    assert office.published() == []


def test_a_policy_slipped_into_the_proposal_by_hand_is_refused_by_signing(office: Office) -> None:
    """Not staged by any command: the file of the proposal and its index were edited."""
    office.takes()
    office.put("own")
    file = office.folder.path / "proposal" / "targets.json"
    document = Metadata[Targets].from_bytes(file.read_bytes())
    data = policy("slipped", mode="enforce")
    document.signed.targets["policies/slipped.toml"] = office.folder.files.store("policies/slipped.toml", data)
    index = Index("pcm.index/1", office.folder.fleet_id, ("policies/own.toml", "policies/slipped.toml")).encoded()
    document.signed.targets[INDEX] = office.folder.files.store(INDEX, index)
    file.write_bytes(document.to_bytes())
    with pytest.raises(TrustError, match="policy slipped of site berlin: its mode is enforce"):
        office.sign()
    key = keyfile.load(office.folder.path / "keys" / "targets-olga.key", PASSPHRASE)
    document.sign(key.signer())
    file.write_bytes(document.to_bytes())
    with pytest.raises(TrustError, match="refused to publish: policy slipped of site berlin"):
        office.publish()


def test_a_policy_whose_bytes_were_exchanged_is_judged_by_what_is_signed(office: Office) -> None:
    office.takes()
    office.put("own")
    targets = office.folder.working(TARGETS)
    info: TargetFile = targets.targets["policies/own.toml"]
    (stored,) = (office.folder.path / "repository" / "targets" / "policies").glob(f"{info.hashes['sha256']}.*")
    stored.unlink()
    stored.write_bytes(policy("own", mode="notify"))
    with pytest.raises((InputError, StorageError)):
        office.sign()


# What must never wait for the fleet


def test_halts_and_their_lifting_wait_for_no_floor(office: Office) -> None:
    office.put("own")
    office.takes()
    office.sign()
    office.publish()
    (office.folder.path / NAME).unlink()
    key = open_signing_key(office.folder.path / "keys" / "targets-olga.key", PASSPHRASE)
    halted = halting.order(office.folder, key, reason="smoke").halt.id
    office.publish()
    assert [one.state for one in halting.standings(office.folder)] == ["in force"]
    halting.lift(office.folder, (halted,))
    office.sign()
    office.publish()
    assert "fleet/lifted.toml" in office.published()


@pytest.mark.parametrize("held", ["nothing", "a floor that allows less", "a floor that was altered"])
def test_what_is_published_is_signed_anew_with_other_keys_whatever_is_held(
    office: Office, held: str, tmp_path: Path
) -> None:
    office.takes(allowances=EVERYTHING)
    office.put("bold", mode="enforce")
    office.sign()
    office.publish()
    if held == "a floor that allows less":
        office.takes(allowances=OBSERVE)
    else:
        (office.folder.path / NAME).unlink()
        if held == "a floor that was altered":
            (office.folder.path / NAME).write_bytes(b"pcm.fleet-floor/1\nx")
    new = keyfile.create(tmp_path / "new.key", PASSPHRASE, "targets", "otto", preset="lab")

    def other_key(root: Root) -> None:
        root.revoke_key(root.roles["targets"].keyids[0], "targets")
        root.add_key(new.key, "targets")

    office.folder.propose_root(other_key)
    office.sign("root")
    office.folder.sign(tmp_path / "new.key", PASSPHRASE)
    office.publish()
    assert office.folder.root().signed.version == 2
    assert "policies/bold.toml" in office.published()
    office.folder.renew_targets()
    office.folder.sign(tmp_path / "new.key", PASSPHRASE)
    office.publish()
    if held == "a floor that allows less":
        (sentence,) = set_aside_alone(office.folder)
        assert sentence.startswith("policy bold of site berlin: its mode is enforce")
        assert sentence.endswith("devices set it aside (published)")


def test_a_policy_is_taken_away_without_a_floor(office: Office) -> None:
    office.takes()
    office.put("one")
    office.put("two")
    office.sign()
    office.publish()
    (office.folder.path / NAME).unlink()
    office.folder.unstage("policies/one.toml")
    office.sign()
    office.publish()
    assert [path for path in office.published() if path.startswith("policies/")] == ["policies/two.toml"]


def test_a_release_of_its_own_needs_no_floor(office: Office, tmp_path: Path) -> None:
    manifest, blob = small_manifest("berlin-tool", counter=office.folder.next_counter("berlin-tool"))
    office.folder.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    office.sign()
    office.publish()
    assert "releases/main/berlin-tool@1.0.manifest" in office.published()


# The file


def test_a_floor_of_another_fleet_or_site_is_not_kept_and_not_believed(office: Office) -> None:
    for other in (Fleet("cd" * 16).says(), office.fleet.says(site="paris")):
        (office.folder.path / NAME).write_bytes(other.encoded())
        with pytest.raises(TrustError, match="cannot be believed: floor: it is of site"):
            held_floor(office.folder)
    (office.folder.path / NAME).unlink()
    facts = office.folder.path / SITE_FACTS
    facts.write_bytes(facts.read_bytes().replace(floors.FLEET.encode(), b"cd" * 16))
    with pytest.raises(TrustError, match="names another site or fleet than the root of this folder"):
        keep_floor(office.folder, floor(Fleet("cd" * 16).says()))


def test_a_floor_that_was_altered_stops_new_policies_and_is_named(office: Office) -> None:
    office.takes()
    file = office.folder.path / NAME
    data = bytearray(file.read_bytes())
    data[data.index(b"[default]") + 1] ^= 1
    file.write_bytes(data)
    office.put("own")
    with pytest.raises(
        TrustError, match=r"fleet.floor cannot be believed: floor: the content of .* is not what is signed"
    ):
        office.sign()
    assert Level.critical in {one.level for one in check(office.folder) if one.what == "floor"}


def test_a_floor_that_was_rolled_back_loosens_nothing(office: Office) -> None:
    wide = office.fleet.says(allowances=EVERYTHING)
    office.takes(allowances=OBSERVE)
    with pytest.raises(TrustError, match=r"not newer than what is held: .*version 1 is below 2"):
        keep_floor(office.folder, floor(wide))
    stranger = Fleet()
    stranger.says()
    with pytest.raises(TrustError, match="has another root 1 than the one that is held"):
        keep_floor(office.folder, floor(stranger.says(version=9)))
    held = held_floor(office.folder)
    assert held is not None
    assert held.versions.targets == 2


def test_the_same_floor_again_is_no_news(office: Office) -> None:
    said = office.takes()
    assert keep_floor(office.folder, said) is False
    later = msgspec.structs.replace(said.document, taken_ms=said.document.taken_ms + 1)
    assert keep_floor(office.folder, floor(later)) is True


def test_a_fleets_own_folder_holds_no_floor(fleet: RepositorySimulator) -> None:
    with pytest.raises(InputError, match="is the folder of a fleet, not of a site that acts alone"):
        keep_floor(fleet.fleet, floor(Fleet().says()))
    assert set_aside_alone(fleet.fleet) == ()


def test_a_folder_that_lost_the_mark_of_its_site_signs_no_policy_unjudged(office: Office) -> None:
    office.takes()
    (office.folder.path / SITE_FACTS).unlink()
    office.put("bold", mode="enforce")
    with pytest.raises(TrustError, match=r"site\.json is gone, and the roots in this folder are of site berlin"):
        office.sign()
    assert Level.critical in {one.level for one in check(office.folder) if one.what == "floor"}


def test_killed_while_a_floor_is_taken_over_the_old_one_or_the_new_one_is_held(founded: Path, tmp_path: Path) -> None:
    shutil.copytree(founded / "office", tmp_path / "office")
    office = Office(tmp_path)
    office.takes()
    new = floor(office.fleet.says(allowances=EVERYTHING))
    step, seen = 0, set()
    while killed_before(step, lambda: keep_floor(office.folder, new)):
        held = held_floor(office.folder)
        assert held is not None
        seen.add(held.versions.targets)
        step += 1
    assert step >= 3, "fsync of the file, its renaming, fsync of the folder"
    assert seen <= {1, 2}
    held = held_floor(office.folder)
    assert held is not None
    assert held.document == new.document


def test_on_a_full_disk_what_is_held_stays(founded: Path, tmp_path: Path) -> None:
    shutil.copytree(founded / "office", tmp_path / "office")
    office = Office(tmp_path)
    office.takes()
    new = floor(office.fleet.says(allowances=EVERYTHING))
    with full_disk_from(0) as failed, pytest.raises(StorageError, match=r"fleet.floor cannot be written"):
        keep_floor(office.folder, new)
    assert failed
    held = held_floor(office.folder)
    assert held is not None
    assert held.versions.targets == 1


# What is said of it


def test_the_check_for_cron_says_what_is_out_of_date_missing_or_set_aside(office: Office) -> None:
    def findings() -> list[tuple[Level, str]]:
        return [(one.level, one.text) for one in check(office.folder) if one.what == "floor"]

    ((level, text),) = findings()
    assert level == Level.warn
    assert "no new policy is signed: 'pcm-p2p site floor'" in text
    office.takes(allowances=EVERYTHING)
    assert findings() == [(Level.ok, "7 days left of what is held of the fleet")]
    office.put("bold", mode="enforce")
    office.takes(allowances=OBSERVE)
    office.clock.now += timedelta(days=20)
    (level, text), (other, sentence) = findings()
    assert (level, other) == (Level.warn, Level.warn)
    assert text.startswith("what is held of the fleet expired 13 days ago, on 2026-03-08")
    assert sentence.endswith("devices set it aside (proposed)")
