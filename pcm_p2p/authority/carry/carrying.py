"""Proposals and signatures as files between a fleet folder and the machines of its signers.

``export_proposal`` writes the file that a person signs elsewhere, ``merge`` takes detached signatures in, and
``import_proposal`` brings a proposal into another copy of the folder. What comes in counts for nothing until it was verified
against what this folder publishes itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
from securesystemslib.signer import Signature  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.metadata import Metadata, TargetFile, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.audit import record as audit_record
from pcm_p2p.authority.carry.bundle import (
    MAGIC,
    Bundle,
    BundledDocument,
    BundleDocument,
    BundledSegment,
    BundledTarget,
    body_length_untrusted,
    carried_targets,
    decode_bundle_untrusted,
    encode_bundle,
    is_judging,
)
from pcm_p2p.authority.carry.carried_proposal import delegators_in, keys_of, signables_in
from pcm_p2p.authority.carry.signature_file import (
    SIZE_BYTES_MAX,
    DetachedSignature,
    Signable,
    SignatureFile,
    decode_signature_file_untrusted,
    is_there,
    why_refused,
)
from pcm_p2p.authority.delegating import delegated_roles
from pcm_p2p.authority.fleet_floor import policies_in
from pcm_p2p.authority.held_floor import held_floor
from pcm_p2p.authority.proposal import signatures_of
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.authority.site_folder import site_of
from pcm_p2p.authority.site_judgement import brings_policies, complaints_of
from pcm_p2p.authority.staging import complaints_about, keyids_of
from pcm_p2p.authority.target_files import is_intact
from pcm_p2p.content.manifest import decode_untrusted
from pcm_p2p.durable import fsync_folder, write_atomic
from pcm_p2p.errors import InputError, StorageError, TrustError, UntrustedBytes
from pcm_p2p.ids import SegmentId
from pcm_p2p.policy.allowance import decode_allowances
from pcm_p2p.policy.document import decode_policy
from pcm_p2p.trust.delegation import HALT, TARGETS, kind_of, role_of_path
from pcm_p2p.trust.index import ALLOWANCES, LIFTED, target_file


@dataclass(frozen=True)
class Merged:
    """What became of one carried signature; ``refused`` is empty when it was merged, or was there before (``there``)."""

    file: Path
    title: str
    refused: str
    there: bool = False


def contents_of(folder: FleetFolder) -> Callable[[str, str], bytes | None]:
    """A ``difference.Contents`` over the targets that the folder keeps."""

    def read(path: str, sha256: str) -> bytes | None:
        try:
            return (folder.path / "repository" / target_file(path, sha256)).read_bytes()
        except OSError:
            return None

    return read


def signables_of(folder: FleetFolder) -> tuple[Signable, ...]:
    """Everything that is proposed, with the keys that have a part in it."""
    found = []
    for role in folder.roles():
        document, published = folder.proposed(role), folder.document(role)
        if document is not None:
            version = published.signed.version if published is not None else 0
            found.append(Signable(role, document, keys_of(folder.all_namers(role), role), version))
    return tuple(found)


def _published_of(folder: FleetFolder) -> tuple[Signable, ...]:
    """Everything that is published, with the keys that have a part in it."""
    return tuple(
        Signable(role, document, keys_of(folder.all_namers(role), role), document.signed.version)
        for role in folder.roles()
        if (document := folder.document(role)) is not None
    )


# Out


def export_proposal(
    folder: FleetFolder, file: Path, *, with_segments: bool = False, only: Collection[str] = ()
) -> Bundle:
    """Write the proposals of ``folder`` into ``file``, all of them or those of the roles in ``only``.

    Raises ``InputError`` if nothing is proposed, or not for one of these roles, or if nobody could sign it alone;
    ``StorageError``.
    """
    with folder.locked():
        document = _bundle_document(folder, with_segments=with_segments, only=only)
        bundle = decode_bundle_untrusted(body := encode_bundle(document)[len(MAGIC) + 8 :])
        temporary = file.with_name(f".{file.name}.{secrets.token_hex(6)}.tmp")
        try:
            # Streamed: the blobs of a release need not fit into memory.
            with temporary.open("xb") as opened:
                opened.write(MAGIC + len(body).to_bytes(8, "big") + body)
                for segment in document.segments:
                    opened.write(_blob(folder, segment))
                opened.flush()
                os.fsync(opened.fileno())
            temporary.replace(file)
            fsync_folder(file.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise InputError(
                f"cannot be written: {error.strerror}", path=file, remedy="Check the path, and who may write there."
            ) from None
    return bundle


def _bundle_document(folder: FleetFolder, *, with_segments: bool, only: Collection[str]) -> BundleDocument:
    proposed = {role: found for role in folder.roles() if (found := folder.proposed(role)) is not None}
    if not proposed:
        raise InputError("nothing is proposed", path=folder.path, remedy="Stage a change first.")
    if absent := sorted(set(only) - proposed.keys()):
        raise InputError(
            f"nothing is proposed for {absent[0]}", key="--role", remedy=f"Proposed: {', '.join(proposed)}."
        )
    if only:
        proposed = {role: one for role, one in proposed.items() if role in only}
        for role in proposed:
            alone, together = (
                {keyid for one in namers for keyid in keyids_of(one, role)}
                for namers in (folder.namers(role, proposed), folder.namers(role))
            )
            # Any one key will do for a halt, so that those who are named already can sign it alone.
            if not alone or (alone != together and role != HALT):
                above = "root" if role == TARGETS else TARGETS
                raise InputError(
                    f"who signs for {role} changes with what is proposed for {above}",
                    key="--role",
                    remedy=f"Pass --role {above} too, or leave --role out.",
                )
    root, top = folder.document("root"), folder.targets()
    # What an earlier delegation published and the present one does not name is nothing to compare with.
    delegated = delegated_roles(top.signed if top is not None else None)
    named = ("targets", *(role for role in delegated if role in proposed))
    published = {role: found for role in named if (found := folder.document(role)) is not None}
    halts = folder.document(HALT)
    if top is not None and halts is not None and HALT in delegated and _lifts(top, proposed):
        # What is lifted is shown in words from it. One that lost its signer would make the file unreadable, and is left out.
        published.update({HALT: halts} if signatures_of(top.signed, HALT, halts).complete else {})

    def read(path: str, sha256: str) -> bytes:
        return folder.files.read(path, TargetFile(0, {"sha256": sha256}, path))

    floor = _floor_of(folder, published, proposed)
    carried = carried_targets(published, proposed, read, alone=floor is not None)
    targets = [BundledTarget(path, read(path, digest)) for path, digest in carried]
    segments: dict[bytes, int] = {}
    if with_segments:
        new = {(path, info.hashes["sha256"]) for one in proposed.values() for path, info in _targets(one).items()}
        old = {(path, info.hashes["sha256"]) for one in published.values() for path, info in _targets(one).items()}
        for target in targets:
            place = (target.path, hashlib.sha256(target.data).hexdigest())
            if target.path.endswith(".manifest") and place in new and place not in old:
                segments.update((one.id, one.size) for one in decode_untrusted(target.data).segments)
    return BundleDocument(
        folder.fleet_id,
        folder.name,
        tuple(folder.root_bytes(number + 1) for number in range(root.signed.version if root is not None else 0)),
        tuple(BundledDocument(role, one.to_bytes()) for role, one in published.items()),
        tuple(BundledDocument(role, one.to_bytes()) for role, one in proposed.items()),
        tuple(targets),
        tuple(BundledSegment(name, size) for name, size in segments.items()),
        msgspec.UNSET if floor is None else floor,
    )


def _floor_of(
    folder: FleetFolder, published: Mapping[str, Metadata[Any]], proposed: Mapping[str, Metadata[Any]]
) -> bytes | None:
    """What signers judge new policies of a site that acts alone by; ``None`` where there are none, or it is not held."""
    if site_of(folder.path) is None or not _brings_policies(published, proposed):
        return None
    floor = held_floor(folder)
    return floor.document.encoded() if floor is not None else None


def _brings_policies(published: Mapping[str, Metadata[Any]], proposed: Mapping[str, Metadata[Any]]) -> bool:
    """Whether the top-level targets do."""
    sides = [policies_in(side[TARGETS].signed) if TARGETS in side else {} for side in (published, proposed)]
    return TARGETS in proposed and brings_policies(*sides)


def _lifts(top: Metadata[Targets], proposed: Mapping[str, Metadata[Any]]) -> bool:
    """Whether it changes which halts are lifted or confirmed."""
    after = proposed.get(TARGETS)
    return after is not None and top.signed.targets.get(LIFTED) != after.signed.targets.get(LIFTED)


def _targets(document: Metadata[Any]) -> dict[str, TargetFile]:
    return getattr(document.signed, "targets", {})


def _blob(folder: FleetFolder, segment: BundledSegment) -> bytes:
    name = segment.id.hex()
    file = folder.segments / name[:2] / name
    try:
        data = file.read_bytes()
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror}", remedy="Add the release again.") from None
    if len(data) != segment.size or SegmentId.of(data) != SegmentId(segment.id):
        raise StorageError(f"{file} is damaged", remedy="Remove it and add the release again.")
    return data


# In


def read_bundle(file: Path) -> Bundle:
    """A proposal that somebody carried, without its blobs. Raises ``InputError``, or ``TrustError`` for what is not as signed."""
    with _opened(file) as opened:
        return _bundle_from(opened, file)


def _bundle_from(opened: IO[bytes], file: Path) -> Bundle:
    try:
        length = body_length_untrusted(opened.read(len(MAGIC) + 8))
        return decode_bundle_untrusted(opened.read(length))
    except UntrustedBytes as error:
        raise TrustError(
            f"{file}: {error.message}", remedy="Copy it again from where 'pcm-p2p proposal export' wrote it."
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=file, remedy="Check the path, and who may read it."
        ) from None


def _opened(file: Path) -> IO[bytes]:
    try:
        return file.open("rb")
    except FileNotFoundError:
        raise InputError("there is no such file", path=file, remedy="Check the path.") from None
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=file, remedy="Check the path, and who may read it."
        ) from None


def refuse_what_breaks_rules(bundle: Bundle) -> None:
    """The same rules as when a fleet folder signs and publishes. Raises ``TrustError``."""
    for role, document in bundle.proposed.items():
        if complaints := complaints_about(role, document.signed, bundle.fleet):
            raise TrustError(f"refused to go on: {role} breaks a rule: {complaints[0]}")
        if complaints := _site_complaints(bundle, role):
            raise TrustError(
                f"refused to go on: {complaints[0]}",
                remedy="Let a policy be put in its place that keeps to it, or let the fleet allow it first.",
            )


def _site_complaints(bundle: Bundle, role: str) -> tuple[str, ...]:
    """What devices would set aside of a site's document, by the allowances and policies that came with it."""
    if role == TARGETS:
        return _complaints_alone(bundle)
    kind, top = kind_of(role), bundle.proposed.get(TARGETS, bundle.published.get(TARGETS))
    if kind is None or kind[0] != "site" or top is None or role not in delegated_roles(top.signed):
        return ()
    own, fleets = _judging(bundle, role, bundle.proposed[role]), _judging(bundle, TARGETS, top)
    try:
        allowances = decode_allowances(fleets.pop(ALLOWANCES), ALLOWANCES) if ALLOWANCES in fleets else None
        policies = [decode_policy(data, path) for path, data in own.items()]
    except InputError as error:
        return (error.message,)
    floor = []
    for path, data in fleets.items():
        with contextlib.suppress(InputError):  # as devices do
            floor.append(decode_policy(data, path))
    return complaints_of(kind[1], policies, allowances, floor)


def _complaints_alone(bundle: Bundle) -> tuple[str, ...]:
    """The same of a site that acts alone, by the floor that came with it. Raises ``TrustError`` where none came."""
    if (site := bundle.site) is None or not _brings_policies(bundle.published, bundle.proposed):
        return ()
    if bundle.floor is None:
        raise TrustError(
            f"refused to go on: it brings a policy of site {site}, and nothing of what the fleet lets the site set",
            remedy="Where it was made, run 'pcm-p2p site floor', and 'pcm-p2p proposal export' again.",
        )
    before, after = (
        {path: bundle.contents[info.hashes["sha256"]] for path, info in policies_in(side[TARGETS].signed).items()}
        if TARGETS in side
        else {}
        for side in (bundle.published, bundle.proposed)
    )
    return bundle.floor.complaints(before, after)


def _judging(bundle: Bundle, role: str, document: Metadata[Any]) -> dict[str, bytes]:
    """Contents by path; that all of them are there was checked with the file."""
    return {
        path: bundle.contents[info.hashes["sha256"]]
        for path, info in sorted(_targets(document).items())
        if is_judging(path) and role_of_path(path) == role
    }


def import_proposal(folder: FleetFolder, file: Path) -> tuple[str, ...]:
    """Bring a carried proposal, its targets and its blobs into ``folder``; returns the roles that are proposed by it.

    Raises ``TrustError`` if it is of another fleet, does not build on what this folder publishes, or breaks a rule;
    ``InputError`` if something else is proposed here.
    """
    with _opened(file) as opened, folder.locked():
        bundle = _bundle_from(opened, file)
        _refuse_other_base(folder, bundle, file)
        refuse_what_breaks_rules(bundle)
        for role, document in bundle.proposed.items():
            if role not in ("root", "targets") and not keys_of(delegators_in(bundle, role), role):
                # It would wait unseen, and be what a later delegation of that role begins with.
                raise TrustError(f"{file} proposes what nobody is delegated to sign: {role}")
            there = folder.proposed(role)
            if there is not None and there.signed_bytes != document.signed_bytes:
                raise InputError(
                    f"another change of {role} is proposed here",
                    path=folder.path,
                    remedy=f"Publish it, or drop it with 'pcm-p2p proposal discard --role {role}'."
                    # One list holds all halts, and who signed the carried one signed the whole of it.
                    + (" A halt that is to hold beside it is ordered again on top." if role == HALT else ""),
                )
        for segment in bundle.segments:
            _take_blob(folder, opened, segment, file)
        for digest, data in bundle.contents.items():
            for path in bundle.paths[digest]:
                folder.files.store(path, data)
        for signable in signables_in(bundle):
            _take_document(folder, signable)
    return tuple(sorted(bundle.proposed))


def _refuse_other_base(folder: FleetFolder, bundle: Bundle, file: Path) -> None:
    if bundle.fleet != folder.fleet_id:
        raise TrustError(
            f"{file} is of fleet {bundle.fleet[:8]}, and this is fleet {folder.fleet_id[:8]}",
            remedy="Check --fleet, and the file.",
        )
    root = folder.document("root")
    theirs: dict[str, Metadata[Any] | None] = {"root": bundle.root, **bundle.published}
    for role in {"root", "targets", *bundle.proposed}:
        ours = root if role == "root" else folder.document(role)
        other = theirs.get(role)
        versions = [one.signed.version if one is not None else 0 for one in (ours, other)]
        if other is None and role not in ("root", "targets"):
            versions[1] = bundle.proposed[role].signed.version - 1
        if versions[0] > versions[1]:
            raise TrustError(
                f"{file} is outdated: it builds on {role} {versions[1]}, and {role} {versions[0]} is published here",
                remedy="Where it was made, run 'pcm-p2p fleet workspace' again, and propose the change anew on top of that.",
            )
        if versions[0] < versions[1]:
            raise TrustError(
                f"{file} builds on {role} {versions[1]}, and this folder has {role} {versions[0]}",
                remedy="Bring this copy of the fleet folder up to what is published first.",
            )
        if ours is not None and other is not None and ours.signed_bytes != other.signed_bytes:
            raise TrustError(f"{file} builds on another {role} {versions[0]} than this folder published")


def _take_blob(folder: FleetFolder, opened: IO[bytes], segment: BundledSegment, file: Path) -> None:
    data = opened.read(segment.size)
    if len(data) != segment.size or SegmentId.of(data) != SegmentId(segment.id):
        raise TrustError(f"{file}: a blob is cut off or damaged", remedy="Copy the file again.")
    name = segment.id.hex()
    place = folder.segments / name[:2] / name
    if not is_intact(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, data)


def _take_document(folder: FleetFolder, signable: Signable) -> None:
    """Write the proposal with the signatures on it that verify, beside those that are here already."""
    there = folder.proposed(signable.role)
    before = dict(there.signatures) if there is not None else {}
    come = {keyid: one for keyid, one in signable.document.signatures.items() if signable.verifies(one)}
    document = Metadata(signable.document.signed, {**before, **come})
    new = [keyid for keyid in come if keyid not in before]
    if new:
        _record_merge(folder, signable.role, document, new, keys_of_bundle=signable)
    write_atomic(folder.path / "proposal" / f"{signable.role}.json", document.to_bytes())


def _record_merge(
    folder: FleetFolder,
    role: str,
    document: Metadata[Any],
    keyids: Iterable[str],
    keys_of_bundle: Signable | None = None,
) -> None:
    namers = folder.all_namers(role)
    if keys_of_bundle is not None and role == "root":
        namers = (*namers, document.signed)
    audit_record.record(folder, "merge", role, document, keyids, namers)


def merge(folder: FleetFolder, files: Iterable[Path]) -> tuple[Merged, ...]:
    """Add detached signatures to what is proposed; each is verified before, and refused by name where it cannot be added.

    Raises ``InputError`` for a file that cannot be read or is no signature file; then nothing was merged.
    """
    carried = [(file, _signature_file(file)) for file in files]
    results = []
    with folder.locked():
        published = _published_of(folder)
        versions = {one.role: one.published_version for one in published}
        for file, one in carried:
            for signature in one.signatures:
                # Anew each time: the one before may have been the same.
                proposed = signables_of(folder)
                there = is_there(signature, one.fleet, folder.fleet_id, (*proposed, *published))
                why = "" if there else why_refused(signature, one.fleet, folder.fleet_id, proposed, versions)
                if not why and not there:
                    _add(folder, signature)
                results.append(Merged(file, f"{signature.owner}'s signature on {signature.title}", why, there))
    return tuple(results)


def _add(folder: FleetFolder, carried: DetachedSignature) -> None:
    document = folder.proposed(carried.role)
    assert document is not None, "it was judged not to be refused"
    document.signatures[carried.keyid] = Signature(carried.keyid, carried.signature)
    _record_merge(folder, carried.role, document, [carried.keyid])
    write_atomic(folder.path / "proposal" / f"{carried.role}.json", document.to_bytes())


def _signature_file(file: Path) -> SignatureFile:
    with _opened(file) as opened:
        try:
            return decode_signature_file_untrusted(opened.read(SIZE_BYTES_MAX + 1))
        except UntrustedBytes as error:
            raise InputError(
                error.message, path=file, remedy="Pass a file that 'pcm-p2p sign --proposal … --out FILE' wrote."
            ) from None


def write_signature_file(file: Path, signatures: SignatureFile) -> None:
    """Raises ``InputError``."""
    try:
        write_atomic(file, signatures.encoded())
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror}", path=file, remedy="Check the path, and who may write there."
        ) from None
