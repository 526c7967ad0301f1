"""Renewing: who gets new dates, who does not, and that nothing but the dates changes."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from repository_simulator import killed_before

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.enrolment.admittance import GRACE
from pcm_p2p.enrolment.admittance import renew as decide
from pcm_p2p.enrolment.desk import Desk, _desk_context
from pcm_p2p.enrolment.introduction import Renewal, decode_request_untrusted, joining, renewing
from pcm_p2p.enrolment.invitation import create_token
from pcm_p2p.enrolment.new_identity import NEXT, take_place
from pcm_p2p.enrolment.renew import _install, renew
from pcm_p2p.enrolment.renewal_times import RETRY_MAX, RETRY_MIN, RETRY_URGENT_MAX, due, retry
from pcm_p2p.errors import StorageError, TransferError, TrustError, UntrustedBytes
from pcm_p2p.lock_file import held
from pcm_p2p.trust.deny import DenyList
from pcm_p2p.trust.identity import (
    DeviceIdentity,
    FleetRecord,
    peer_identity_untrusted,
)
from pcm_p2p.trust.index import AUTHORITIES, DENY

WORDS = "words"
NOWHERE = "127.0.0.1:9"


def clock() -> datetime:
    """TLS reads the machine's clock, therefore so do these tests."""
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("renewal") / "fleet"
    folder = FleetFolder.init(path, name="acme", passphrase=WORDS, preset="lab", wall_clock=clock)
    publish_in(folder)
    return path


def publish_in(folder: FleetFolder) -> None:
    folder.sign(folder.path / "keys" / "targets-admin.key", WORDS)
    publish(folder, folder.path.parent / "origin", OnlineKeys.open(folder, WORDS))


@pytest.fixture
def fleet(made_once: Path, tmp_path: Path) -> FleetFolder:
    shutil.copytree(made_once.parent, tmp_path / "home")
    return FleetFolder.open(tmp_path / "home" / "fleet", wall_clock=clock)


@pytest.fixture
def authority(fleet: FleetFolder) -> FleetCA:
    return FleetCA.load(fleet.path / "ca", WORDS)


@pytest.fixture
def desk(fleet: FleetFolder) -> DeskAtHand:
    return DeskAtHand(fleet)


class DeskAtHand:
    """A desk without its network, opened for each question."""

    def __init__(self, fleet: FleetFolder) -> None:
        self.fleet = fleet

    def renews(self, identity: DeviceIdentity, *, signer: DeviceIdentity | None = None) -> str:
        return self.asks(renewing(self.fleet.fleet_id, identity.certificate_der, (signer or identity).sign))

    def asks(self, data: bytes) -> str:
        desk = Desk.open(self.fleet, WORDS)
        try:
            reply = desk.answer(data)
        finally:
            desk.close()
        assert bool(reply.certificate_der) == (reply.reason == "")
        assert reply.root == b""
        return reply.reason


def member(
    authority: FleetCA, folder: Path, *, days_ago: float = 250, role: str = "device", days: int = 365
) -> DeviceIdentity:
    """Enrolled so many days ago, for so many days."""
    return DeviceIdentity.create(folder, authority, role, now=clock() - timedelta(days=days_ago), days=days)


@asynccontextmanager
async def desk_at_work(fleet: FleetFolder) -> AsyncIterator[str]:
    desk = Desk.open(fleet, WORDS)
    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                listeners: list[trio.SocketListener] = await nursery.start(desk.serve, "127.0.0.1", 0)
                yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
                nursery.cancel_scope.cancel()
    finally:
        desk.close()


@pytest.mark.parametrize("role", ["device", "collector", "relay"])
async def test_a_member_gets_the_same_certificate_with_new_dates(
    fleet: FleetFolder, authority: FleetCA, tmp_path: Path, role: str
) -> None:
    old = member(authority, tmp_path / "identity", role=role)
    der = authority.issue(old.public_key, role, now=clock() - timedelta(days=250), site="oslo")
    DeviceIdentity.install(old.folder, der, authority.pem, FleetRecord(old.fleet, site="oslo"), b"{}")
    old = DeviceIdentity.load(old.folder)
    before = {path.name: path.read_bytes() for path in old.folder.iterdir()}
    async with desk_at_work(fleet) as address:
        new, brought = await renew(old, [NOWHERE, address], authority.pem, clock())
    assert (brought.address, brought.through) == (address, "")
    assert (new.device_id, new.role, new.fleet, new.public_key) == (old.device_id, role, old.fleet, old.public_key)
    assert peer_identity_untrusted(new.certificate_der).site == "oslo"
    assert new.not_after > clock() + timedelta(days=364)
    assert new.record == old.record
    after = {path.name: path.read_bytes() for path in old.folder.iterdir() if path.name != ".lock"}
    assert {name for name in after if after[name] != before.get(name)} == {"device.crt"}
    assert stat.S_IMODE((old.folder / "device.key").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("days_ago", "answer"),
    [(0, ""), (364, ""), (366, ""), (365 + GRACE.days - 1, ""), (365 + GRACE.days + 1, "overdue"), (3_000, "overdue")],
)
def test_an_ended_certificate_is_renewed_for_a_grace_time_and_only_at_the_desk(
    authority: FleetCA, desk: DeskAtHand, tmp_path: Path, days_ago: float, answer: str
) -> None:
    assert desk.renews(member(authority, tmp_path / "identity", days_ago=days_ago)) == answer


@pytest.mark.parametrize("days_ago", [10, 370])
def test_a_revoked_device_gets_no_renewal_in_time_or_late(
    fleet: FleetFolder, authority: FleetCA, desk: DeskAtHand, tmp_path: Path, days_ago: float
) -> None:
    revoked, other = (member(authority, tmp_path / name, days_ago=days_ago) for name in ("revoked", "other"))
    assert desk.renews(revoked) == ""
    denied = DenyList.empty(fleet.fleet_id).with_devices([revoked.device_id], "stolen", clock())
    fleet.stage_file(DENY, denied.encoded())
    assert desk.renews(revoked) == "", "what is only proposed is nobody's word yet"
    publish_in(fleet)
    assert desk.renews(revoked) == "revoked"
    assert desk.renews(other) == ""


def test_a_desk_that_is_open_hears_of_a_revocation_at_once(
    fleet: FleetFolder, authority: FleetCA, tmp_path: Path
) -> None:
    revoked = member(authority, tmp_path / "identity")
    data = renewing(fleet.fleet_id, revoked.certificate_der, revoked.sign)
    desk = Desk.open(fleet, WORDS)
    assert desk.answer(data).reason == ""
    denied = DenyList.empty(fleet.fleet_id).with_devices([revoked.device_id], "stolen", clock())
    fleet.stage_file(DENY, denied.encoded())
    publish_in(fleet)
    assert desk.answer(data).reason == "revoked"
    desk.close()


def test_a_revoked_device_cannot_join_again_but_with_a_fresh_key(
    fleet: FleetFolder, authority: FleetCA, desk: DeskAtHand, tmp_path: Path
) -> None:
    revoked, fresh = member(authority, tmp_path / "revoked"), member(authority, tmp_path / "fresh")
    denied = DenyList.empty(fleet.fleet_id).with_devices([revoked.device_id], "stolen", clock())
    fleet.stage_file(DENY, denied.encoded())
    publish_in(fleet)
    token = create_token(fleet, desk=NOWHERE)
    assert desk_answer(fleet, joining(token, revoked.public_key, revoked.sign)) == "revoked"
    assert desk_answer(fleet, joining(token, fresh.public_key, fresh.sign)) == ""


def desk_answer(fleet: FleetFolder, data: bytes) -> str:
    desk = Desk.open(fleet, WORDS)
    try:
        return desk.answer(data).reason
    finally:
        desk.close()


def test_a_deny_list_that_cannot_be_read_certifies_nobody(
    fleet: FleetFolder, authority: FleetCA, desk: DeskAtHand, tmp_path: Path
) -> None:
    fleet.stage_file(DENY, DenyList.empty(fleet.fleet_id).encoded())
    publish_in(fleet)
    (file,) = (fleet.path / "repository" / "targets" / "identity").glob("*.deny.json")
    file.write_bytes(b"{}")
    assert desk.renews(member(authority, tmp_path / "identity")) == "failed"


def test_a_deny_list_that_was_exchanged_or_is_out_of_reach_is_not_taken_for_an_empty_one(
    fleet: FleetFolder, authority: FleetCA, desk: DeskAtHand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stolen = member(authority, tmp_path / "identity")
    empty = DenyList.empty(fleet.fleet_id)
    fleet.stage_file(DENY, empty.with_devices([stolen.device_id], "stolen", clock()).encoded())
    publish_in(fleet)
    (file,) = (fleet.path / "repository" / "targets" / "identity").glob("*.deny.json")
    genuine = file.read_bytes()
    file.write_bytes(empty.encoded())
    assert desk.renews(stolen) == "failed"
    file.write_bytes(genuine)
    genuine_stat = Path.stat

    def out_of_reach(path: Path, **options: bool) -> os.stat_result:
        if path.name == "timestamp.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return genuine_stat(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", out_of_reach)
        assert desk.renews(stolen) == "failed"
    assert desk.renews(stolen) == "revoked"


def test_an_authority_that_was_followed_by_another_still_vouches_until_it_is_revoked(
    fleet: FleetFolder, desk: DeskAtHand, tmp_path: Path
) -> None:
    before = FleetCA.in_memory(fleet.fleet_id, now=clock())
    old = member(before, tmp_path / "identity")
    assert desk.renews(old) == "stranger", "an authority that nobody published"
    fleet.stage_file(AUTHORITIES, (fleet.path / "ca" / "ca.pem").read_bytes() + before.pem)
    publish_in(fleet)
    assert desk.renews(old) == ""
    denied = DenyList.empty(fleet.fleet_id).with_authorities([before.der], "retired", clock())
    fleet.stage_file(DENY, denied.encoded())
    publish_in(fleet)
    assert desk.renews(old) == "stranger"


def test_who_is_no_member_gets_nothing(
    fleet: FleetFolder, authority: FleetCA, desk: DeskAtHand, tmp_path: Path
) -> None:
    mine, other = member(authority, tmp_path / "mine"), member(authority, tmp_path / "other")
    assert desk.renews(mine, signer=other) == "wrong", "who does not hold the key"
    foreign = member(FleetCA.in_memory(fleet.fleet_id, now=clock()), tmp_path / "foreign")
    assert desk.renews(foreign) == "stranger", "an authority of the same name"
    elsewhere = member(FleetCA.in_memory("cd" * 16, now=clock()), tmp_path / "elsewhere")
    assert desk.renews(elsewhere) == "stranger", "another fleet"
    spare = member(authority, tmp_path / "spare", role="desk")
    assert desk.renews(spare) == "stranger", "a desk renews itself when it opens"
    asked = renewing("cd" * 16, mine.certificate_der, mine.sign)
    assert desk.asks(asked) == "wrong", "a proof for another fleet"


@pytest.mark.parametrize("position", range(0, 700, 23))
def test_a_certificate_that_was_changed_on_the_way_is_nobodys(
    authority: FleetCA, desk: DeskAtHand, tmp_path: Path, position: int
) -> None:
    identity = member(authority, tmp_path / "identity")
    der = bytearray(identity.certificate_der)
    der[position % len(der)] ^= 1
    answer = desk.asks(renewing(identity.fleet, bytes(der), identity.sign))
    assert answer == "stranger"


def test_a_request_that_was_overheard_is_worth_nothing_without_the_key(
    fleet: FleetFolder, authority: FleetCA, tmp_path: Path
) -> None:
    """It brings a certificate for the key that it was made with, which is no secret."""
    identity = member(authority, tmp_path / "identity")
    desk = Desk.open(fleet, WORDS)
    data = renewing(fleet.fleet_id, identity.certificate_der, identity.sign)
    first, again = desk.answer(data), desk.answer(data)
    desk.close()
    for reply in (first, again):
        assert peer_identity_untrusted(reply.certificate_der).public_key == identity.public_key


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    for noise in (data, b"\x93\xa5renew" + data):
        try:
            request = decode_request_untrusted(noise)
        except UntrustedBytes:
            continue
        assert not isinstance(request, Renewal) or len(request.proof) == 64


REPLIES: list[tuple[str, Callable[[FleetCA, DeviceIdentity], bytes], str]] = [
    ("another key", lambda ca, me: ca.issue(bytes(range(32)), "device", now=clock()), "another key or role"),
    ("another role", lambda ca, me: ca.issue(me.public_key, "collector", now=clock()), "another key or role"),
    ("an end before the present one", lambda ca, me: ca.issue(me.public_key, "device", now=clock(), days=3), "before"),
    ("not begun", lambda ca, me: ca.issue(me.public_key, "device", now=clock() + timedelta(days=9)), "no usable"),
    (
        "another authority",
        lambda ca, me: FleetCA.in_memory(ca.fleet, now=clock()).issue(me.public_key, "device", now=clock()),
        "no usable",
    ),
    ("noise", lambda ca, me: b"noise", "no usable"),
]


@pytest.mark.parametrize(("made", "reason"), [row[1:] for row in REPLIES], ids=[row[0] for row in REPLIES])
async def test_what_a_desk_gives_is_checked_before_it_is_installed(
    fleet: FleetFolder,
    authority: FleetCA,
    tmp_path: Path,
    made: Callable[[FleetCA, DeviceIdentity], bytes],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    identity = member(authority, tmp_path / "identity", days_ago=100)
    given_der, before = made(authority, identity), (identity.folder / "device.crt").read_bytes()
    async with desk_at_work(fleet) as address:
        monkeypatch.setattr(FleetCA, "issue", lambda *_, **__: given_der)
        with pytest.raises(TrustError, match=reason) as refused:
            await renew(identity, [address], authority.pem, clock())
    assert refused.value.remedy
    assert (identity.folder / "device.crt").read_bytes() == before


async def test_another_member_and_a_foreign_authority_cannot_play_the_desk(
    fleet: FleetFolder, authority: FleetCA, tmp_path: Path
) -> None:
    identity = member(authority, tmp_path / "identity")
    foreign = FleetCA.in_memory(fleet.fleet_id, now=clock())
    for player, reason in (
        (member(authority, tmp_path / "player", days_ago=1), "but a device of fleet"),
        (member(foreign, tmp_path / "foreign", days_ago=1, role="desk"), "not the desk of this fleet"),
    ):
        context = _desk_context(player.folder)

        async def play(tcp: trio.SocketStream, context: object = context) -> None:
            tls = trio.SSLStream(tcp, context, server_side=True, https_compatible=True)  # type: ignore[arg-type]
            try:
                await tls.do_handshake()
                await tls.receive_some()
            except trio.BrokenResourceError:
                pass
            await trio.aclose_forcefully(tls)

        async with trio.open_nursery() as nursery:
            listeners: list[trio.SocketListener] = await nursery.start(trio.serve_tcp, play, 0)
            address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            with pytest.raises(TrustError, match=reason):
                await renew(identity, [address], authority.pem, clock())
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("days_ago", "reason"), [(365 + GRACE.days + 5, "enroll join"), (-400, "")], ids=["overdue", "not begun"]
)
async def test_a_refusal_names_its_remedy(
    fleet: FleetFolder, authority: FleetCA, tmp_path: Path, days_ago: float, reason: str
) -> None:
    identity = member(authority, tmp_path / "identity", days_ago=days_ago)
    async with desk_at_work(fleet) as address:
        if reason:
            with pytest.raises(TrustError) as refused:
                await renew(identity, [address], authority.pem, clock())
            assert reason in refused.value.remedy
        else:
            with pytest.raises(TrustError, match="before the present one"):
                await renew(identity, [address], authority.pem, clock())


async def test_a_desk_that_is_not_there_is_a_matter_of_transfer(authority: FleetCA, tmp_path: Path) -> None:
    identity = member(authority, tmp_path / "identity")
    with pytest.raises(TransferError, match=NOWHERE):
        await renew(identity, [NOWHERE], authority.pem, clock())
    with pytest.raises(TransferError, match=r"\[\[desk\]\]|no address of a desk") as refused:
        await renew(identity, [], authority.pem, clock())
    assert "[[desk]]" in refused.value.remedy
    with pytest.raises(TransferError, match=r"no neighbour knows more: 127\.0\.0\.1:9 cannot be used"):
        await renew(identity, [], authority.pem, clock(), neighbours=[("127.0.0.1", 9)])


def test_a_kill_while_the_certificate_is_written_leaves_the_old_one_or_the_new_one(
    authority: FleetCA, tmp_path: Path
) -> None:
    old = member(authority, tmp_path / "identity")
    new = authority.issue(old.public_key, "device", now=clock())
    step, seen = 0, set()
    while killed_before(step, lambda: _install(old, new, authority.pem)):
        step += 1
        seen.add(DeviceIdentity.load(old.folder).certificate_der)
    assert step >= 3
    assert seen <= {old.certificate_der, new}
    assert DeviceIdentity.load(old.folder).certificate_der == new


def test_a_join_that_is_at_work_is_not_disturbed(authority: FleetCA, tmp_path: Path) -> None:
    identity = member(authority, tmp_path / "identity")
    with held(identity.folder / ".lock", StorageError("x")), pytest.raises(StorageError, match="a join is at work"):
        _install(identity, identity.certificate_der, authority.pem)


# When


YEAR = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))


@given(st.integers(0, 1 << 32), st.integers(1, 4_000))
def test_a_certificate_is_renewed_at_two_thirds_of_its_life_and_not_all_at_once(seed: int, days: int) -> None:
    begin = YEAR[0]
    moment = due(begin, begin + timedelta(days=days), Random(seed))
    assert begin + timedelta(days=days) * 2 / 3 <= moment <= begin + timedelta(days=days) * 0.7


def test_an_office_that_was_enrolled_in_one_hour_does_not_renew_in_one() -> None:
    moments = sorted(due(*YEAR, Random(seed)) for seed in range(100))
    assert moments[-1] - moments[0] > timedelta(days=8)


def test_failures_wait_longer_and_less_long_when_it_is_urgent() -> None:
    early, late = YEAR[0] + timedelta(days=250), YEAR[1] + timedelta(days=3)
    waits = [retry(failures, *YEAR, early, Random(1)) for failures in range(1, 40)]
    assert RETRY_MIN * 0.75 <= waits[0] <= RETRY_MIN * 1.25
    assert all(RETRY_MAX * 0.75 <= wait <= RETRY_MAX * 1.25 for wait in waits[12:])
    assert max(retry(failures, *YEAR, late, Random(1)) for failures in range(1, 40)) <= RETRY_URGENT_MAX * 1.25


@pytest.mark.parametrize("role", ["desk", "king", ""])
def test_only_roles_that_are_enrolled_are_renewed(role: str) -> None:
    assert decide(role, YEAR[1], denied=False, now=YEAR[0]) == "stranger"


def test_grace_ends_to_the_second() -> None:
    end = YEAR[1] + GRACE
    assert decide("device", YEAR[1], denied=False, now=end) == ""
    assert decide("device", YEAR[1], denied=False, now=end + timedelta(seconds=1)) == "overdue"
    assert decide("device", YEAR[1], denied=True, now=end + timedelta(days=99)) == "revoked"


def test_two_identities_that_retire_within_one_second_are_both_kept(authority: FleetCA, tmp_path: Path) -> None:
    now, devices = clock(), []
    member(authority, tmp_path / "identity")
    for _ in range(2):
        devices.append(member(authority, tmp_path / NEXT).device_id)
        retired = take_place(tmp_path, now)
        assert retired is not None
    assert DeviceIdentity.load(tmp_path / "identity").device_id == devices[1]
    assert DeviceIdentity.load(retired).device_id == devices[0]
    assert len(list(tmp_path.glob("identity.retired-*"))) == 2
