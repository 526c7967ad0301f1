"""Approval: devices of an image wait until a person has decided, the queue is bounded and on disk, tokens are revoked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import cast

import msgspec
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from repository_simulator import full_disk_from, killed_before

from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.enrolment import admittance, waiting_list
from pcm_p2p.enrolment import desk as desk_module
from pcm_p2p.enrolment.admittance import QUEUE_MAX, QUEUE_SLACK, Decision, Queue, admit
from pcm_p2p.enrolment.desk import Desk
from pcm_p2p.enrolment.device_code import device_code
from pcm_p2p.enrolment.errand import Brought
from pcm_p2p.enrolment.introduction import Reply, joining
from pcm_p2p.enrolment.invitation import create_token
from pcm_p2p.enrolment.join import WAIT_S_MAX, WAIT_S_MIN, Joined, QueueFull, WaitingForApproval, join, join_and_wait
from pcm_p2p.enrolment.token import Token, TokenRecord
from pcm_p2p.enrolment.token_folder import TokenFolder
from pcm_p2p.enrolment.waiting_list import HEARD_STEP_MS, UNHEARD_MS, Waiting, WaitingList, list_code, shown_by
from pcm_p2p.errors import InputError, PcmError, TransferError, TrustError
from pcm_p2p.ids import DeviceId
from pcm_p2p.trust.identity import separated

WORDS = "words"
NOWHERE = "127.0.0.1:9"


def clock() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("approval") / "fleet"
    FleetFolder.init(path, name="acme", passphrase=WORDS, preset="lab", wall_clock=clock)
    return path


@pytest.fixture
def fleet(made_once: Path, tmp_path: Path) -> FleetFolder:
    shutil.copytree(made_once, tmp_path / "fleet")
    return FleetFolder.open(tmp_path / "fleet", wall_clock=clock)


class Counter:
    """A desk without its network: ``asks`` is one errand of the device that holds ``key``."""

    def __init__(self, fleet: FleetFolder) -> None:
        self.fleet = fleet
        self.desk = Desk.open(fleet, WORDS)

    def asks(self, token: Token, key: Ed25519PrivateKey, source: str = "10.0.0.1") -> str:
        reply = self.desk.answer(request(token, key), source)
        assert bool(reply.certificate_der) == (reply.reason == "")
        return reply.reason

    def reopened(self) -> Counter:
        self.desk.close()
        self.desk = Desk.open(self.fleet, WORDS)
        return self


@pytest.fixture
def counter(fleet: FleetFolder) -> Iterator[Counter]:
    counter = Counter(fleet)
    yield counter
    counter.desk.close()


def request(token: Token, key: Ed25519PrivateKey) -> bytes:
    return joining(token, key.public_key().public_bytes_raw(), lambda domain, data: key.sign(separated(domain, data)))


def image_token(fleet: FleetFolder, *, uses: int = 500, site: str = "oslo") -> Token:
    return create_token(fleet, desk=NOWHERE, uses=uses, site=site, approval=True, lifetime=timedelta(days=30))


def key_of(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


def device_of(key: Ed25519PrivateKey) -> DeviceId:
    return DeviceId.of_public_key(key.public_key().public_bytes_raw())


def waiting(fleet: FleetFolder) -> WaitingList:
    """As a person's command sees it."""
    opened = WaitingList(fleet.path / "enrolment")
    opened.load()
    return opened


def decide(fleet: FleetFolder, key: Ed25519PrivateKey, decision: Decision) -> None:
    opened = waiting(fleet)
    (entry,) = [entry for entry, _ in opened.entries() if entry.device_id == device_of(key)]
    opened.decide(entry, decision, 1)


def spent(fleet: FleetFolder, token: Token) -> int:
    record = TokenFolder(fleet.path / "enrolment" / "tokens").get(token.token_id)
    assert record is not None
    return len(record.spent)


def test_a_device_waits_until_a_person_lets_it_in(fleet: FleetFolder, counter: Counter) -> None:
    token = image_token(fleet)
    assert [counter.asks(token, key_of(1)) for _ in range(3)] == ["waiting"] * 3
    ((entry, decision),) = waiting(fleet).entries()
    assert (entry.device_id, entry.token, entry.source, decision) == (
        device_of(key_of(1)),
        token.token_id.hex(),
        "10.0.0.1",
        None,
    )
    assert spent(fleet, token) == 0, "waiting is no use of the token"
    decide(fleet, key_of(1), "approved")
    assert counter.asks(token, key_of(2)) == "waiting", "each for itself"
    assert counter.asks(token, key_of(1)) == ""
    assert spent(fleet, token) == 1
    assert [entry.device_id for entry, _ in waiting(fleet).entries()] == [device_of(key_of(2))]
    assert counter.asks(token, key_of(1)) == "", "the same use, again"
    assert spent(fleet, token) == 1


def test_a_device_that_was_denied_is_told_and_leaves_the_queue(fleet: FleetFolder, counter: Counter) -> None:
    token = image_token(fleet)
    counter.asks(token, key_of(1))
    decide(fleet, key_of(1), "denied")
    assert [counter.asks(token, key_of(1)) for _ in range(2)] == ["denied"] * 2
    assert waiting(fleet).entries() == ()
    assert counter.reopened().asks(token, key_of(1)) == "denied"
    assert counter.asks(image_token(fleet), key_of(1)) == "waiting", "a decision is for a device and a token"


def test_the_last_word_counts(fleet: FleetFolder, counter: Counter) -> None:
    token = image_token(fleet)
    counter.asks(token, key_of(1))
    decide(fleet, key_of(1), "denied")
    decide(fleet, key_of(1), "approved")
    assert counter.asks(token, key_of(1)) == ""


def test_approval_does_not_stretch_a_token(fleet: FleetFolder, counter: Counter) -> None:
    token = image_token(fleet, uses=1)
    for number in (1, 2):
        assert counter.asks(token, key_of(number)) == "waiting"
        decide(fleet, key_of(number), "approved")
    assert [counter.asks(token, key_of(number)) for number in (1, 2)] == ["", "used"]


@pytest.mark.parametrize("approval", [False, True])
def test_a_desk_on_a_full_disk_lets_nobody_in_for_nothing_and_costs_no_use(fleet: FleetFolder, approval: bool) -> None:
    token = create_token(fleet, desk=NOWHERE, uses=2, site="oslo", approval=approval, lifetime=timedelta(days=30))
    desk = Desk.open(fleet, WORDS)
    asked, let_in = request(token, key_of(1)), request(token, key_of(2))
    if approval:
        for one, number in ((asked, 1), (let_in, 2)):
            with full_disk_from(0):
                assert desk.answer(one).reason == "failed", "who is not in the queue is not told to wait"
            assert desk.answer(one).reason == "waiting"
            decide(fleet, key_of(number), "approved")
    step, failed = 0, ["once"]
    while failed:
        with full_disk_from(step) as failed:
            reply = desk.answer(asked)
        assert reply.reason == ("failed" if failed else "")
        assert bool(reply.certificate_der) is not bool(failed)
        step += 1
    assert step > 1
    assert spent(fleet, token) == 1, "one device, one use, however often it asked"
    assert desk.answer(let_in).reason == ""
    assert spent(fleet, token) == 2
    desk.close()


def test_the_queue_and_its_decisions_survive_a_desk_that_is_killed_at_any_write(
    fleet: FleetFolder, tmp_path: Path
) -> None:
    token = image_token(fleet)
    first = request(token, key_of(1))

    def ask() -> None:
        desk = Desk.open(fleet, WORDS)
        desk.answer(first, "10.0.0.1")
        desk.close()

    kills, step = 0, 0
    while killed_before(step, ask):
        kills, step = kills + 1, step + 1
    assert kills >= 2
    decide(fleet, key_of(1), "approved")
    step = 0
    while killed_before(step, ask):
        step += 1
    desk = Desk.open(fleet, WORDS)
    assert desk.answer(first).reason == ""
    desk.close()
    assert spent(fleet, token) == 1, "killed between the use, the certificate, the reply and the tidying up: one use"
    assert waiting(fleet).entries() == ()


def test_the_queue_is_bounded_for_each_token_and_in_all(
    fleet: FleetFolder, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admittance, "QUEUE_MAX", 30)
    monkeypatch.setattr(desk_module, "SWEEP_INTERVAL_MS", 0)
    few, many = image_token(fleet, uses=1), image_token(fleet)
    answers = [counter.asks(few, key_of(number)) for number in range(1, 31)]
    assert answers == ["waiting"] * (2 + QUEUE_SLACK) + ["full"] * 12, "twice the uses left, and a few"
    answers = [counter.asks(many, key_of(number)) for number in range(101, 121)]
    assert answers == ["waiting"] * 12 + ["full"] * 8
    assert counter.asks(many, key_of(101)) == "waiting", "who is in it stays in it"
    for number in range(1, 4):
        decide(fleet, key_of(number), "denied")
    assert counter.asks(many, key_of(120)) == "waiting", "those who were denied make room"


def test_who_has_given_up_makes_room(fleet: FleetFolder, counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admittance, "QUEUE_MAX", 1)
    token, start = image_token(fleet), clock()
    assert counter.asks(token, key_of(1)) == "waiting"
    assert counter.asks(token, key_of(2)) == "full"
    fleet.wall_clock = lambda: start + timedelta(milliseconds=UNHEARD_MS, minutes=1)
    assert counter.asks(token, key_of(2)) == "waiting"
    assert [entry.device_id for entry, _ in waiting(fleet).entries()] == [device_of(key_of(2))]


def test_asking_again_costs_no_write_but_now_and_then(
    fleet: FleetFolder, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, start, writes = image_token(fleet), clock(), []
    real = waiting_list.write_atomic
    monkeypatch.setattr(waiting_list, "write_atomic", lambda *a, **k: (writes.append(a), real(*a, **k)))
    for minutes in range(60):
        fleet.wall_clock = lambda minutes=minutes: start + timedelta(minutes=minutes)
        assert counter.asks(token, key_of(1)) == "waiting"
    assert len(writes) == 60 // (HEARD_STEP_MS // 60_000)


def test_files_that_are_damaged_are_no_approval(fleet: FleetFolder, counter: Counter) -> None:
    token = image_token(fleet)
    counter.asks(token, key_of(1))
    decide(fleet, key_of(1), "approved")
    decision = fleet.path / "enrolment" / "decisions" / f"{device_of(key_of(1)).hex()}.json"
    decision.write_bytes(decision.read_bytes()[:-9])
    assert counter.asks(token, key_of(1)) == "waiting"
    (fleet.path / "enrolment" / "waiting" / f"{device_of(key_of(1)).hex()}.json").write_bytes(b"\xff")
    assert counter.reopened().asks(token, key_of(1)) == "waiting"


def test_decisions_go_with_their_token(fleet: FleetFolder, counter: Counter) -> None:
    token = image_token(fleet)
    counter.asks(token, key_of(1))
    decide(fleet, key_of(1), "denied")
    counter.asks(token, key_of(1))
    (fleet.path / "enrolment" / "tokens" / f"{token.token_id.hex()}.json").unlink()
    counter.reopened()
    assert not list((fleet.path / "enrolment" / "decisions").iterdir())


def test_a_revoked_token_is_worth_nothing_from_now_on(fleet: FleetFolder, counter: Counter) -> None:
    token, tokens = image_token(fleet), TokenFolder(fleet.path / "enrolment" / "tokens")
    for number in (1, 2):
        counter.asks(token, key_of(number))
        decide(fleet, key_of(number), "approved")
    assert counter.asks(token, key_of(1)) == ""
    tokens.revoke(tokens.find(token.token_id.hex()[:8]))
    assert [counter.asks(token, key_of(number)) for number in (1, 2, 3)] == ["revoked"] * 3
    assert counter.reopened().asks(token, key_of(3)) == "revoked"
    assert spent(fleet, token) == 1


@pytest.mark.parametrize("text", ["", "abc", "xyzw", "0" * 33, "ff" * 16, "../../"])
def test_a_token_is_named_by_digits_that_only_it_begins_with(fleet: FleetFolder, text: str) -> None:
    image_token(fleet)
    tokens = TokenFolder(fleet.path / "enrolment" / "tokens")
    with pytest.raises(InputError) as refused:
        tokens.find(text)
    assert "enroll list" in refused.value.remedy


def test_several_tokens_that_begin_alike_are_not_guessed_among(fleet: FleetFolder) -> None:
    tokens = TokenFolder(fleet.path / "enrolment" / "tokens")
    for last in (1, 2):
        tokens.put(bytes(15) + bytes([last]), RECORD)
    with pytest.raises(InputError, match="2 tokens begin with 0000"):
        tokens.find("0000")


# The decision itself

RECORD = TokenRecord(
    secret="0" * 32, expires_ms=1_000, uses_max=2, role="device", site="oslo", root_version=1, approval=True
)
KEY = "ab" * 32
FREE = msgspec.structs.replace(RECORD, approval=False)
USED_UP = msgspec.structs.replace(RECORD, spent=("cd" * 32, "ef" * 32))
MINE = msgspec.structs.replace(RECORD, spent=(KEY, "ef" * 32))


@pytest.mark.parametrize(
    ("record", "queue", "revoked", "now_ms", "answer"),
    [
        (FREE, Queue(), False, 0, ""),
        (FREE, Queue(decision="denied"), False, 0, ""),
        (RECORD, Queue(), False, 0, "waiting"),
        (RECORD, Queue(waits=True, of_token=9_999, in_all=9_999), False, 0, "waiting"),
        (RECORD, Queue(waits=True, decision="approved"), False, 0, ""),
        (RECORD, Queue(decision="approved"), False, 0, ""),
        (RECORD, Queue(waits=True, decision="denied"), False, 0, "denied"),
        (RECORD, Queue(of_token=4 + QUEUE_SLACK), False, 0, "full"),
        (RECORD, Queue(in_all=QUEUE_MAX), False, 0, "full"),
        (USED_UP, Queue(decision="approved"), False, 0, "used"),
        (MINE, Queue(), False, 0, ""),
        (MINE, Queue(), True, 0, "revoked"),
        (MINE, Queue(), False, 1_000, "expired"),
        (RECORD, Queue(decision="approved"), False, 999, ""),
        (RECORD, Queue(decision="approved"), False, 1_000, "expired"),
        (RECORD, Queue(decision="approved"), True, 1_000, "revoked"),
    ],
)
def test_the_answer(record: TokenRecord, queue: Queue, revoked: bool, now_ms: int, answer: str) -> None:
    assert admit(record, KEY, revoked=revoked, queue=queue, now_ms=now_ms) == answer


@given(
    st.builds(
        Queue,
        st.booleans(),
        st.sampled_from([None, "approved", "denied"]),
        st.integers(0, 3_000),
        st.integers(0, 3_000),
    ),
    st.sampled_from([RECORD, FREE, USED_UP, MINE]),
    st.booleans(),
    st.integers(0, 2_000),
)
def test_nobody_is_certified_without_a_word_a_use_and_time(
    queue: Queue, record: TokenRecord, revoked: bool, now_ms: int
) -> None:
    if admit(record, KEY, revoked=revoked, queue=queue, now_ms=now_ms) == "":
        assert not revoked
        assert now_ms < record.expires_ms
        assert KEY in record.spent or len(record.spent) < record.uses_max
        assert KEY in record.spent or not record.approval or queue.decision == "approved"


# The device's side


def test_a_full_queue_is_not_looked_through_for_everybody_who_knocks(
    fleet: FleetFolder, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admittance, "QUEUE_MAX", 1)
    sweeps: list[int] = []
    real = WaitingList.sweep
    monkeypatch.setattr(WaitingList, "sweep", lambda self, now_ms: (sweeps.append(now_ms), real(self, now_ms)))
    token, start = image_token(fleet), clock()
    fleet.wall_clock = lambda: start
    assert counter.asks(token, key_of(1)) == "waiting"
    assert {counter.asks(token, key_of(number)) for number in range(2, 40)} == {"full"}
    fleet.wall_clock = lambda: start + timedelta(milliseconds=desk_module.SWEEP_INTERVAL_MS)
    assert counter.asks(token, key_of(2)) == "full"
    assert len(sweeps) == 2


async def test_the_device_shows_the_code_that_the_person_sees(fleet: FleetFolder, tmp_path: Path) -> None:
    desk = Desk.open(fleet, WORDS)
    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(desk.serve, "127.0.0.1", 0)
        address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        token = msgspec.structs.replace(image_token(fleet), desk=address)
        with pytest.raises(WaitingForApproval) as waits:
            await join(tmp_path / "state", token.line(), wall_clock=clock)
        ((entry, _),) = waiting(fleet).entries()
        assert waits.value.code == device_code(entry.device_id)
        assert waits.value.code in waits.value.message
        assert "enroll approve" in waits.value.remedy
        assert (waits.value.exit_status, entry.source) == (1, "127.0.0.1")
        assert not (tmp_path / "state" / "identity" / "device.crt").exists()
        opened = waiting(fleet)
        opened.decide(entry, "approved", 1)
        joined = await join(tmp_path / "state", token.line(), wall_clock=clock)
        assert joined.identity.device_id == entry.device_id, "the key of the first errand"
        for name, decision in (("denied", "denied"), ("revoked", None)):
            with pytest.raises(WaitingForApproval):
                await join(tmp_path / name, token.line(), wall_clock=clock)
            if decision is not None:
                opened = waiting(fleet)
                opened.decide(opened.entries()[0][0], "denied", 2)
            else:
                TokenFolder(fleet.path / "enrolment" / "tokens").revoke(token.token_id)
            with pytest.raises(TrustError, match=r"refused this device|was revoked") as refused:
                await join(tmp_path / name, token.line(), wall_clock=clock)
            assert refused.value.remedy
        nursery.cancel_scope.cancel()
    desk.close()


async def test_a_device_that_waits_asks_less_and_less_often_and_ends_with_the_decision(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asked: list[float] = []
    told: list[str] = []
    outcomes: list[PcmError | None] = [
        TransferError("the desk is away"),
        *[WaitingForApproval("CODE", "desk:1")] * 30,
        QueueFull("the desk has other words for a queue that is full"),
        TransferError("the desk is away"),
        None,
    ]
    joined = cast("Joined", object())

    async def attempt() -> Joined:
        asked.append(trio.current_time())
        outcome = outcomes[len(asked) - 1]
        if outcome is not None:
            raise outcome
        return joined

    def tell(error: PcmError) -> None:
        told.append(error.message)

    assert await join_and_wait(attempt, rng=Random(1), told=tell) is joined
    pauses = [after - before for before, after in pairwise(asked)]
    assert 0.7 * WAIT_S_MIN < pauses[0] < 1.3 * WAIT_S_MIN
    assert all(0.7 * WAIT_S_MAX < pause < 1.3 * WAIT_S_MAX for pause in pauses[12:])
    assert len(told) == 4, "each new reason once"


@pytest.mark.parametrize(
    "error", [TrustError("a person refused this device"), InputError("wrong"), TrustError("expired")]
)
async def test_what_waiting_does_not_change_ends_it(autojump_clock: trio.testing.MockClock, error: PcmError) -> None:
    async def attempt() -> Joined:
        raise error

    with pytest.raises(type(error), match=error.message):
        await join_and_wait(attempt, rng=Random(1), told=lambda _: None)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("waiting", WaitingForApproval),
        ("full", QueueFull),
        ("denied", TrustError),
        ("used", TrustError),
        ("?", TransferError),
    ],
)
async def test_each_answer_of_the_desk_is_an_error_of_its_kind(
    fleet: FleetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, kind: type[PcmError]
) -> None:
    """Whether a join goes on waiting is decided by the kind, never by the words of an error."""

    async def ask(*_: object, **__: object) -> Brought:
        return Brought(Reply(answer), "desk:1")

    monkeypatch.setattr("pcm_p2p.enrolment.join.ask_desk", ask)
    with pytest.raises(PcmError) as ended:
        await join(tmp_path / "x", image_token(fleet).line(), wall_clock=clock)
    assert type(ended.value) is kind


# The list that a person was shown


def waiting_devices(*numbers: int) -> list[Waiting]:
    return [Waiting(f"{number:032x}", "ab" * 16, number, number) for number in numbers]


def test_the_code_of_a_list_stands_for_those_on_it_whoever_comes_later() -> None:
    here = waiting_devices(1, 2, 3)
    code = list_code(here)
    assert list(shown_by(code, [*here, *waiting_devices(4, 5)])) == here
    assert list(shown_by(code.lower(), here)) == here


@pytest.mark.parametrize(
    "code", ["", "-", "3", "0-", "0-AAAAAAAA", "4-AAAAAAAA", "x-AAAAAAAA", "99999999999-A", "-1-A", "²-A"]
)
def test_a_code_of_no_list_stands_for_nobody(code: str) -> None:
    with pytest.raises(InputError, match="is not the list of who waits now"):
        shown_by(code, waiting_devices(1, 2, 3))


def test_who_left_or_came_with_another_token_makes_another_list() -> None:
    code = list_code(waiting_devices(1, 2, 3))
    other = msgspec.structs.replace(waiting_devices(3)[0], token="cd" * 16)
    for now in (
        waiting_devices(1, 3, 4),
        waiting_devices(1, 2),
        [*waiting_devices(1, 2), other],
        waiting_devices(2, 1, 3),
        [],
    ):
        with pytest.raises(InputError):
            shown_by(code, now)
