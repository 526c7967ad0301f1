"""The apply service begins to believe at one moment: while what it reads is still root's, or what a person has confirmed."""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from repository_simulator import RepositorySimulator
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.cli.main import run
from pcm_p2p.config import load_config
from pcm_p2p.daemon.applying.adoption import Adopted, Confirmed, adopt, confirmed_by
from pcm_p2p.daemon.applying.settings import load_settings
from pcm_p2p.enrolment.token import Token
from pcm_p2p.errors import InputError, TrustError
from pcm_p2p.trust.identity import DeviceIdentity, FleetRecord, load_or_create_key

SETTINGS = '[device]\nsite = "office"\nlabels = ["desktop"]\n'

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="giving folders to another user takes root")


class Enrolled:
    def __init__(self, folder: Path, fleet: RepositorySimulator) -> None:
        self.fleet, self.root = fleet.fleet.fleet_id, fleet.fleet.root_bytes(1)
        self.digest = hashlib.sha256(Metadata[Root].from_bytes(self.root).signed_bytes).hexdigest()
        self.folder = folder
        self.source, self.state, self.socket = folder / "daemon", folder / "apply", Path("/run/pcm-test/socket")
        now = datetime.now(UTC)
        authority = FleetCA.in_memory(self.fleet, now=now)
        key = load_or_create_key(self.source / "identity")
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        certificate = authority.issue(public, "device", now=now)
        self.authority_der = authority.der
        DeviceIdentity.install(
            self.source / "identity", certificate, authority.pem, FleetRecord(self.fleet, site="office"), self.root
        )
        (self.source / "config.toml").write_text(SETTINGS)
        self.source.chmod(0o700)
        self.device = DeviceIdentity.load(self.source / "identity").device_id.hex()

    def token(self, **fields: object) -> Path:
        """The file of the token with which the device joined; ``fields`` are what it says otherwise."""
        said: dict[str, Any] = {
            "desk": "desk:1",
            "token_id": bytes(16),
            "secret": bytes(16),
            "root_sha256": hashlib.sha256(self.root).digest(),
            "authority_der": self.authority_der,
            "fleet": self.fleet,
            "fleet_name": "acme",
            "expires_ms": 0,
            "role": "device",
            "site": "office",
            "origins": (),
            "seeds": (),
        }
        path = self.folder / "token"
        path.write_text(Token(**{**said, **fields}).line() + "\n")
        path.chmod(0o600)
        return path

    def adopt(self, confirmed: Confirmed | None = None, **options: str) -> Adopted:
        return adopt(
            self.source,
            self.state,
            client=options.get("client", "61234"),
            socket=Path(options.get("socket", str(self.socket))),
            apply_root="/",
            confirmed=confirmed,
        )


@pytest.fixture(name="enrolled")
def _enrolled(tmp_path: Path, first_fleet: RepositorySimulator) -> Enrolled:
    return Enrolled(tmp_path, first_fleet)


def test_what_was_enrolled_by_root_is_adopted_and_given_to_the_daemon(enrolled: Enrolled) -> None:
    made = enrolled.adopt()
    settings, root = load_settings(enrolled.state)
    assert settings == made.settings
    assert root == enrolled.root
    assert (settings.device.id, settings.device.fleet) == (enrolled.device, enrolled.fleet)
    assert (settings.device.site, settings.device.labels) == ("office", ("desktop",))
    assert made.root_digest == enrolled.digest
    assert load_config(enrolled.source / "config.toml").apply.service == str(enrolled.socket)
    assert {path.lstat().st_uid for path in (enrolled.source, *enrolled.source.rglob("*"))} == {61_234}
    assert {path.lstat().st_uid for path in (enrolled.state, *enrolled.state.rglob("*"))} == {0}
    assert enrolled.state.stat().st_mode & 0o777 == 0o700


def written_by_others(enrolled: Enrolled) -> None:
    os.chown(enrolled.source / "identity/root.json", 61_234, -1)


def open_to_all(enrolled: Enrolled) -> None:
    (enrolled.source / "config.toml").chmod(0o666)


def open_folder(enrolled: Enrolled) -> None:
    (enrolled.source / "identity").chmod(0o777)


def linked(enrolled: Enrolled) -> None:
    path = enrolled.source / "identity/root.json"
    path.rename(enrolled.source / "elsewhere")
    path.symlink_to(enrolled.source / "elsewhere")


def open_above(enrolled: Enrolled) -> None:
    enrolled.folder.chmod(0o777)


DOUBTS: dict[str, tuple[Callable[[Enrolled], None], str]] = {
    "belongs to another": (written_by_others, "belongs to user 61234"),
    "others may write": (open_to_all, "can be written by others"),
    "others may write to a folder": (open_folder, "can be written by others"),
    "a link": (linked, "is a link"),
    "others may put another folder there": (open_above, "which others can change"),
}


@pytest.mark.parametrize("row", DOUBTS)
def test_what_others_could_have_changed_is_not_believed(enrolled: Enrolled, row: str) -> None:
    doubt, words = DOUBTS[row]
    doubt(enrolled)
    with pytest.raises(TrustError, match=words) as caught:
        enrolled.adopt()
    assert "--root-digest" in caught.value.remedy
    assert not enrolled.state.exists()


def test_what_a_person_confirms_is_adopted_and_stays_where_it_is(enrolled: Enrolled) -> None:
    written_by_others(enrolled)
    in_groups = " ".join(enrolled.digest[at : at + 4] for at in range(0, 32, 4))
    made = enrolled.adopt(Confirmed(in_groups, enrolled.device, "office", ("kiosk",)))
    assert made.settings.device.labels == ("kiosk",), "labels are what the person said, not what the folder says"
    assert (enrolled.source / "identity/fleet.json").stat().st_uid == 0
    assert (enrolled.source / "config.toml").read_text() == SETTINGS, "root writes nothing where others can put links"
    assert not made.named


def test_the_token_of_an_image_confirms_who_joined_with_it(enrolled: Enrolled) -> None:
    written_by_others(enrolled)
    made = enrolled.adopt(confirmed_by(enrolled.token(), enrolled.source))
    assert (made.settings.device.id, made.settings.device.site) == (enrolled.device, "office")
    assert made.root_digest == enrolled.digest


def test_another_token_confirms_nobody(enrolled: Enrolled) -> None:
    stranger = FleetCA.in_memory(enrolled.fleet, now=datetime.now(UTC))
    for fields, words in (
        ({"root_sha256": bytes(32)}, "not the one that"),
        ({"fleet": "0" * 32}, "did not join with"),
        ({"authority_der": stranger.der}, "did not join with"),
    ):
        with pytest.raises(TrustError, match=words):
            confirmed_by(enrolled.token(**fields), enrolled.source)
    written_by_others(enrolled)
    with pytest.raises(TrustError, match="the site of this device is"):
        enrolled.adopt(confirmed_by(enrolled.token(site="elsewhere"), enrolled.source))


def test_a_token_that_others_could_have_written_confirms_nothing(enrolled: Enrolled) -> None:
    path = enrolled.token()
    path.chmod(0o666)
    with pytest.raises(TrustError, match="can be written by others"):
        confirmed_by(path, enrolled.source)
    path.chmod(0o600)
    os.chown(path, 61_234, -1)
    with pytest.raises(TrustError, match="belongs to user 61234"):
        confirmed_by(path, enrolled.source)
    os.chown(path, 0, -1)
    path.write_text("pcm1.nonsense")
    with pytest.raises(InputError, match="is no token"):
        confirmed_by(path, enrolled.source)


WRONG: dict[str, Callable[[Enrolled], Confirmed]] = {
    "root": lambda enrolled: Confirmed("0" * 64, enrolled.device, "office"),
    "root digest of": lambda enrolled: Confirmed(enrolled.digest[:31], enrolled.device, "office"),
    "device": lambda enrolled: Confirmed(enrolled.digest, "0" * 32, "office"),
    "site": lambda enrolled: Confirmed(enrolled.digest, enrolled.device, "elsewhere"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_what_was_confirmed_is_refused(enrolled: Enrolled, what: str) -> None:
    written_by_others(enrolled)
    with pytest.raises(TrustError, match=f"the {what.split(maxsplit=1)[0]} of this device is"):
        enrolled.adopt(WRONG[what](enrolled))


def test_it_may_be_repeated_but_not_for_another_device(
    enrolled: Enrolled, tmp_path: Path, first_fleet: RepositorySimulator
) -> None:
    enrolled.adopt()
    confirmed = Confirmed(enrolled.digest, enrolled.device, "office", ("desktop",))
    enrolled.adopt(confirmed)
    other = Enrolled(tmp_path / "other", first_fleet)
    other.state = enrolled.state
    with pytest.raises(InputError, match="is there already and says otherwise"):
        other.adopt()


def test_what_a_daemon_that_was_root_knew_is_not_forgotten(enrolled: Enrolled) -> None:
    for name in ("trust/floor.json", "trust/roots/2.root.json", "releases/tool/7.manifest", "apply/receipts/tool.json"):
        path = enrolled.source / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(name)
    (enrolled.source / "trust/.lock").touch()
    enrolled.adopt()
    kept = sorted(str(path.relative_to(enrolled.state)) for path in enrolled.state.rglob("*") if path.is_file())
    assert kept == [
        "apply.toml",
        "apply/receipts/tool.json",
        "releases/tool/7.manifest",
        "root.json",
        "trust/floor.json",
        "trust/roots/2.root.json",
    ]
    assert {path.lstat().st_uid for path in enrolled.state.rglob("*")} == {0}


def test_what_others_could_have_written_is_not_taken_over(enrolled: Enrolled) -> None:
    (enrolled.source / "releases/tool").mkdir(mode=0o700, parents=True)
    (enrolled.source / "releases/tool/7.manifest").symlink_to("/etc/shadow")
    (enrolled.source / "trust").mkdir(mode=0o700)
    (enrolled.source / "trust/floor.json").touch()
    os.chown(enrolled.source / "trust/floor.json", 61_234, -1)
    enrolled.adopt()
    assert {path.name for path in enrolled.state.iterdir()} == {"apply.toml", "root.json"}


def test_an_interrupted_change_is_ended_before(enrolled: Enrolled) -> None:
    (enrolled.source / "apply").mkdir(mode=0o700)
    (enrolled.source / "apply/journal.json").touch()
    with pytest.raises(InputError, match="a change was interrupted"):
        enrolled.adopt()


@pytest.mark.parametrize("root", [b"", b"{}", b"not json", b'{"signed": {}, "signatures": []}'])
def test_a_root_that_is_none_is_not_adopted(enrolled: Enrolled, root: bytes) -> None:
    (enrolled.source / "identity/root.json").write_bytes(root)
    with pytest.raises(TrustError):
        enrolled.adopt()
    assert not enrolled.state.exists()


CONFIGS = {
    "no table": SETTINGS,
    "a table": SETTINGS + '[apply]\nroot = "/"\n',
    "a table with a comment": SETTINGS + "[ apply ]  # what is changed\ninterval_s = 5.0\n\n[store]\ncopies = 2\n",
    "the table at the beginning": '[apply]\nroot = "/"\n' + SETTINGS,
}


@pytest.mark.parametrize("row", CONFIGS)
def test_the_service_is_named_in_the_daemons_settings_and_the_rest_stays(enrolled: Enrolled, row: str) -> None:
    path = enrolled.source / "config.toml"
    path.write_text(CONFIGS[row])
    before = tomllib.loads(CONFIGS[row])
    enrolled.adopt()
    after = tomllib.loads(path.read_text())
    assert after.pop("apply") == {**before.pop("apply", {}), "service": str(enrolled.socket)}
    assert after == before


def test_another_service_in_the_settings_is_not_replaced(enrolled: Enrolled) -> None:
    (enrolled.source / "config.toml").write_text(SETTINGS + '[apply]\nservice = "/run/other"\n')
    with pytest.raises(InputError, match="names another service"):
        enrolled.adopt()


def test_an_account_that_does_not_exist_is_named(enrolled: Enrolled) -> None:
    with pytest.raises(InputError, match="no account 'nobody-of-that-name'"):
        enrolled.adopt(client="nobody-of-that-name")


@pytest.mark.parametrize("name", ["", "apply.toml", "root.json"])
def test_settings_that_others_could_have_changed_are_not_used(enrolled: Enrolled, name: str) -> None:
    enrolled.adopt()
    path = enrolled.state / name
    path.chmod(0o777)
    with pytest.raises(TrustError, match="can be written by others"):
        load_settings(enrolled.state)
    path.chmod(0o700)
    os.chown(path, 61_234, -1)
    with pytest.raises(TrustError, match="belongs to user 61234"):
        load_settings(enrolled.state)


def test_a_service_that_was_not_adopted_says_how(enrolled: Enrolled, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["apply-service", "run", "--state", str(enrolled.state)])
    assert ended.value.code == 2
    assert "apply-service adopt" in capsys.readouterr().err


def test_the_command_prints_what_it_took(enrolled: Enrolled, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["apply-service", "adopt", "--from", str(enrolled.source), "--state", str(enrolled.state)]
    with pytest.raises(SystemExit) as ended:
        run([*words, "--client", "61234", "--socket", "/run/pcm-test/socket"])
    assert ended.value.code in (0, None)
    said = capsys.readouterr()
    assert enrolled.device in said.out
    assert f"{enrolled.digest[:4]} {enrolled.digest[4:8]}" in said.out, "as on the key sheet"
    assert "Compare the root" in said.err
