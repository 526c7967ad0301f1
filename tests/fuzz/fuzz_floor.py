"""The fleet's floor of a site, as its keeper or carrier, and as whoever holds a key of the fleet could make it."""

from __future__ import annotations

import contextlib
import json
from functools import cache
from typing import Any

import floors
import msgspec
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import Metadata, MetaFile, Snapshot  # type: ignore[attr-defined]

from pcm_p2p.authority.fleet_floor import FloorDocument, decode_floor_untrusted, first_root_untrusted
from pcm_p2p.errors import UntrustedBytes

POLICY = b'schema = "pcm.policy/1"\nid = "base"\nversion = 1\nmode = "enforce"\n'


@cache
def _fleet() -> floors.Fleet:
    return floors.Fleet()


@cache
def _document() -> FloorDocument:
    return _fleet().says({"base": POLICY}, of_role={"own": POLICY.replace(b"base", b"own")})


def floor_samples() -> list[bytes]:
    return [_document().encoded()]


def signed_floor_samples() -> list[bytes]:
    """``{role: signed part}`` for each role."""
    document = _document()
    bodies = {
        "root": document.roots[0],
        **{role: getattr(document, role) for role in ("timestamp", "snapshot", "targets")},
    }
    return [json.dumps({role: json.loads(body)["signed"]}).encode() for role, body in bodies.items()]


def signed_floor(data: bytes) -> None:
    """One document in the place of the genuine one, signed by its key; above it, whatever names it is made to fit."""
    try:
        ((role, signed),) = json.loads(data).items()
        key = _fleet().keys[role if role in floors.ROLES else "targets"]
        signature = key.sign(str(encode_canonical(signed)).encode()).to_dict()
        body = json.dumps({"signatures": [signature], "signed": signed}).encode()
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError, FormatError):
        return  # the envelope of this file
    with contextlib.suppress(UntrustedBytes):
        first_root_untrusted(body, floors.FLEET)
    document = _document()
    documents: dict[str, Any] = {"roots": (body,)} if role == "root" else {str(role): body}
    if role == "targets":
        version = signed.get("version") if isinstance(signed, dict) else 0
        number = version if isinstance(version, int) and 0 < version < 1 << 32 else 1
        own = Metadata[Snapshot].from_bytes(document.snapshot).signed.meta["site-berlin.json"]
        meta = {"targets.json": MetaFile.from_data(number, body, ["sha256"]), "site-berlin.json": own}
        documents |= _fleet().above(meta)
    try:
        changed = msgspec.structs.replace(document, **documents)
    except TypeError:
        return
    with contextlib.suppress(UntrustedBytes):
        found = decode_floor_untrusted(changed.encoded())
        found.set_aside({"policies/x.toml": POLICY})
        found.as_trust_floor()
        _ = found.issued, found.expires, found.overdue(floors.NOW), found.lists(b"")
