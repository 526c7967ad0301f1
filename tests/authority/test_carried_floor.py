"""Proposals of a site that acts alone, carried to its signers: they judge by what the fleet signed, and remember the fleet."""

from __future__ import annotations

import shutil
from pathlib import Path

import floors
import msgspec
import pytest
from floors import EVERYTHING, Fleet, floor
from repository_simulator import PASSPHRASE, Clock
from tuf.api.metadata import Root  # type: ignore[attr-defined]

from pcm_p2p.authority.carry import pin_file
from pcm_p2p.authority.carry.bundle import MAGIC, Bundle, BundleDocument, decode_bundle_untrusted
from pcm_p2p.authority.carry.carried_proposal import sign_each, signables_in
from pcm_p2p.authority.carry.carrying import (
    export_proposal,
    import_proposal,
    merge,
    read_bundle,
    refuse_what_breaks_rules,
    write_signature_file,
)
from pcm_p2p.authority.carry.signature_file import SCHEMA, SignatureFile
from pcm_p2p.authority.held_floor import NAME, keep_floor
from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.people.founders import Founders
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.authority.site_repository import found_site
from pcm_p2p.errors import TrustError, UntrustedBytes

OBSERVE = b'schema = "pcm.allowances/1"\n[default]\n'


def policy(name: str, mode: str = "observe") -> bytes:
    return f'schema = "pcm.policy/1"\nid = "{name}"\nversion = 1\nmode = "{mode}"\n'.encode()


class Office:
    """The folder of site berlin, the fleet, and where files are carried."""

    def __init__(self, path: Path) -> None:
        self.path, self.fleet = path, Fleet()
        self.folder = FleetFolder.open(path / "office", wall_clock=Clock())
        self.takes()

    def takes(self, allowances: bytes = OBSERVE) -> None:
        keep_floor(self.folder, floor(self.fleet.says(allowances=allowances)))

    @property
    def key(self) -> Path:
        return self.folder.path / "keys" / "targets-olga.key"

    def export(self, name: str = "monday") -> Path:
        export_proposal(self.folder, self.path / name)
        return self.path / name

    def publish(self) -> None:
        publish(self.folder, self.path / "tree", OnlineKeys.open(self.folder, PASSPHRASE))


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    founders = Founders(owners=("olga",))
    found_site(folder / "office", floors.FLEET, "berlin", founders, PASSPHRASE, preset="lab", wall_clock=Clock())
    return folder


@pytest.fixture
def office(founded: Path, tmp_path: Path) -> Office:
    shutil.copytree(founded / "office", tmp_path / "office")
    return Office(tmp_path)


def document_in(file: Path) -> BundleDocument:
    return msgspec.msgpack.decode(file.read_bytes()[len(MAGIC) + 8 :], type=BundleDocument)


def decoded(document: BundleDocument) -> Bundle:
    return decode_bundle_untrusted(msgspec.msgpack.encode(document))


def signed_elsewhere(office: Office, file: Path, *, heedless: bool = False) -> Path:
    """``heedless``: by a tool that judges nothing."""
    bundle = read_bundle(file)
    if not heedless:
        refuse_what_breaks_rules(bundle)
    key = keyfile.load(office.key, PASSPHRASE)
    signatures = sign_each(signables_in(bundle), key.signer(), key.keyid)
    write_signature_file(file.with_suffix(".sig"), SignatureFile(SCHEMA, bundle.fleet, signatures))
    return file.with_suffix(".sig")


def test_what_the_fleet_lets_the_site_set_travels_with_the_proposal_and_is_what_it_is_judged_by(office: Office) -> None:
    office.folder.stage_policy("own", policy("own"))
    merge(office.folder, [signed_elsewhere(office, office.export())])
    office.publish()
    office.folder.stage_policy("bold", policy("bold", "enforce"))
    with pytest.raises(TrustError, match="refused to go on: policy bold of site berlin: its mode is enforce"):
        signed_elsewhere(office, office.export())


def test_what_a_heedless_tool_signed_elsewhere_is_not_published(office: Office) -> None:
    office.folder.stage_policy("bold", policy("bold", "enforce"))
    merge(office.folder, [signed_elsewhere(office, office.export(), heedless=True)])
    with pytest.raises(TrustError, match="refused to publish: policy bold of site berlin: its mode is enforce"):
        office.publish()


def test_a_proposal_that_brings_a_policy_and_no_floor_is_not_signed(office: Office) -> None:
    office.folder.stage_policy("own", policy("own"))
    file = office.export()
    stripped = msgspec.structs.replace(document_in(file), floor=msgspec.UNSET)
    with pytest.raises(
        TrustError, match="brings a policy of site berlin, and nothing of what the fleet lets the site set"
    ) as caught:
        refuse_what_breaks_rules(decoded(stripped))
    assert "pcm-p2p site floor" in caught.value.remedy
    (office.folder.path / NAME).unlink()
    with pytest.raises(TrustError, match="and nothing of what the fleet lets the site set"):
        signed_elsewhere(office, office.export())


def test_a_root_that_does_not_name_the_site_any_more_hides_nothing(office: Office) -> None:
    """Whoever holds a root key could drop the field that says whose repository it is; the first root said it."""
    office.folder.stage_policy("own", policy("own"))
    office.folder.propose_root(_forget)
    stripped = msgspec.structs.replace(document_in(office.export()), floor=msgspec.UNSET)
    with pytest.raises(TrustError, match="brings a policy of site berlin"):
        refuse_what_breaks_rules(decoded(stripped))


def _forget(root: Root) -> None:
    del root.unrecognized_fields["x-pcm-site"]


@pytest.mark.parametrize("other", ["wider allowances", "another fleet", "another site", "a root of its own making"])
def test_a_floor_that_was_exchanged_on_the_way_is_seen(office: Office, other: str, tmp_path: Path) -> None:
    office.folder.stage_policy("bold", policy("bold", "enforce"))
    document = document_in(office.export())
    if other == "wider allowances":
        assert isinstance(document.floor, bytes)
        data, why = document.floor.replace(b'"pcm.allowances/1"', b'"pcm.allowances/2"'), "is not what is signed"
    elif other == "another fleet":
        data, why = Fleet("cd" * 16).says(allowances=EVERYTHING).encoded(), "is of site berlin of fleet cdcdcdcd"
    elif other == "another site":
        data, why = Fleet().says(allowances=EVERYTHING, site="paris").encoded(), "is of site paris of fleet abababab"
    else:
        # Its id is no secret: what gives it away is the root that this machine has seen.
        mine = decoded(document)
        pin_file.remember(tmp_path / "pin", mine, ())
        forged = decoded(msgspec.structs.replace(document, floor=Fleet().says(allowances=EVERYTHING).encoded()))
        refuse_what_breaks_rules(forged)
        with pytest.raises(
            TrustError, match="root 1 of the fleet's floor in it is not the one that this machine has seen"
        ):
            pin_file.check(tmp_path / "pin", forged)
        assert pin_file.check(tmp_path / "pin", mine) == ()
        return
    with pytest.raises(UntrustedBytes, match=why):
        decoded(msgspec.structs.replace(document, floor=data))


def test_each_policy_is_carried_so_that_the_whole_can_be_judged(office: Office) -> None:
    office.folder.stage_policy("one", policy("one"))
    merge(office.folder, [signed_elsewhere(office, office.export())])
    office.publish()
    office.folder.stage_policy("two", policy("two"))
    document = document_in(office.export())
    left = tuple(target for target in document.targets if target.path != "policies/one.toml")
    assert len(left) == len(document.targets) - 1
    with pytest.raises(UntrustedBytes, match=r"the content of policies/one\.toml is missing"):
        decoded(msgspec.structs.replace(document, targets=left))


def test_what_brings_no_policy_is_carried_and_signed_without_a_floor(office: Office) -> None:
    office.takes(EVERYTHING)
    office.folder.stage_policy("bold", policy("bold", "enforce"))
    merge(office.folder, [signed_elsewhere(office, office.export())])
    office.publish()
    office.takes(OBSERVE)
    office.folder.renew_targets()
    file = office.export()
    assert document_in(file).floor is msgspec.UNSET
    merge(office.folder, [signed_elsewhere(office, file)])
    office.publish()


def test_the_machine_of_a_signer_remembers_the_fleet_and_goes_back_to_nothing_older(
    office: Office, tmp_path: Path
) -> None:
    office.folder.stage_policy("own", policy("own"))
    old, pin = read_bundle(office.export("old")), tmp_path / "pin"
    remarks = pin_file.check(pin, old)
    assert any("its policies are judged by fleet abababab, which is new to this machine" in one for one in remarks)
    office.takes(OBSERVE)
    office.fleet.rotate("root")
    office.takes(OBSERVE)
    new = read_bundle(office.export("new"))
    pin_file.remember(pin, old, ())
    assert pin_file.check(pin, new) == (), "it follows from what was seen"
    pin_file.remember(pin, new, ())
    with pytest.raises(TrustError, match="the fleet's floor in it ends with root 1, and this machine has seen root 2"):
        pin_file.check(pin, old)
    office.fleet.rotate("root")
    later = msgspec.structs.replace(office.fleet.says(), roots=(office.fleet.roots[2].to_bytes(),))
    document = document_in(tmp_path / "new")
    with pytest.raises(
        TrustError, match="the fleet's floor in it begins with root 3, and this machine has seen root 2"
    ):
        pin_file.check(pin, decoded(msgspec.structs.replace(document, floor=later.encoded())))


def test_a_floor_that_is_older_than_what_was_seen_of_the_fleet_is_refused_by_the_signers_machine(
    office: Office, tmp_path: Path
) -> None:
    office.takes(EVERYTHING)
    office.folder.stage_policy("bold", policy("bold", "enforce"))
    wide = read_bundle(office.export("wide"))
    office.takes(OBSERVE)
    pin_file.remember(tmp_path / "pin", read_bundle(office.export("narrow")), ())
    with pytest.raises(TrustError, match="is judged by targets 2 of the fleet, and this machine has seen targets 3"):
        pin_file.check(tmp_path / "pin", wide)
    fork = office.fleet.says(allowances=EVERYTHING, version=3)
    forked = decoded(msgspec.structs.replace(document_in(tmp_path / "narrow"), floor=fork.encoded()))
    with pytest.raises(
        TrustError, match="targets 3 of the fleet's floor in it is not the one that this machine has seen"
    ):
        pin_file.check(tmp_path / "pin", forked)


def test_another_copy_of_the_folder_takes_a_proposal_in_and_judges_it_by_its_own_floor(
    office: Office, founded: Path, tmp_path: Path
) -> None:
    shutil.copytree(founded / "office", tmp_path / "copy" / "office")
    copy = FleetFolder.open(tmp_path / "copy" / "office", wall_clock=Clock())
    office.takes(EVERYTHING)
    office.folder.stage_policy("bold", policy("bold", "enforce"))
    file = office.export()
    import_proposal(copy, file)
    keep_floor(copy, floor(office.fleet.says(allowances=OBSERVE)))
    with pytest.raises(TrustError, match="policy bold of site berlin: its mode is enforce"):
        copy.sign(copy.path / "keys" / "targets-olga.key", PASSPHRASE)
