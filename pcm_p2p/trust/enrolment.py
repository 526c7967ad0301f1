"""Enrolment: a device brings a key and a token to the desk, and leaves with a certificate, the authorities and the TUF root.

The desk answers over TLS 1.3 with a certificate in role ``desk`` that the authority in the token issued; the device has none
yet. What is said, once each way, every message behind its length (u32, little-endian)::

    request   token id, public key, proof, mac
    reply     reason ("" for yes), certificate, authorities, root

``proof`` is a signature by the device's key over ``statement`` (token id, fleet, public key): it holds the private key. ``mac``
is HMAC-SHA256 under the token's secret over statement and proof: it holds the token. The secret itself is never sent.

A use is on the desk's disk before the reply leaves. A key that comes again for the same token is the same use: a join that was
interrupted anywhere is repeated with the same command and costs nothing. On the device the certificate is written last; what
was written before it has no effect.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pcm_p2p.errors import InputError, PcmError, StorageError, TransferError, TrustError, UntrustedBytes
from pcm_p2p.ids import DeviceId, check_name
from pcm_p2p.trust.first_settings import check_settings, settings_text, write_settings
from pcm_p2p.trust.identity import (
    AUTHORITIES_SIZE_BYTES_MAX,
    CERTIFICATE_SIZE_BYTES_MAX,
    DeviceIdentity,
    FleetCA,
    FleetRecord,
    authorities_untrusted,
    load_authority,
    load_or_create_key,
    peer_identity_untrusted,
    separated,
    verified_identity_untrusted,
    verify,
)
from pcm_p2p.trust.token import (
    LINE_LENGTH_MAX,
    EnrolledRole,
    Token,
    TokenFolder,
    TokenRecord,
    check_endpoints,
    decode_token_untrusted,
    endpoint_untrusted,
)

if TYPE_CHECKING:
    from pcm_p2p.trust.repository import FleetFolder

log = logging.getLogger(__name__)
