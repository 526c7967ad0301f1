"""The life of a certificate: renewed in time, tried again, put to use at once; and what an ended one is worth."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import msgspec
import nacl.utils
import pytest
import trio
import trio.testing
from nacl.public import PrivateKey

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.compliance.record import RecordKey, SealKey, seal_record
from pcm_p2p.compliance.report import SCHEMA, Platform, ReportBody, Trust, pack
from pcm_p2p.daemon import doctor
from pcm_p2p.daemon import renewal as renewal_module
from pcm_p2p.daemon.collect import _open_dated_untrusted, _unseal
from pcm_p2p.daemon.renewal import Renewal
from pcm_p2p.enrolment.admittance import GRACE
from pcm_p2p.enrolment.errand import Brought, NotTheDesk
from pcm_p2p.enrolment.introduction import Reply
from pcm_p2p.enrolment.renewal_times import RETRY_MAX, RETRY_MIN, RETRY_URGENT_MAX
from pcm_p2p.errors import PcmError, TransferError, TrustError, UntrustedBytes
from pcm_p2p.trust.identity import DeviceIdentity, peer_identity_untrusted

FLEET = "1" * 32
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)

LOOK_S = 2 * 86_400.0
"""Years pass quicker when a device does not look at its clock each hour."""

Clock = trio.testing.MockClock


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None) -> None:
    pass


@pytest.fixture
def authority() -> FleetCA:
    return FleetCA.in_memory(FLEET, now=BEGAN)


class World:
    """A device whose clock is trio's, and a desk that answers as it is told: True, or the error."""

    def __init__(self, authority: FleetCA, folder: Path, monkeypatch: pytest.MonkeyPatch, *, days: int = 365) -> None:
        self.authority = authority
        self.identity = DeviceIdentity.create(folder, authority, now=BEGAN, days=days)
        self.answers: Callable[[int], PcmError | None] = lambda _: None
        self.asked: list[datetime] = []
        self.installed: list[datetime] = []
        self.ahead = timedelta()
        self.renewal = Renewal(
            self.identity,
            now=self.now,
            desks=lambda: ["desk:1"],
            authorities_pem=lambda: authority.pem,
            neighbours=lambda: [("10.0.0.2", 8741)],
            look_around=None,
            installed=self._installed,
            rng=Random(7),
        )
        monkeypatch.setattr(renewal_module, "renew", self._renew)
        monkeypatch.setattr(renewal_module, "LOOK_S", LOOK_S)

    def now(self) -> datetime:
        return BEGAN + timedelta(seconds=trio.current_time() - self._start) + self.ahead

    async def _installed(self, identity: DeviceIdentity) -> None:
        self.installed.append(identity.not_after)

    async def _renew(
        self, identity: DeviceIdentity, desks: list[str], pem: bytes, now: datetime, **ways: object
    ) -> tuple[DeviceIdentity, Brought]:
        self.asked.append(now)
        error = self.answers(len(self.asked))
        if error is not None:
            raise error
        DeviceIdentity.create(identity.folder, self.authority, now=now)
        return DeviceIdentity.load(identity.folder), Brought(Reply(""), "desk:1", "10.0.0.2:8741")

    async def lives(self, days: float) -> None:
        """So many days of its daemon."""
        with trio.move_on_after(days * 86_400):
            await self.renewal.run()

    _start = 0.0

    def begin(self) -> World:
        self._start = trio.current_time()
        return self


@pytest.fixture
def world(authority: FleetCA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(authority, tmp_path / "identity", monkeypatch)


async def test_five_years_pass_without_a_person(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await world.begin().lives(5 * 365)
    assert 6 <= len(world.asked) <= 8, "every 243 to 255 days"
    assert len(world.installed) == len(world.asked)
    for before, after in zip(world.asked, world.asked[1:], strict=False):
        assert 242 * DAY < after - before < 258 * DAY
    assert "renewed through 10.0.0.2:8741" in caplog.text
    assert world.renewal.facts()["problem"] == ""


async def test_a_desk_that_is_away_is_tried_again_less_and_less_often_until_it_is_urgent(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    world.answers = lambda count: TransferError("the desk at desk:1 cannot be reached")
    await world.begin().lives(360)
    pauses = [after - before for before, after in zip(world.asked, world.asked[1:], strict=False)]
    assert pauses[0] < 1.3 * RETRY_MIN
    assert max(pauses) < 1.3 * RETRY_MAX
    assert max(pauses[-50:]) < 1.3 * RETRY_URGENT_MAX, "the last tenth"
    assert sum("could not be renewed" in record.message for record in caplog.records) == 1, "said once"
    assert world.renewal.facts()["problem"] == "the desk at desk:1 cannot be reached"
    assert world.renewal.problems() == ["the certificate could not be renewed: the desk at desk:1 cannot be reached"]


async def test_after_failures_the_first_answer_is_put_to_use_and_the_problem_is_gone(
    world: World, autojump_clock: Clock
) -> None:
    world.answers = lambda count: TransferError("away") if count < 9 else None
    await world.begin().lives(300)
    assert len(world.asked) == 9
    assert len(world.installed) == 1
    assert (world.renewal.problem, world.renewal.problems()) == ("", [])
    assert world.renewal.facts()["days_left"] > 300


async def test_a_desk_that_says_no_is_not_asked_again_in_minutes(world: World, autojump_clock: Clock) -> None:
    world.answers = lambda count: TrustError("the desk at desk:1 says that this device was revoked")
    await world.begin().lives(270)
    assert 10 < len(world.asked) < 80


async def test_somebody_in_the_place_of_the_desk_does_not_put_the_next_attempt_off(
    world: World, autojump_clock: Clock
) -> None:
    world.answers = lambda count: NotTheDesk("who answers through 10.0.0.5:8741 is not the desk") if count < 4 else None
    await world.begin().lives(300)
    first, *_, last = world.asked
    assert len(world.installed) == 1
    assert last - first < timedelta(minutes=30), "as after any other failure"


async def test_a_laptop_that_slept_over_its_end_renews_as_soon_as_it_is_up(world: World, autojump_clock: Clock) -> None:
    world.begin().ahead = 400 * DAY
    assert "the certificate ended on 2027-01-01, neighbours refuse this device" in world.renewal.problems()[0]
    await world.lives(0.001)
    assert len(world.installed) == 1
    assert world.renewal.problems() == []


async def test_a_certificate_that_was_renewed_by_hand_is_taken_at_the_next_look(
    world: World, autojump_clock: Clock
) -> None:
    world.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.renewal.run)
        await trio.sleep(LOOK_S / 2)
        DeviceIdentity.create(world.identity.folder, world.authority, now=BEGAN + 30 * DAY)
        await trio.sleep(LOOK_S)
        assert world.installed == [BEGAN + 395 * DAY]
        (world.identity.folder / "device.crt").write_bytes(b"half of one")
        await trio.sleep(2 * LOOK_S)
        assert len(world.installed) == 1, "what is in memory goes on"
        nursery.cancel_scope.cancel()
    assert not world.asked


async def test_a_clock_that_is_set_is_noticed_at_the_next_look(world: World, autojump_clock: Clock) -> None:
    world.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.renewal.run)
        await trio.sleep(10 * LOOK_S + 10)
        assert not world.asked
        world.ahead = 300 * DAY
        await trio.sleep(LOOK_S + 10)
        assert len(world.installed) == 1
        nursery.cancel_scope.cancel()


# What an ended certificate is worth


def record_of(
    identity: DeviceIdentity, created: datetime, packed: bytes = b"packed", seal_key: PrivateKey | None = None
) -> bytes:
    return seal_record(
        packed,
        sign=identity.sign,
        certificate=identity.certificate_der,
        key=RecordKey(identity.device_id, 1, 1),
        previous=bytes(32),
        created_ms=int(created.timestamp() * 1_000),
        collectors=[SealKey(bytes((seal_key or PrivateKey.generate()).public_key))],
        random_bytes=nacl.utils.random,
    )


def test_a_collector_believes_no_report_that_is_dated_after_its_authors_certificate(
    authority: FleetCA, tmp_path: Path
) -> None:
    identity = DeviceIdentity.create(tmp_path / "identity", authority, now=BEGAN)
    late = record_of(identity, identity.not_after + timedelta(seconds=1))
    with pytest.raises(UntrustedBytes, match="dated after the end"):
        _open_dated_untrusted(late, peer_identity_untrusted)
    in_time = record_of(identity, identity.not_after - timedelta(seconds=1))
    assert _open_dated_untrusted(in_time, peer_identity_untrusted).device == identity.device_id


@pytest.mark.parametrize(("certified", "counted"), [("berlin", "berlin"), ("", "paris")])
def test_a_collector_counts_a_device_at_the_site_that_its_certificate_says(
    authority: FleetCA, tmp_path: Path, certified: str, counted: str
) -> None:
    identity, seal_key = DeviceIdentity.create(tmp_path / "identity", authority, now=BEGAN), PrivateKey.generate()
    der = authority.issue(identity.public_key, "device", now=BEGAN, site=certified)
    DeviceIdentity.install(identity.folder, der, authority.pem, identity.record)
    identity = DeviceIdentity.load(identity.folder)
    body = ReportBody(
        schema=SCHEMA,
        device=identity.device_id.hex(),
        site="paris",
        hostname="liar",
        created_ms=int(BEGAN.timestamp() * 1_000),
        agent_version="1",
        platform=Platform("debian", "12", "x86_64"),
        trust=Trust(1, 1, 1, 1, "fresh"),
    )
    record = _open_dated_untrusted(record_of(identity, BEGAN, pack(body), seal_key), peer_identity_untrusted)
    assert _unseal(record, seal_key) == msgspec.structs.replace(body, site=counted)


def test_doctor_says_that_neighbours_go_by_the_site_of_the_certificate(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = FleetCA.in_memory(FLEET, now=now)
    identity = DeviceIdentity.create(tmp_path / "identity", authority, now=now)
    der = authority.issue(identity.public_key, "device", now=now, site="berlin")
    DeviceIdentity.install(identity.folder, der, authority.pem, identity.record)
    for site, state in (("berlin", "ok"), ("paris", "warn")):
        (tmp_path / "config.toml").write_text(f'[device]\nsite = "{site}"\n')
        (item,) = doctor._identity(tmp_path)
        assert item.state == state
    assert "certified for site berlin" in item.what
    assert "enrolled anew" in item.next_step


@pytest.mark.parametrize(
    ("days_ago", "state", "what", "next_step"),
    [
        (0, "ok", "valid for 36", ""),
        (340, "warn", "valid for 2", "should have been renewed"),
        (370, "bad", "ended on", "renews by itself"),
        (365 + GRACE.days + 2, "bad", "too long ago", "enroll join"),
    ],
)
def test_doctor_says_how_long_a_certificate_lasts_and_what_to_do(
    tmp_path: Path, days_ago: int, state: str, what: str, next_step: str
) -> None:
    now = datetime.now(UTC)
    authority = FleetCA.in_memory(FLEET, now=now - 600 * DAY)
    DeviceIdentity.create(tmp_path / "identity", authority, now=now - days_ago * DAY)
    (item,) = doctor._identity(tmp_path)
    assert item.state == state
    assert what in item.what
    assert next_step in item.next_step
