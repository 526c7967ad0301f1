"""An authority's key in a PKCS#11 token: a smart card, a YubiKey (PIV), an HSM, SoftHSM. It signs there and never leaves it.

A key is named as securesystemslib's ``HSMSigner`` names it: ``hsm:2?label=alice`` is the key with the id 2 in the token labelled
``alice``. The id is 2 where none is given (PIV's slot 9c, "digital signature"); the label can be left out while one token is
plugged in. ``PYKCS11LIB`` in the environment names the library of the token's maker. Tokens sign with ECDSA over P-256 or
P-384: PKCS#11 as it is deployed has no Ed25519.

A key that was made here carries role and owner in its label inside the token (``pcm root alice``). PIV tokens let nobody but
their own tool make keys and write labels: there the key is made with that tool, and role and owner are given when its public
file is written.

Wrong PINs are counted by the token, which locks itself after a few. So a PIN is tried once, before anything else is done.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final
from urllib import parse

from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import (  # type: ignore[attr-defined]  # exported without __all__
    HSMSigner,
    Key,
    SecretsHandler,
    Signature,
    Signer,
    SSlibKey,
)

from pcm_p2p.authority.keys.fingerprint import owned
from pcm_p2p.authority.keys.public_key import OWNER_LENGTH_MAX, PublicKey, is_owner, is_role
from pcm_p2p.errors import InputError, PcmError, TrustError

SCHEME: Final = "hsm"
KEY_NUMBER_DEFAULT = HSMSigner.SCHEME_KEYID
PIN_LENGTH_MAX = 255
_LABEL = re.compile(r"pcm (\S+) (.+)", re.DOTALL)


@dataclass(frozen=True)
class TokenAddress:
    """Which key of which token. ``label`` is that of the token; ``None``: the only one that is plugged in."""

    number: int
    label: str | None

    @classmethod
    def parse(cls, uri: str) -> TokenAddress:
        """Raises ``InputError``."""
        parts = parse.urlsplit(uri)
        query = dict(parse.parse_qsl(parts.query))
        if (
            parts.scheme != SCHEME
            or parts.netloc
            or not re.fullmatch(r"[0-9]{0,9}", parts.path)
            or query.keys() - {"label"}
        ):
            raise InputError(
                f"{uri[:80]!r} does not name a key in a token",
                remedy="Write hsm:2?label=LABEL, with the token's label.",
            )
        return cls(int(parts.path or KEY_NUMBER_DEFAULT), query.get("label"))

    def __str__(self) -> str:
        query = f"?{parse.urlencode({'label': self.label})}" if self.label else ""
        return f"{SCHEME}:{self.number}{query}"

    @property
    def token(self) -> str:
        return f"the token {self.label!r}" if self.label else "the token"


def is_token_uri(text: str) -> bool:
    return text.startswith(f"{SCHEME}:")


class TokenSigner(Signer):
    """Signs inside the token. Its errors are ours, with remedies; it shows neither PIN nor key."""

    def __init__(self, address: TokenAddress, key: SSlibKey, pin: str) -> None:
        self._address = address
        self._inner = HSMSigner(address.number, key, lambda _: pin, address.label)

    @property
    def public_key(self) -> SSlibKey:
        return self._inner.public_key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> TokenSigner:
        """As the signing library opens keys by address."""
        if not isinstance(public_key, SSlibKey) or secrets_handler is None:
            raise ValueError("a key in a token is opened with its public key and somebody who knows the PIN")
        return cls(TokenAddress.parse(priv_key_uri), public_key, secrets_handler(HSMSigner.SECRETS_HANDLER_MSG))

    def sign(self, payload: bytes) -> Signature:
        """Raises ``InputError`` when the token is gone, ``TrustError`` when it refuses the PIN."""
        with _named(self._address):
            return self._inner.sign(payload)

    def __repr__(self) -> str:
        return f"TokenSigner({self._address})"


def create(uri: str, pin: str, role: str, owner: str, *, curve: str = "secp256r1") -> PublicKey:
    """Make a key in the token, not extractable, with role and owner in its label.

    Raises ``InputError`` when there is no such token, its key number is taken, or it lets nobody make keys this way;
    ``TrustError`` for a wrong PIN.
    """
    address = TokenAddress.parse(uri)
    if not is_owner(owner):
        raise InputError(
            f"the owner {owner[:80]!r} cannot be used",
            remedy=f"Name a person or machine in 1 to {OWNER_LENGTH_MAX} printable characters.",
        )
    if not is_role(role):
        raise InputError(f"there is no role {role[:80]!r}")
    pkcs11 = _library()
    with _named(address), _session(address, pin, write=True) as session:
        kinds = pkcs11.ObjectClass.PUBLIC_KEY, pkcs11.ObjectClass.PRIVATE_KEY
        number = pkcs11.util.biginteger(address.number)
        if any(
            True
            for kind in kinds
            for _ in session.get_objects({pkcs11.Attribute.CLASS: kind, pkcs11.Attribute.ID: number})
        ):
            raise InputError(
                f"{address.token} holds a key {address.number} already",
                remedy="Choose another number; keys are never replaced.",
            )
        parameters = session.create_domain_parameters(
            pkcs11.KeyType.EC,
            {pkcs11.Attribute.EC_PARAMS: pkcs11.util.ec.encode_named_curve_parameters(curve)},
            local=True,
        )
        try:
            parameters.generate_keypair(
                id=number,
                label=f"pcm {role} {owner}",
                store=True,
                private_template={pkcs11.Attribute.EXTRACTABLE: False, pkcs11.Attribute.SENSITIVE: True},
            )
        except (
            pkcs11.exceptions.UserNotLoggedIn,
            pkcs11.exceptions.FunctionRejected,
            pkcs11.exceptions.FunctionNotSupported,
            pkcs11.exceptions.MechanismInvalid,
            pkcs11.exceptions.TokenWriteProtected,
        ) as error:
            raise InputError(
                f"{address.token} does not let its user make keys ({type(error).__name__})",
                remedy="Make it with the token's own tool, then run 'pcm-p2p key public --token URI --role ROLE --owner NAME'.",
            ) from None
    return read_public(uri, pin)


def read_public(uri: str, pin: str | None = None, *, role: str = "", owner: str = "") -> PublicKey:
    """The public side of a key in a token. Some tokens want the PIN for that, most do not.

    ``role`` and ``owner`` stand in for what the key's label does not say; both are empty in the answer where nothing says it.
    Raises ``InputError`` and ``TrustError`` as ``open_token_key``.
    """
    address = TokenAddress.parse(uri)
    pkcs11 = _library()
    with _named(address):
        _, key = HSMSigner.import_(address.number, address.label, (lambda _: pin) if pin is not None else None)
        with _session(address, pin) as session:
            attributes = {
                pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY,
                pkcs11.Attribute.ID: pkcs11.util.biginteger(address.number),
            }
            labels = [found.label for found in session.get_objects(attributes)]
    match = _LABEL.fullmatch(labels[0] or "") if labels else None
    if match is not None and is_role(match[1]) and is_owner(match[2]):
        role, owner = role or match[1], owner or match[2]
    return PublicKey(role, owner, owned(key, owner) if owner else key)


def open_token_key(uri: str, pin: str, *, role: str = "", owner: str = "") -> tuple[TokenSigner, PublicKey]:
    """A key in a token, ready to sign. The PIN is tried once. ``role`` and ``owner``: see ``read_public``.

    Raises ``InputError`` when python-pkcs11, the token's library, the token or the key is not there, and ``TrustError`` when the
    token refuses the PIN.
    """
    address = TokenAddress.parse(uri)
    with _named(address), _session(address, pin):
        pass
    public = read_public(uri, pin, role=role, owner=owner)
    return TokenSigner(address, public.key, pin), public


def _library() -> ModuleType:
    """python-pkcs11. Raises ``InputError`` where the extra is not installed."""
    try:
        import pkcs11
        import pkcs11.util.ec
    except ImportError:
        raise InputError(
            "python-pkcs11 is not installed, which speaks to tokens", remedy="Run pip install 'pcm_p2p[token]'."
        ) from None
    return pkcs11


@contextlib.contextmanager
def _session(address: TokenAddress, pin: str | None, *, write: bool = False) -> Iterator[Any]:
    token = HSMSigner._find_token(address.label)  # the same choice of token as its signatures make
    if pin is not None and not 0 < len(pin) <= PIN_LENGTH_MAX:
        raise InputError("the PIN is empty or too long", remedy="Nothing was tried at the token.")
    with token.open(user_pin=pin, rw=write) as session:
        yield session


@contextlib.contextmanager
def _named(address: TokenAddress) -> Iterator[None]:
    """What the libraries raise, as errors that say what to do."""
    pkcs11 = _library()
    library = os.environ.get("PYKCS11LIB", "")
    if not library:
        raise InputError(
            "PYKCS11LIB is not set: it names the library of the token's maker",
            remedy="For example PYKCS11LIB=/usr/lib/x86_64-linux-gnu/opensc-pkcs11.so, libykcs11.so, libsofthsm2.so.",
        )
    try:
        yield
    except PcmError:
        raise
    except (pkcs11.exceptions.PinIncorrect, pkcs11.exceptions.PinLenRange, pkcs11.exceptions.PinInvalid):
        raise TrustError(
            f"{address.token} refused the PIN{_attempts_left(address)}", remedy="Try again with care."
        ) from None
    except pkcs11.exceptions.PinLocked:
        raise TrustError(
            f"{address.token} is locked: the PIN was wrong too often",
            remedy="Unlock it with the maker's tool and the PUK or the security officer's PIN.",
        ) from None
    except (
        pkcs11.exceptions.TokenNotPresent,
        pkcs11.exceptions.DeviceRemoved,
        pkcs11.exceptions.TokenNotRecognised,
        pkcs11.exceptions.SessionHandleInvalid,
        pkcs11.exceptions.SlotIDInvalid,
    ):
        raise InputError(
            f"{address.token} was removed", remedy="Plug it in and try again; nothing was signed."
        ) from None
    except pkcs11.exceptions.PKCS11Error as error:
        if "while loading" in str(error):
            raise InputError(
                f"the token's library cannot be loaded: {error}", key="PYKCS11LIB", remedy="Correct its path."
            ) from None
        said = str(error) or type(error).__name__
        raise InputError(
            f"{address.token} does not do it: {said}", remedy="Look at it with the maker's tool."
        ) from None
    except UnsupportedLibraryError as error:
        raise InputError(f"tokens cannot be used here: {error}", remedy="Run pip install 'pcm_p2p[token]'.") from None
    except ValueError as error:
        raise _of_value_error(address, str(error)) from None


def _of_value_error(address: TokenAddress, said: str) -> InputError:
    """``HSMSigner`` has one class for all that it does not find; its sentences tell them apart."""
    if "Multiple PKCS#11 tokens" in said:
        return InputError("several tokens fit", remedy="Name one by its label: hsm:2?label=LABEL.")
    if "No PKCS#11 token" in said:
        which = f"no token labelled {address.label!r}" if address.label else "no token"
        return InputError(
            f"there is {which}", remedy="Plug it in, or correct the label; 'pkcs11-tool -L' lists tokens."
        )
    if "key on the PKCS#11 token" in said or "keys on the PKCS#11 token" in said or "No keys found" in said:
        return InputError(
            f"{address.token} shows no ECDSA key {address.number}",
            remedy="Correct the number; where the token hides public keys, give the PIN.",
        )
    return InputError(f"{address.token}: {said}")


def _attempts_left(address: TokenAddress) -> str:
    """What the token says about further attempts, as the end of a sentence."""
    pkcs11 = _library()
    try:
        flags = HSMSigner._find_token(address.label).flags
    except (ValueError, pkcs11.exceptions.PKCS11Error):
        return ""
    if flags & pkcs11.TokenFlag.USER_PIN_LOCKED:
        return ", and is locked now"
    if flags & pkcs11.TokenFlag.USER_PIN_FINAL_TRY:
        return "; ONE attempt is left before it locks itself"
    if flags & pkcs11.TokenFlag.USER_PIN_COUNT_LOW:
        return "; few attempts are left before it locks itself"
    return ""
