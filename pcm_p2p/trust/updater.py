"""python-tuf's ``Updater`` as this product runs it: its limits, its network and whom to blame for its errors.

``trial`` drives it for devices, in a staged copy and with lint and floor around it. ``tufcli`` drives the same thing over foreign
repositories. What both share stands here, so that what the conformance suite says of one is true of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.ngclient import Updater, UpdaterConfig  # type: ignore[attr-defined]
from tuf.ngclient.fetcher import FetcherInterface

from pcm_p2p.errors import PcmError, TransferError, UntrustedBytes
from pcm_p2p.trust.index import METADATA_SIZE_BYTES_MAX

Kind = Literal["good", "unchanged", "expired", "bad", "incomplete", "older"]

BASE = "pcm:///"
"""What paths of the tree are relative to; never seen on a wire."""
ROOTS_MAX = 256
"""Steps along the chain of roots in one attempt (python-tuf's default): the rest follows with the next attempt."""

ANSWERED = (RepositoryError, DownloadError, UntrustedBytes, TypeError, ValueError, ArithmeticError, RecursionError)
"""What ``Updater`` raises for what a source delivered: its own errors, and what escapes it for hostile documents
(research/trust.md 1.5)."""


class SourceMissing(TransferError):
    """The source does not have the file (HTTP 404, or a peer's "missing")."""


class SourceFailed(TransferError):
    """The source did not deliver: absent, slow, broken, refusing."""


def new_updater(
    cache: Path, downloads: Path, get: Callable[[str, int], bytes], *, bootstrap: bytes | None, reference_time: datetime
) -> Updater:
    """An updater over ``cache``; ``get(path, size_bytes_max)`` brings one file of the tree and raises ``PcmError`` only.

    ``bootstrap`` is the root that is believed, ``None``: the one in ``cache``. ``reference_time`` is what expiry is compared
    with. Raises ``ANSWERED`` or ``OSError``, like the updater's own methods.
    """
    updater = Updater(
        str(cache),
        BASE + "metadata/",
        str(downloads),
        BASE + "targets/",
        fetcher=Fetcher(get),
        config=UpdaterConfig(
            max_root_rotations=ROOTS_MAX,
            root_max_length=METADATA_SIZE_BYTES_MAX["root"],
            timestamp_max_length=METADATA_SIZE_BYTES_MAX["timestamp"],
            snapshot_max_length=METADATA_SIZE_BYTES_MAX["snapshot"],
            targets_max_length=METADATA_SIZE_BYTES_MAX["targets"],
            prefix_targets_with_hash=True,
        ),
        bootstrap=bootstrap,
    )
    # The one private touch of the library: it has no clock argument (research/trust.md 1.4).
    updater._trusted_set.reference_time = reference_time
    return updater


def verdict(error: Exception) -> tuple[Kind, str]:
    """Kind and reason for an error of ``ANSWERED``, as far as the error alone can say."""
    if isinstance(error, ExpiredMetadataError):
        return "expired", str(error)
    if isinstance(error, DownloadLengthMismatchError):
        return "bad", f"longer than what was signed: {error}"
    if isinstance(error, DownloadError):
        return "incomplete", str(error)
    return "bad", str(error) or type(error).__name__


class Fetcher(FetcherInterface):
    """The network of python-tuf. Returns whole files, so nothing can fail inside the iterator that it reads."""

    def __init__(self, get: Callable[[str, int], bytes]) -> None:
        self._get = get
        self._size_bytes_max = 0

    def download_file(self, url: str, max_length: int) -> Any:
        """Lets the source stop at the length that was signed, not only refuse what came after."""
        self._size_bytes_max = max_length
        return super().download_file(url, max_length)

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = url.removeprefix(BASE)
        try:
            return iter((self._get(path, self._size_bytes_max),))
        except SourceMissing as error:
            raise DownloadHTTPError(str(error), 404) from None
        except PcmError as error:
            raise DownloadError(f"{path}: {error.message}") from None
