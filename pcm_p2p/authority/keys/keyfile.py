"""Key files: an Ed25519 key of an authority, encrypted under a passphrase, readable by its owner only.

The file is JSON, so that a person sees whose key it is::

    {"header": {"schema": "pcm.key/1", "role": "targets", "owner": "ada", "public": "<64 hex>",
                "derivation": {"algorithm": "argon2id", "passes": 3, "memory_bytes": 268435456, "salt": "<32 hex>"}},
     "box": "<hex>"}

``box`` is a libsodium SecretBox (nonce in front) under Argon2id of the passphrase. SecretBox authenticates no additional data,
therefore its plaintext is the 32 byte seed *and the header once more*: who alters role, owner or public key in the clear text is
found out when the file is opened. The derivation's cost comes from the file and is bounded before any of it is spent.

Who opens a key file learns what is wrong with it and what to do: not there, a link, no file, of somebody else, readable by
others, no key file, cut off, a derivation that costs too much, a wrong passphrase, an altered header. Each has a sentence.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox
from nacl.utils import random as random_bytes
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]  # exported without __all__

from pcm_p2p.authority.keys.fingerprint import fingerprint_of, public_tuf_key, words_of_key
from pcm_p2p.authority.keys.public_key import OWNER_LENGTH_MAX, ROLE_PATTERN, Role, is_owner, is_role
from pcm_p2p.durable import fsync_folder
from pcm_p2p.errors import InputError, TrustError, UntrustedBytes
from pcm_p2p.private_file import refuse_shared

SCHEMA: Final = "pcm.key/1"
Preset = Literal["moderate", "interactive", "lab"]

PRESETS: Final[dict[str, tuple[int, int]]] = {
    "moderate": (3, 256 << 20),
    "interactive": (2, 64 << 20),
    "lab": (1, 8 << 20),
}
"""Passes and memory in bytes. The first two are libsodium's own (0.74 s and 0.16 s a try, measured); ``lab`` protects nothing
that matters and makes throw-away fleets quick."""

MEMORY_BYTES_MAX = 1 << 30
"""Choice: libsodium's "sensitive" preset; a file that asks for more is an attack on the machine that opens it."""
PASSES_MAX = 16
SIZE_BYTES_MAX = 8_192
SEED_SIZE_BYTES = 32

_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Hex64 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Derivation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the passphrase becomes a key. ``salt`` is 16 bytes in hex."""

    algorithm: Literal["argon2id"]
    passes: Annotated[int, msgspec.Meta(ge=1, le=PASSES_MAX)]
    memory_bytes: Annotated[int, msgspec.Meta(ge=8_192, le=MEMORY_BYTES_MAX)]
    salt: _Hex32


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What anybody may read. ``public`` is the raw Ed25519 public key in hex."""

    schema: Literal["pcm.key/1"]
    role: Annotated[str, msgspec.Meta(pattern=ROLE_PATTERN)]
    owner: Annotated[str, msgspec.Meta(min_length=1, max_length=OWNER_LENGTH_MAX)]
    public: _Hex64
    derivation: Derivation


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    header: Header
    box: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2})+\Z", max_length=SIZE_BYTES_MAX)]


_decoder = msgspec.json.Decoder(Document)


@dataclass(frozen=True)
class PublicKeyFile:
    """The side of a key file that needs no passphrase. ``public_key`` is raw Ed25519, 32 bytes.

    Nobody vouches for it before the file is opened with its passphrase: compare the fingerprint by another way.
    """

    path: Path
    role: Role
    owner: str
    public_key: bytes

    @property
    def key(self) -> SSlibKey:
        """The key as TUF metadata lists it, with the owner's name beside it."""
        return public_tuf_key(self.public_key, self.owner)

    @property
    def keyid(self) -> str:
        """The id under which TUF metadata lists the key: SHA-256, 64 hex digits."""
        return str(self.key.keyid)

    @property
    def fingerprint(self) -> str:
        """The first 128 bits of ``keyid`` in groups of four digits."""
        return fingerprint_of(self.keyid)

    @property
    def words(self) -> tuple[str, ...]:
        """The same bits as twelve words, for reading aloud."""
        return words_of_key(self.keyid)


@dataclass(frozen=True)
class KeyFile(PublicKeyFile):
    """An opened key file."""

    private_key: Ed25519PrivateKey

    def signer(self) -> CryptoSigner:
        return CryptoSigner(self.private_key, self.key)

    def __repr__(self) -> str:
        return f"KeyFile({self.path}, {self.role}, {self.owner!r}, {self.fingerprint})"


def create(path: Path, passphrase: str, role: Role, owner: str, *, preset: Preset = "moderate") -> KeyFile:
    """Make a new key and write it to ``path``, durably, mode 0600. Raises ``InputError``; an existing file is never replaced."""
    _refuse_empty(passphrase, path)
    if not is_owner(owner):
        raise InputError(
            f"the owner {owner[:80]!r} cannot be used",
            path=path,
            remedy=f"Name a person or machine in 1 to {OWNER_LENGTH_MAX} printable characters.",
        )
    if not is_role(role):
        raise InputError(
            f"there is no role {role[:80]!r}",
            path=path,
            remedy="It is root, targets, snapshot, timestamp, team-TEAM or site-SITE.",
        )
    private_key = Ed25519PrivateKey.generate()
    _write_new(path, _encrypted(path, private_key, passphrase, role, owner, preset))
    return KeyFile(path, role, owner, private_key.public_key().public_bytes_raw(), private_key)


def change_passphrase(path: Path, passphrase: str, new: str, *, preset: Preset = "moderate") -> KeyFile:
    """Encrypt the key in ``path`` under another passphrase. The old file goes when the new one was opened on the disk.

    Killed at any point, ``path`` opens with the old passphrase or with the new one. Raises as ``load``, and ``InputError`` if the
    new passphrase is empty. Copies of the old file still open with the old passphrase.
    """
    _refuse_empty(new, path)
    key = load(path, passphrase)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    _write_new(temporary, _encrypted(path, key.private_key, new, key.role, key.owner, preset))
    try:
        written = load(temporary, new)
        if (written.keyid, written.role, written.owner) != (key.keyid, key.role, key.owner):
            raise TrustError(f"{path}: was not changed: the new file did not read back as it was written")
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)
    return KeyFile(path, key.role, key.owner, key.public_key, key.private_key)


def _refuse_empty(passphrase: str, path: Path) -> None:
    if not passphrase:
        raise InputError("the passphrase is empty", path=path, remedy="Choose one.")


def _encrypted(
    path: Path, private_key: Ed25519PrivateKey, passphrase: str, role: Role, owner: str, preset: Preset
) -> bytes:
    passes, memory_bytes = PRESETS[preset]
    salt = random_bytes(argon2id.SALTBYTES)
    header = Header(
        schema=SCHEMA,
        role=role,
        owner=owner,
        public=private_key.public_key().public_bytes_raw().hex(),
        derivation=Derivation("argon2id", passes, memory_bytes, salt.hex()),
    )
    box = _box(passphrase, header, path).encrypt(private_key.private_bytes_raw() + _repeated(header))
    return msgspec.json.format(msgspec.json.encode(Document(header, bytes(box).hex())), indent=2) + b"\n"


def read_public(path: Path) -> PublicKeyFile:
    """The public side of ``path``. Raises ``InputError`` if it is absent, damaged, or readable by others."""
    try:
        header = _read(path).header
    except TrustError as error:
        raise InputError(error.message, remedy=error.remedy) from None
    return PublicKeyFile(path, header.role, header.owner, bytes.fromhex(header.public))


def load(path: Path, passphrase: str) -> KeyFile:
    """Open ``path``. Takes as long as its preset says and as much memory.

    Raises ``InputError`` when there is no such file, and ``TrustError`` when it is a link or others own or can read it, it is
    damaged, the passphrase is wrong, or the header was altered since the file was made.
    """
    document = _read(path)
    header = document.header
    try:
        plain = _box(passphrase, header, path).decrypt(bytes.fromhex(document.box))
    except (CryptoError, ValueError):
        raise TrustError(
            f"{path}: the passphrase is wrong, or the file was altered",
            remedy="Try again; if the passphrase is certain, restore the file from its backup.",
        ) from None
    seed, repeated = plain[:SEED_SIZE_BYTES], plain[SEED_SIZE_BYTES:]
    if repeated != _repeated(header):
        raise TrustError(
            f"{path}: its header was altered after the key was made",
            remedy="Do not use this copy; restore the file from its backup.",
        )
    private_key = Ed25519PrivateKey.from_private_bytes(seed)
    public_key = private_key.public_key().public_bytes_raw()
    if public_key.hex() != header.public:
        raise TrustError(
            f"{path}: its private key does not belong to its public key", remedy="Restore the file from its backup."
        )
    return KeyFile(path, header.role, header.owner, public_key, private_key)


def decode_key_file_untrusted(data: bytes) -> Document:
    """Check size and schema, derivation cost included. Raises ``UntrustedBytes``, whose remedy fits what is wrong."""
    if len(data) > SIZE_BYTES_MAX:
        raise UntrustedBytes(
            f"is not a key file: it has more than the {SIZE_BYTES_MAX} bytes that are read", remedy=NOT_A_KEY_FILE
        )
    try:
        loose = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if data.lstrip()[:1] == b"{" and "truncated" in str(error):
            raise UntrustedBytes("is a key file that was cut off", remedy=RESTORE) from None
        raise UntrustedBytes(f"is not a key file, or is damaged: {error}", remedy=NOT_A_KEY_FILE) from None
    if not isinstance(loose, dict) or not {"header", "box"} <= loose.keys():
        raise UntrustedBytes("is not a key file: it has no header and box", remedy=NOT_A_KEY_FILE)
    costly = _cost_beyond_bounds(loose["header"])
    if costly:
        raise UntrustedBytes(costly, remedy=f"No key of yours asks for so much: it was altered. {RESTORE}")
    try:
        document = _decoder.decode(data)
        public_tuf_key(bytes.fromhex(document.header.public), document.header.owner)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, UnsupportedAlgorithm) as error:
        raise UntrustedBytes(f"is a damaged key file: {error}", remedy=RESTORE) from None
    if not is_role(document.header.role):
        raise UntrustedBytes(f"is a damaged key file: there is no role {document.header.role!r}", remedy=RESTORE)
    return document


RESTORE: Final = "Restore the file from its backup."
NOT_A_KEY_FILE: Final = "Check the path; if it was a key file, restore it from its backup."


def _cost_beyond_bounds(header: Any) -> str:
    """What the derivation of an undecoded header asks for, if that is more than is spent; else nothing."""
    derivation = header.get("derivation") if isinstance(header, dict) else None
    if not isinstance(derivation, dict):
        return ""
    memory_bytes, passes = derivation.get("memory_bytes"), derivation.get("passes")
    if isinstance(memory_bytes, int | float) and memory_bytes > MEMORY_BYTES_MAX:
        return f"asks for more than the {MEMORY_BYTES_MAX >> 20} MiB of memory that are spent on opening a key"
    if isinstance(passes, int | float) and passes > PASSES_MAX:
        return f"asks for more than the {PASSES_MAX} passes that are spent on opening a key"
    return ""


def _read(path: Path) -> Document:
    """Read through one descriptor, so that the file whose permissions are judged is the file that is read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise InputError("there is no such file", path=path, remedy="Check the path.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise TrustError(
                f"{path}: is a symbolic link, which somebody else could point elsewhere",
                remedy="Pass the path of the key file itself.",
            ) from None
        raise InputError(
            f"cannot be read: {error.strerror}", path=path, remedy="Check the path, and who may read it."
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError("is not a file", path=path, remedy="Pass the path of a key file.")
        refuse_shared(status, path, "key file", "replace the key")
        data = os.read(descriptor, SIZE_BYTES_MAX + 1)
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=path, remedy="Check the path, and who may read it."
        ) from None
    finally:
        os.close(descriptor)
    try:
        return decode_key_file_untrusted(data)
    except UntrustedBytes as error:
        raise TrustError(f"{path}: {error.message}", remedy=error.remedy) from None


def _box(passphrase: str, header: Header, path: Path) -> SecretBox:
    """The passphrase is taken in Unicode's composed form: keyboards differ in how they send the same letter."""
    derivation = header.derivation
    try:
        key = argon2id.kdf(
            SecretBox.KEY_SIZE,
            unicodedata.normalize("NFC", passphrase).encode(),
            bytes.fromhex(derivation.salt),
            opslimit=derivation.passes,
            memlimit=derivation.memory_bytes,
        )
    except (RuntimeError, MemoryError, CryptoError):
        raise InputError(
            f"{derivation.memory_bytes >> 20} MiB of memory are needed to open this key, and there are not so many",
            path=path,
            remedy="Open it on a larger machine.",
        ) from None
    return SecretBox(key)


def _repeated(header: Header) -> bytes:
    return msgspec.json.encode(header, order="deterministic")


def _write_new(path: Path, data: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise InputError("exists already", path=path, remedy="Choose another path; keys are never replaced.") from None
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror}", path=path, remedy="Check the path, and who may write there."
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    fsync_folder(path.parent)
