"""What the fleet's signers published about identities, as the desk reads it in the fleet folder: authorities and the deny list.

Read anew when something was published since: what was published a second ago counts. The folder is the signers' own, so
signatures are not checked again; a list that cannot be read, or is not what was published, stops the desk from certifying
anybody, since it may name the one who asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding

from pcm_p2p.errors import InputError, StorageError, UntrustedBytes
from pcm_p2p.trust.deny import DenyList, decode_deny_untrusted
from pcm_p2p.trust.identity import authorities_untrusted
from pcm_p2p.trust.index import AUTHORITIES, DENY

if TYPE_CHECKING:
    from pcm_p2p.authority.repository import FleetFolder


class PublishedIdentities:
    """One fleet folder's."""

    def __init__(self, folder: FleetFolder) -> None:
        self._folder = folder
        self._published: tuple[int, int] | None = None
        self._denied = DenyList.empty(folder.fleet_id)
        self._authorities = b""

    def deny_list(self) -> DenyList:
        """The published list; an empty one where nothing was revoked yet. Raises ``StorageError``."""
        self._refresh()
        return self._denied

    def authorities(self, own_pem: bytes) -> bytes:
        """The authorities whose certificates count, in PEM: ``own_pem`` first, then the published ones that are not revoked.

        Raises ``StorageError``.
        """
        self._refresh()
        found = {}
        for pem in filter(None, (own_pem, self._authorities)):
            try:
                for one in authorities_untrusted(pem):
                    if self._denied.authority(one.public_bytes(Encoding.DER)) is None:
                        found[one.public_bytes(Encoding.DER)] = one.public_bytes(Encoding.PEM)
            except UntrustedBytes as error:
                raise StorageError(f"{self._folder.path}: {error}", remedy="Restore it from its backup.") from None
        return b"".join(found.values())

    def _refresh(self) -> None:
        """The timestamp is the file that each publishing replaces, last."""
        try:
            status = (self._folder.metadata / "timestamp.json").stat()
        except FileNotFoundError:
            return  # nothing was published yet
        except OSError as error:
            raise StorageError(f"{self._folder.metadata}: {error.strerror}", remedy="Make it readable.") from None
        if self._published == (status.st_mtime_ns, status.st_ino):
            return
        denied, authorities = self._read_deny_list(), self._read(AUTHORITIES) or b""
        self._denied, self._authorities = denied, authorities
        self._published = (status.st_mtime_ns, status.st_ino)

    def _read_deny_list(self) -> DenyList:
        data = self._read(DENY)
        if data is None:
            return DenyList.empty(self._folder.fleet_id)
        try:
            return decode_deny_untrusted(data, self._folder.fleet_id)
        except UntrustedBytes as error:
            raise StorageError(
                f"{self._folder.path}: {error}", remedy="Publish the fleet's deny list again before devices enrol."
            ) from None

    def _read(self, path: str) -> bytes | None:
        published = self._folder.targets()
        info = published.signed.targets.get(path) if published is not None else None
        if info is None:
            return None
        try:
            return self._folder.files.read(path, info)
        except InputError as error:
            raise StorageError(error.message, remedy="Restore it from a backup.") from None
