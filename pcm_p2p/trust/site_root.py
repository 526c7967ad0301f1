"""Sites that act alone: how the fleet vouches for a site's own repository, and what that repository may be called. Pure.

A site that must act while the WAN is down has a TUF repository of its own: own keys, own publisher, in the office. The fleet
signs its root as the target ``sites/<site>/root.json``; that file is where its devices begin to trust the site, and with another
file there the fleet takes that trust away (``daemon.site.repository``).

Where a root of a fleet says ``x-pcm-fleet``, a root of a site says a name that is made of both, the fleet's id and the site's
name: ``repository_id``. So metadata of one never passes for that of another, even where people use a key twice: not a site's for
the fleet's, not that of one site for another, not that of the same site in another fleet. ``x-pcm-site`` says the name in words.
"""

from __future__ import annotations

import hashlib

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.trust.index import METADATA_SIZE_BYTES_MAX
from pcm_p2p.trust.lint import lint_root

SITE_FIELD = "x-pcm-site"
PREFIX = "sites/"
"""Files of a site's tree are asked of peers as ``sites/<site>/`` and their path in that tree."""


def repository_id(fleet: str, site: str) -> str:
    """What the root and the index of the repository of ``site`` in ``fleet`` say as ``x-pcm-fleet``: 32 hexadecimal digits."""
    return hashlib.sha256(f"pcm site repository\0{fleet}\0{site}".encode()).hexdigest()[:32]


def is_own_release(site: str, release: str) -> bool:
    """Whether a site may bring a release of this name: ``<site>-…``, so that it takes no name of the fleet's, and no counter."""
    return release.startswith(f"{site}-")


def decode_site_root_untrusted(data: bytes, fleet: str, site: str) -> Metadata[Root]:
    """A root document as the repository of ``site`` in ``fleet`` can begin with; raises ``UntrustedBytes`` only.

    It holds by itself: signed by a threshold of its own root keys, clean, and made for this site of this fleet.
    """
    if len(data) > METADATA_SIZE_BYTES_MAX["root"]:
        raise UntrustedBytes(
            f"root of site {site} has {len(data)} bytes; at most {METADATA_SIZE_BYTES_MAX['root']} are read"
        )
    try:
        document = Metadata[Root].from_bytes(data)
        if not isinstance(document.signed, Root):
            raise UntrustedBytes(f"what should be the root of site {site} is a {document.signed.type} document")
        document.signed.verify_delegate("root", document.signed_bytes, document.signatures)
    except (RepositoryError, TypeError, ValueError, RecursionError) as error:
        raise UntrustedBytes(f"root of site {site} cannot be believed: {error}") from None
    complaints = lint_root(document.signed, repository_id(fleet, site))
    if complaints:
        raise UntrustedBytes(f"root of site {site} cannot be believed: {complaints[0]}")
    if document.signed.unrecognized_fields.get(SITE_FIELD) != site:
        raise UntrustedBytes(f"root of site {site} does not name the site in {SITE_FIELD}")
    return document
