"""Adoption: the apply service takes its pinned root and its place in the fleet from a device that was just enrolled.

The moment matters. What root believes for ever must not come from a folder that the network's user could write, so adoption
happens while the enrolled state folder is still root's (``pcm-p2p enroll join`` as root), and hands that folder to the daemon's
user as its last act. A daemon that had applied by itself as root leaves what it knew: floors, counters, receipts. From a folder
that others could have changed since, root digest, device and site must be given by a person, who has them from the fleet's key
sheet and from the console, or by the token of an image, which is root's file and pins them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from pcm_p2p.config import Config, load_config
from pcm_p2p.daemon.applying.settings import (
    PINNED_ROOT,
    SETTINGS,
    ApplySettings,
    account,
    load_settings,
    require_ours,
    require_ours_above,
    why_not_ours,
)
from pcm_p2p.daemon.state_lock import lock_state
from pcm_p2p.durable import write_atomic
from pcm_p2p.enrolment.token import decode_token_untrusted
from pcm_p2p.errors import InputError, StorageError, TrustError, UntrustedBytes
from pcm_p2p.trust.identity import DeviceIdentity, verified_identity_untrusted
from pcm_p2p.trust.lint import lint_root

DIGEST_DIGITS_MIN = 32
"""128 bits: what the key sheet shows."""
_BELIEVED = ("", "config.toml", "identity", "identity/root.json", "identity/fleet.json", "identity/device.crt")
"""What of the state folder adoption reads and the service then believes."""
_INHERITED = ("trust", "site-trust", "releases", "apply/receipts")
_HEADER = re.compile(r"^[ \t]*\[[ \t]*apply[ \t]*\][ \t]*(#.*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Confirmed:
    """What a person says about a device whose folder cannot vouch for itself; None: nothing was said. ``root_digest`` as the key
    sheet shows it: at least 32 hexadecimal digits, in groups or not."""

    root_digest: str | None = None
    device: str | None = None
    site: str | None = None
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Adopted:
    """``root_digest`` is SHA-256 of what the root's holders signed, in hexadecimal; the key sheet shows the first half of it.
    ``named``: whether the daemon's settings name the service now; if not, a person has to write it there."""

    settings: ApplySettings
    root_digest: str
    named: bool


def adopt(
    source: Path, state: Path, *, client: str, socket: Path, apply_root: str, confirmed: Confirmed | None = None
) -> Adopted:
    """Write the apply service's ``state`` from the enrolled ``source``, name it there, and give ``source`` to ``client``.

    May be repeated. What was only confirmed is left as it is. Raises ``TrustError`` if ``source`` could have been changed by
    others and is not confirmed, or is not what was confirmed; ``InputError`` if the service is adopted already as something else.
    """
    said = confirmed or Confirmed()
    uid, gid = account(client, state)
    socket = socket.absolute()
    identity = DeviceIdentity.load(source / "identity")
    config = load_config(source / "config.toml")
    digest = _digest(identity)
    doubt = next((f"{source / name} {why}" for name in _BELIEVED if (why := why_not_ours(source / name))), "")
    doubt = doubt or _doubt_above(source)
    _check(said, doubt, digest, identity, config)
    text = _settings_text(said, identity, config, client, socket, apply_root)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_once(state / PINNED_ROOT, identity.root_json, state)
        if not doubt:
            _inherit(source, state)
        _write_once(state / SETTINGS, text.encode(), state)
        settings, _ = load_settings(state)
        if not doubt:  # nothing is written, as root, into a folder in which others can put links
            _name_service(source / "config.toml", config, socket)
            _give(source, uid, gid)
    except OSError as error:
        raise StorageError(f"{error.filename or state}: {error.strerror}", remedy="Repeat this command.") from None
    return Adopted(settings, digest, config.apply.service == str(socket) or not doubt)


def confirmed_by(token_file: Path, source: Path) -> Confirmed:
    """What the token of an image says of the device that joined with it, without a person: the token is root's file, and pins the
    root and the authority that certified the device. Whoever holds the device's folder holds its key, and no other device's.

    Raises ``TrustError`` if the token could have been changed by others or the device did not join with it, ``InputError`` if it
    is none.
    """
    require_ours(token_file)
    require_ours_above(token_file)
    try:
        token = decode_token_untrusted(token_file.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError, UntrustedBytes) as error:
        raise InputError(f"is no token: {error}", path=token_file) from None
    identity = DeviceIdentity.load(source / "identity")
    authority = x509.load_der_x509_certificate(token.authority_der).public_bytes(Encoding.PEM)
    try:
        member = verified_identity_untrusted(identity.certificate_der, authority, fleet=token.fleet)
    except UntrustedBytes as error:
        raise TrustError(f"this device did not join with {token_file}: {error}", remedy="Enrol it anew.") from None
    if not hmac.compare_digest(hashlib.sha256(identity.root_json).digest(), token.root_sha256):
        raise TrustError(f"the root of this device is not the one that {token_file} pins", remedy="Enrol it anew.")
    return Confirmed(_digest(identity), member.device_id.hex(), token.site)


def _doubt_above(source: Path) -> str:
    """Why others could put another folder, or a link, in the place of ``source``: root would read it, and give it away."""
    try:
        require_ours_above(source)
    except TrustError as error:
        return error.message
    return ""


def _check(said: Confirmed, doubt: str, digest: str, identity: DeviceIdentity, config: Config) -> None:
    if doubt and (said.root_digest is None or said.device is None or said.site is None):
        raise TrustError(
            f"{doubt}: what it says could have been changed since this device was enrolled",
            remedy="Adopt as root right after 'pcm-p2p enroll join' as root; or confirm what is right with --root-digest "
            "(from the fleet's key sheet), --device and --site.",
        )
    found = {"root": digest, "device": identity.device_id.hex(), "site": config.device.site}
    wanted = {"root": said.root_digest, "device": said.device, "site": said.site}
    if wanted["root"] is not None:
        wanted["root"] = "".join(wanted["root"].split()).lower()
        found["root"] = digest[: max(DIGEST_DIGITS_MIN, len(wanted["root"]))]
    for what, value in wanted.items():
        if value is not None and not hmac.compare_digest(value.encode(), found[what].encode()):
            raise TrustError(
                f"the {what} of this device is {found[what]}, and not {value}",
                remedy="If what you gave is right, this device was tampered with: enrol it anew.",
            )


def _digest(identity: DeviceIdentity) -> str:
    """Of the pinned root, which must be one of the device's own fleet. Raises ``TrustError``."""
    try:
        document = Metadata[Root].from_bytes(identity.root_json)
        document.signed.verify_delegate("root", document.signed_bytes, document.signatures)
        complaints = lint_root(document.signed, identity.fleet)
    except (RepositoryError, TypeError, ValueError) as error:
        complaints = (str(error),)
    if complaints:
        raise TrustError(f"the pinned root cannot be believed: {complaints[0]}", remedy="Enrol this device again.")
    return hashlib.sha256(document.signed_bytes).hexdigest()


def _settings_text(
    said: Confirmed, identity: DeviceIdentity, config: Config, client: str, socket: Path, apply_root: str
) -> str:
    labels = said.labels if said.site is not None else config.device.labels
    return "\n".join(
        [
            "# Written by 'pcm-p2p apply-service adopt'. Site and labels decide which policies count here; those in the",
            "# daemon's config.toml are for what it fetches, and should be the same.",
            f"socket = {_toml(str(socket))}",
            f"client = {_toml(client)}",
            "",
            "[device]",
            f"id = {_toml(identity.device_id.hex())}",
            f"fleet = {_toml(identity.fleet)}",
            f"site = {_toml(config.device.site)}",
            f"labels = [{', '.join(map(_toml, labels))}]",
            "",
            "[apply]",
            f"root = {_toml(apply_root)}",
            "",
        ]
    )


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _write_once(path: Path, data: bytes, state: Path) -> None:
    if path.exists() and path.read_bytes() != data:
        raise InputError(
            "is there already and says otherwise",
            path=path,
            remedy=f"Edit it if only settings differ; for another fleet or device remove {state} first.",
        )
    write_atomic(path, data, mode=0o600)


def _inherit(source: Path, state: Path) -> None:
    """What a daemon that applied by itself had come to know, so that nothing of it can be rolled back by the change of hands: the
    floor of metadata, the counters of what was applied, and the receipts. Only what is root's, and where the service has none.
    """
    if (state / SETTINGS).exists():
        return
    with lock_state(source):
        if (source / "apply" / "journal.json").exists():
            raise InputError(
                "a change was interrupted",
                path=source / "apply" / "journal.json",
                remedy="Start the daemon once as before, so that it ends the change; then repeat this command.",
            )
        for name in _INHERITED:
            _copy_ours(source / name, state / name)


def _copy_ours(source: Path, target: Path) -> None:
    """A folder whose every part is root's, without links, or nothing of it."""
    parts = [source, *source.rglob("*")] if source.is_dir() else []
    if not parts or any(why_not_ours(part) for part in parts):
        return
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(source, staging, ignore=shutil.ignore_patterns(".lock", "staging", "*.deb"))
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)


def _name_service(path: Path, config: Config, socket: Path) -> None:
    """Set ``[apply] service`` in the daemon's settings, and leave the rest of the file as it is written."""
    if config.apply.service == str(socket):
        return
    if config.apply.service:
        raise InputError(f"names another service, {config.apply.service}", path=path, key="apply.service")
    text, line = path.read_text(encoding="utf-8"), f"service = {_toml(str(socket))}"
    if _HEADER.search(text):
        changed = _HEADER.sub(lambda match: f"{match[0]}\n{line}", text, count=1)
    else:
        changed = f"{text.rstrip()}\n\n[apply]\n{line}\n"
    if tomllib.loads(changed).get("apply", {}).get("service") != str(socket):
        raise InputError(f"cannot be edited by this command; add '{line}' under [apply]", path=path)
    facts = path.stat()
    write_atomic(path, changed.encode(), mode=facts.st_mode & 0o7777)
    os.chown(path, facts.st_uid, facts.st_gid)


def _give(folder: Path, uid: int, gid: int) -> None:
    """The whole folder to the daemon's user; links are given as links. Only root can do so, and only root's is given away."""
    if os.geteuid() != 0:
        return
    for parent, folders, names in os.walk(folder, topdown=False):
        for name in (*folders, *names):
            os.chown(Path(parent) / name, uid, gid, follow_symlinks=False)
    os.chown(folder, uid, gid, follow_symlinks=False)
