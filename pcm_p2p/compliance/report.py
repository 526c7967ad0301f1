"""Report: what a device says about itself, as one JSON document. Pure data.

A report is a whole picture (every policy, release and finding), so a later one replaces an earlier one in every view and the
earlier ones are history. It travels compressed, sealed and signed inside a record (``record``).

Encoding: JSON with the field names below; unknown fields are ignored on reading, so that an older collector can read a newer
device; the reader checks types, lengths and the schema's name. A report that would not fit into a record is shortened, never
dropped: ``shortened`` says how far (1: texts of passing checks gone; 2: texts clipped to 64 characters; 3: no texts).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import zstandard

from pcm_p2p.compliance.finding import Finding, Milliseconds, Name, Text, clip
from pcm_p2p.errors import PcmError, UntrustedBytes
from pcm_p2p.ids import DeviceId

SCHEMA: Literal["pcm.report/1"] = "pcm.report/1"
BODY_SIZE_BYTES_MAX = 4 << 20
"""Choice: 4,096 findings with two full texts each; bounds the memory of a reader, not the size on the wire."""
PACKED_SIZE_BYTES_MAX = 240 << 10
"""Record cap (256 KiB) less room for header, certificate, wrapped keys and signature."""
LEVEL = 9
"""Choice: packing runs once per report; between levels only the texts of findings would differ."""

FORKS_MAX = 32
PROBLEMS_MAX = 32
CLONES_MAX = 64
"""Choice: more than an office sees at once; the report stays small."""

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
_Sha256Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_DeviceHex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
ReleaseState = Literal[
    "wanted", "fetching", "staged", "waiting", "applying", "applied", "rolled_back", "parked", "failed"
]
TrustState = Literal["none", "fresh", "stale", "frozen"]
Mode = Literal["observe", "notify", "enforce"]


class Platform(msgspec.Struct, frozen=True):
    """``os`` and ``version`` as in os-release (debian, 12), ``arch`` as the kernel says it (x86_64)."""

    os: Name = ""
    version: Name = ""
    arch: Name = ""


class Trust(msgspec.Struct, frozen=True):
    """Versions of the metadata that the device trusts; ``state`` none: it has never seen any."""

    root: Count = 0
    timestamp: Count = 0
    snapshot: Count = 0
    targets: Count = 0
    state: TrustState = "none"
    reason: Text = ""


class PolicyInForce(msgspec.Struct, frozen=True):
    id: Name
    version: Count
    mode: Mode


class ReleaseStatus(msgspec.Struct, frozen=True):
    """``since_ms``: when the release entered ``state``; ``detail``: what it waits for, or why it failed.

    ``size_bytes``: the artifacts as delivered, what a plain download costs. ``needed_bytes``: what a site pays once by its
    fetch plan (deltas where it has their base, else full segments). ``wan_in_bytes`` and ``lan_in_bytes``: payload that this
    device received for the release.
    """

    name: Name
    version: Name
    state: ReleaseState
    since_ms: Milliseconds = 0
    detail: Text = ""
    size_bytes: Count = 0
    needed_bytes: Count = 0
    wan_in_bytes: Count = 0
    lan_in_bytes: Count = 0


class Transfer(msgspec.Struct, frozen=True):
    """Payload bytes since the device was enrolled, retries included."""

    wan_in_bytes: Count = 0
    lan_in_bytes: Count = 0
    lan_out_bytes: Count = 0


class ForkSeen(msgspec.Struct, frozen=True):
    """Proof, kept on the device, that ``role`` signed one version twice. ``digests``: SHA-256 of the signed parts, in
    hexadecimal."""

    role: Name
    version: Count
    digests: Annotated[tuple[_Sha256Hex, ...], msgspec.Meta(min_length=2, max_length=32)]
    seen_ms: Milliseconds


class ReportBody(msgspec.Struct, frozen=True):
    """``device`` is the hexadecimal id and must be that of the record's signer. ``created_ms`` is the device's clock. ``clones``
    are ids that the device knows to be used twice; its own if its neighbours say so. ``problems``: what of the signed documents
    it could not use or set aside, a sentence each."""

    schema: Literal["pcm.report/1"]
    device: _DeviceHex
    site: Name
    hostname: Name
    created_ms: Milliseconds
    agent_version: Name
    platform: Platform = msgspec.field(default_factory=Platform)
    trust: Trust = msgspec.field(default_factory=Trust)
    policies: Annotated[tuple[PolicyInForce, ...], msgspec.Meta(max_length=1_024)] = ()
    releases: Annotated[tuple[ReleaseStatus, ...], msgspec.Meta(max_length=1_024)] = ()
    findings: Annotated[tuple[Finding, ...], msgspec.Meta(max_length=16_384)] = ()
    transfer: Transfer = msgspec.field(default_factory=Transfer)
    shortened: Annotated[int, msgspec.Meta(ge=0, le=3)] = 0
    clones: Annotated[tuple[_DeviceHex, ...], msgspec.Meta(max_length=CLONES_MAX)] = ()
    forks: Annotated[tuple[ForkSeen, ...], msgspec.Meta(max_length=FORKS_MAX)] = ()
    problems: Annotated[tuple[Text, ...], msgspec.Meta(max_length=PROBLEMS_MAX)] = ()

    @property
    def device_id(self) -> DeviceId:
        return DeviceId.parse(self.device)


class ReportTooLarge(PcmError):
    """Even without texts the report does not fit into a record. Nobody can be told of such a device's state."""

    remedy = "Split the fleet's policies so that one device has fewer checks and releases."


_decoder = msgspec.json.Decoder(ReportBody)


def pack(report: ReportBody) -> bytes:
    """The compressed JSON, at most ``PACKED_SIZE_BYTES_MAX``, shortened as little as that takes. Raises ``ReportTooLarge``.

    The report is decoded again before it is packed: what a reader would refuse must fail here, at its author.
    """
    for degree in range(report.shortened, 4):
        body = msgspec.json.encode(_shortened(report, degree))
        if len(body) > BODY_SIZE_BYTES_MAX:
            continue
        packed = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(body)
        if len(packed) <= PACKED_SIZE_BYTES_MAX:
            try:
                _decoder.decode(body)
            except msgspec.DecodeError as error:
                raise ReportTooLarge(f"the report breaks its own schema: {error}") from None
            return packed
    raise ReportTooLarge(f"a report of {len(report.findings)} findings does not fit into a record")


def unpack_untrusted(packed: bytes) -> ReportBody:
    """Read what ``pack`` wrote. Raises ``UntrustedBytes``; never allocates more than ``BODY_SIZE_BYTES_MAX`` for it."""
    if len(packed) > PACKED_SIZE_BYTES_MAX:
        raise UntrustedBytes(f"report: {len(packed)} bytes packed; at most {PACKED_SIZE_BYTES_MAX} are read")
    try:
        size_bytes = zstandard.frame_content_size(packed)
        if not 0 < size_bytes <= BODY_SIZE_BYTES_MAX:
            raise UntrustedBytes(f"report: says to have {size_bytes} bytes; 1 … {BODY_SIZE_BYTES_MAX} are read")
        body = zstandard.ZstdDecompressor(max_window_size=8 << 20).decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise UntrustedBytes(f"report: is not a zstd frame: {error}") from None
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"report: {error}") from None


def _shortened(report: ReportBody, degree: int) -> ReportBody:
    """``report`` with shorter texts; the table of degrees is in the module's docstring."""
    if degree == report.shortened:
        return report

    def chars_max(state: str) -> int:
        return {1: 0 if state == "pass" else 512, 2: 64, 3: 0}[degree]

    def cut(text: str, state: str) -> str:
        return clip(text, chars_max(state)) if chars_max(state) else ""

    findings = tuple(
        msgspec.structs.replace(
            finding,
            title=cut(finding.title, finding.state),
            expected=cut(finding.expected, finding.state),
            actual=cut(finding.actual, finding.state),
            message=cut(finding.message, finding.state),
        )
        for finding in report.findings
    )
    releases = tuple(
        msgspec.structs.replace(release, detail=cut(release.detail, release.state)) for release in report.releases
    )
    problems = tuple(filter(None, (cut(problem, "") for problem in report.problems)))
    return msgspec.structs.replace(report, findings=findings, releases=releases, problems=problems, shortened=degree)
