"""Sessions over memory streams and a virtual clock: order, bounds, liveness, and every way to end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.wire import session as session_module
from pcm_p2p.wire.framing import (
    BulkFrame,
    ControlFrame,
    FrameDecoder,
    decode_message_untrusted,
    encode_bulk,
    encode_control,
)
from pcm_p2p.wire.messages import (
    PROTOCOL,
    AcksPut,
    Bye,
    ChunkGet,
    Digest,
    FileGet,
    Hello,
    Message,
    Ping,
    Pong,
    RecordsPut,
    Refused,
    Route,
)
from pcm_p2p.wire.outgoing import CONTROL_QUEUE_MAX
from pcm_p2p.wire.session import (
    HELLO_TIMEOUT_S,
    PING_INTERVAL_S,
    SILENCE_S,
    PeerRefused,
    PeerTooSlow,
    Refuse,
    Session,
    SessionClosed,
)

A, B = DeviceId(b"a" * 16), DeviceId(b"b" * 16)
CHUNK = bytes(range(256)) * 1024


def hello(**changes: Any) -> Hello:
    values: dict[str, Any] = {
        "protocol": PROTOCOL,
        "fleet": "f" * 32,
        "site": "berlin",
        "role": "device",
        "port": 1,
        "incarnation": 1,
        "weight": 8,
        "agent": "test",
    }
    return Hello(**(values | changes))


@asynccontextmanager
async def pair(
    a: dict[str, Any] | None = None, b: dict[str, Any] | None = None
) -> AsyncIterator[tuple[Session, Session]]:
    left, right = trio.testing.memory_stream_pair()
    one = Session(left, hello(port=1), device=B, dialled=True, **(a or {}))
    two = Session(right, hello(port=2), device=A, dialled=False, **(b or {}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two.run)
        await nursery.start(one.run)
        yield one, two
        nursery.cancel_scope.cancel()


class Raw:
    """The peer as a script: frames in and out by hand."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.decoder = FrameDecoder()
        self.frames: list[ControlFrame | BulkFrame] = []

    async def say(self, *messages: Message) -> None:
        await self.stream.send_all(b"".join(encode_control(message) for message in messages))

    async def hear(self) -> Any:
        """The next frame: a message, or a ``BulkFrame``; None at the end."""
        while not self.frames:
            data = await self.stream.receive_some(65_536)
            if not data:
                return None
            self.frames += self.decoder.feed_untrusted(data)
        frame = self.frames.pop(0)
        return decode_message_untrusted(frame.body) if isinstance(frame, ControlFrame) else frame


@asynccontextmanager
async def against_raw(say_hello: bool = True, **options: Any) -> AsyncIterator[tuple[Session, Raw, list[str]]]:
    left, right = trio.testing.memory_stream_pair()
    session = Session(left, hello(), device=B, **({"dialled": False} | options))
    raw, ends = Raw(right), list[str]()

    async def run() -> None:
        try:
            ends.append(await session.run())
        except SessionClosed as error:
            ends.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        if say_hello:
            await raw.say(hello())
            assert isinstance(await raw.hear(), Hello)
        yield session, raw, ends
        nursery.cancel_scope.cancel()


async def serve_chunk(_session: Session, request: ChunkGet) -> bytes:
    if request.chunk == bytes(32):
        raise Refuse("missing")
    return CHUNK


def chunk_get(number: int) -> ChunkGet:
    return ChunkGet(number, b"c" * 32)


async def test_both_sides_learn_the_hello_of_the_other(autojump_clock: trio.testing.MockClock) -> None:
    async with pair() as (one, two):
        await trio.testing.wait_all_tasks_blocked()
        assert (one.peer_hello.port, two.peer_hello.port) == (2, 1)


async def test_messages_arrive_in_order_and_after_on_start(autojump_clock: trio.testing.MockClock) -> None:
    seen: list[Any] = []

    async def on_start(session: Session) -> None:
        await trio.sleep(1)
        seen.append("started")

    async def on_message(session: Session, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        seen.append(message)

    async with pair(b={"on_message": on_message, "on_start": on_start}) as (one, _):
        sent = [Digest(number, 0, 0, 0, bytes(32)) for number in range(50)]
        for message in sent:
            await one.send(message)
        await trio.sleep(2)
    assert seen == ["started", *sent]


async def test_requests_are_answered_by_the_right_bytes_in_any_order(autojump_clock: trio.testing.MockClock) -> None:
    async def serve(_session: Session, request: FileGet) -> bytes:
        await trio.sleep(int(request.path) % 3)
        return request.path.encode() * 30_000

    answers: dict[int, bytes] = {}

    async with pair(b={"serve": {FileGet: serve}}) as (one, two):

        async def get(index: int) -> None:
            answers[index] = await one.fetch(lambda number: FileGet(number, str(index)), 1 << 20, 60.0)

        async with trio.open_nursery() as nursery:
            for index in range(60):
                nursery.start_soon(get, index)
        assert two.statistics().bulk_out_bytes == sum(map(len, answers.values())) == one.statistics().bulk_in_bytes
    assert answers == {index: str(index).encode() * 30_000 for index in range(60)}


async def test_an_empty_answer_and_one_of_a_single_piece(autojump_clock: trio.testing.MockClock) -> None:
    async def serve(_session: Session, request: FileGet) -> memoryview:
        return memoryview(request.path.encode())

    async with pair(b={"serve": {FileGet: serve}}) as (one, _):
        assert await one.fetch(lambda number: FileGet(number, ""), 0, 1.0) == b""
        assert await one.fetch(lambda number: FileGet(number, "x"), 1, 1.0) == b"x"


async def test_a_refusal_names_its_reason(autojump_clock: trio.testing.MockClock) -> None:
    async with pair(b={"serve": {ChunkGet: serve_chunk}}) as (one, _):
        with pytest.raises(PeerRefused) as missing:
            await one.fetch(lambda number: ChunkGet(number, bytes(32)), 10, 1.0)
        with pytest.raises(PeerRefused) as denied:
            await one.fetch(lambda number: FileGet(number, "not served here"), 10, 1.0)
    assert (missing.value.reason, denied.value.reason) == ("missing", "denied")


async def test_a_server_that_fails_or_hangs_refuses_and_the_session_lives(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def serve(_session: Session, request: FileGet) -> bytes:
        if request.path == "hang":
            await trio.sleep_forever()
        raise LookupError("a fault of ours")

    async with pair(b={"serve": {FileGet: serve}}) as (one, _):
        for path, reason in [("fail", "error"), ("hang", "busy")]:
            with pytest.raises(PeerRefused, match=reason):
                await one.fetch(lambda number, path=path: FileGet(number, path), 10, 60.0)  # type: ignore[misc]
        assert one.closed_reason == ""
    assert "a fault of ours" in caplog.text


async def test_more_requests_than_allowed_are_refused_not_queued(autojump_clock: trio.testing.MockClock) -> None:
    serving = 0

    async def serve(_session: Session, request: ChunkGet) -> bytes:
        nonlocal serving
        serving += 1
        await trio.sleep(5)
        return b"x"

    async with against_raw(serve={ChunkGet: serve}) as (_, raw, _ends):
        await raw.say(*(chunk_get(number + 1) for number in range(40)))
        refused = [await raw.hear() for _ in range(8)]
        assert refused == [Refused(number, "limit") for number in range(33, 41)]
        assert serving == session_module.SERVED_AT_ONCE_MAX


async def test_an_answer_longer_than_asked_for_is_untrusted_and_dropped(autojump_clock: trio.testing.MockClock) -> None:
    async with pair(b={"serve": {ChunkGet: serve_chunk}}) as (one, _):
        with pytest.raises(UntrustedBytes, match="longer than"):
            await one.fetch(chunk_get, len(CHUNK) - 1, 1.0)
        assert await one.fetch(chunk_get, len(CHUNK), 1.0) == CHUNK


async def test_an_answer_to_nothing_ends_the_session(autojump_clock: trio.testing.MockClock) -> None:
    async with against_raw() as (session, raw, ends):
        await raw.stream.send_all(encode_bulk(1, b"unasked", last=True))
        await session.closed.wait()
        await trio.sleep(0.1)
        assert "never made" in ends[0]


async def test_what_arrives_for_a_request_that_was_given_up_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    async with against_raw() as (session, raw, _ends):
        with trio.move_on_after(1):
            await session.fetch(chunk_get, 100, 60.0)
        await raw.stream.send_all(encode_bulk(1, b"late", last=True))
        await raw.say(Ping(5))
        assert isinstance(await raw.hear(), ChunkGet)
        assert await raw.hear() == Pong(5)
        assert session.closed_reason == ""


@pytest.mark.parametrize(("bytes_per_s", "ends_after_s"), [(0, 10), (1_000, 10), (20_000, None)])
async def test_a_peer_that_drips_is_too_slow_and_one_above_the_least_rate_is_not(
    autojump_clock: trio.testing.MockClock, bytes_per_s: int, ends_after_s: float | None
) -> None:
    size = 600_000
    async with against_raw() as (session, raw, _ends), trio.open_nursery() as nursery:

        async def drip() -> None:
            left = size
            while left and bytes_per_s:
                piece = min(left, bytes_per_s)
                left -= piece
                await raw.stream.send_all(encode_bulk(1, bytes(piece), last=not left))
                await trio.sleep(1)
            while True:  # alive, but silent on that request
                await trio.sleep(4)
                await raw.say(Ping(1))

        begun = trio.current_time()

        async def get() -> bytes:
            nursery.start_soon(drip_after_request)
            return await session.fetch(chunk_get, size, 10.0)

        async def drip_after_request() -> None:
            assert isinstance(await raw.hear(), ChunkGet)
            await drip()

        if ends_after_s is None:
            assert len(await get()) == size
        else:
            with pytest.raises(PeerTooSlow):
                await get()
            assert trio.current_time() - begun == pytest.approx(ends_after_s, abs=1)
        nursery.cancel_scope.cancel()


async def test_control_does_not_wait_behind_bulk(autojump_clock: trio.testing.MockClock) -> None:
    async def serve(_session: Session, request: ChunkGet) -> bytes:
        return bytes(4 << 20)

    # In lockstep the writer is never more than one frame ahead of the reader, like a socket whose buffers are full.
    left, right = trio.testing.lockstep_stream_pair()
    session, raw = Session(left, hello(), device=B, dialled=False, serve={ChunkGet: serve}), Raw(right)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        assert isinstance(await raw.hear(), Hello)
        await raw.say(hello())
        await raw.say(chunk_get(1), chunk_get(2))
        heard = [await raw.hear() for _ in range(4)]
        assert {piece.request for piece in heard} == {1, 2}, "answers share the stream"
        await session.send(Route(True))
        following = [await raw.hear() for _ in range(2)]
        assert Route(True) in following
        nursery.cancel_scope.cancel()


async def test_a_message_overtakes_answers_that_wait_for_their_pace(autojump_clock: trio.testing.MockClock) -> None:
    class Slow:
        rate_bytes_per_s = 1

        async def take(self, size_bytes: int) -> None:
            await trio.sleep(size_bytes / 64_000)

    async def serve(_session: Session, request: ChunkGet) -> bytes:
        return CHUNK

    async with against_raw(serve={ChunkGet: serve}, pace_out=Slow()) as (session, raw, _ends):
        begun = trio.current_time()
        await raw.say(chunk_get(1))
        assert isinstance(await raw.hear(), BulkFrame)
        await session.send(Route(True))
        assert await raw.hear() == Route(True)
        assert trio.current_time() - begun < 1.2
        pieces = [await raw.hear() for _ in range(3)]
        assert [piece.last for piece in pieces] == [False, False, True]
        assert trio.current_time() - begun == pytest.approx(len(CHUNK) / 64_000, rel=0.1)


async def test_what_comes_in_pays_its_pace(autojump_clock: trio.testing.MockClock) -> None:
    class Counting:
        taken = 0

        rate_bytes_per_s = 1

        async def take(self, size_bytes: int) -> None:
            self.taken += size_bytes
            await trio.sleep(0.5)

    pace = Counting()
    async with pair(a={"pace_in": pace}, b={"serve": {ChunkGet: serve_chunk}}) as (one, _):
        assert await one.fetch(chunk_get, len(CHUNK), 60.0) == CHUNK
    assert pace.taken == len(CHUNK)


async def test_idle_sessions_stay_alive_with_one_ping_per_interval(autojump_clock: trio.testing.MockClock) -> None:
    async with pair() as (one, two):
        await trio.sleep(20 * PING_INTERVAL_S + 1)
        assert (one.closed_reason, two.closed_reason) == ("", "")
        ping = len(encode_control(Ping(1))) - 5
        pongs = one.statistics().control_in_bytes / ping
        assert 15 <= pongs <= 20  # an interval is rounded up to whole seconds
        assert two.statistics().control_in_bytes == one.statistics().control_in_bytes
        assert one.statistics().round_trip_s is not None


@pytest.mark.parametrize("dialled", [True, False])
async def test_silence_ends_a_session(autojump_clock: trio.testing.MockClock, dialled: bool) -> None:
    async with against_raw(dialled=dialled) as (session, _raw, ends):
        begun = trio.current_time()
        await session.closed.wait()
        assert trio.current_time() - begun == pytest.approx(SILENCE_S, abs=0.1)
        await trio.sleep(0.1)
        assert "silent" in ends[0]


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (Ping(1), "not a hello"),
        (hello(fleet="e" * 32), "another fleet"),
        (hello(protocol=0), "protocol 0"),
        (Bye("full"), "bye: full"),
    ],
)
async def test_a_first_frame_that_is_not_a_fitting_hello_ends_it_before_any_message(
    autojump_clock: trio.testing.MockClock, first: Message, reason: str
) -> None:
    async def on_message(_session: Session, message: Message) -> None:
        raise AssertionError("nothing may be delivered")

    async with against_raw(say_hello=False, on_message=on_message) as (_session, raw, ends):
        await raw.say(first, Route(True))
        await trio.sleep(0.1)
        assert reason in ends[0]


async def test_a_peer_of_the_protocol_before_is_talked_to(autojump_clock: trio.testing.MockClock) -> None:
    heard: list[Message] = []

    async def on_message(_session: Session, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        heard.append(message)

    async with against_raw(say_hello=False, on_message=on_message) as (_session, raw, ends):
        await raw.say(hello(protocol=1), Route(True))
        await trio.sleep(0.1)
        assert (heard, ends) == ([Route(True)], [])


async def test_no_hello_within_its_deadline_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    async with against_raw(say_hello=False) as (_session, _raw, ends):
        await trio.sleep(HELLO_TIMEOUT_S + 0.1)
        assert "no hello" in ends[0]


async def test_run_raises_when_the_session_never_began(autojump_clock: trio.testing.MockClock) -> None:
    left, right = trio.testing.memory_stream_pair()
    await right.aclose()
    async with trio.open_nursery() as nursery:
        with pytest.raises(SessionClosed):
            await nursery.start(Session(left, hello(), device=B, dialled=True).run)


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 5, encode_control(hello()), b"\x00\x00\x00\x03\x00\xc1\xc1"],
    ids=["frame", "hello", "message"],
)
async def test_protocol_errors_end_the_session_with_a_reason(
    autojump_clock: trio.testing.MockClock, garbage: bytes
) -> None:
    async with against_raw() as (_session, raw, ends):
        await raw.stream.send_all(garbage)
        await trio.sleep(0.1)
        assert "protocol error" in ends[0]


async def test_a_bye_ends_both_sides_and_fails_what_waits(autojump_clock: trio.testing.MockClock) -> None:
    async def never(_session: Session, request: ChunkGet) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async with pair(b={"serve": {ChunkGet: never}}) as (one, two), trio.open_nursery() as nursery:
        failures: list[str] = []

        async def get() -> None:
            with pytest.raises(SessionClosed) as failure:
                await one.fetch(chunk_get, 10, 60.0)
            failures.append(str(failure.value))

        nursery.start_soon(get)
        await trio.sleep(0.1)
        await two.close("leaving")
        await one.closed.wait()
        assert (one.bye_reason, two.closed_reason) == ("leaving", "leaving")
        await trio.sleep(0.1)
        assert "leaving" in failures[0]
        with pytest.raises(SessionClosed):
            await one.send(Ping(1))


async def test_a_lost_connection_ends_it_even_in_the_middle_of_a_frame(autojump_clock: trio.testing.MockClock) -> None:
    async with against_raw() as (session, raw, ends):
        await raw.stream.send_all(encode_control(Route(True))[:4])
        await raw.stream.aclose()
        await session.closed.wait()
        await trio.sleep(0.1)
        assert "closed by the peer" in ends[0]


class Stuck(trio.abc.Stream):
    """A stream whose other end stopped reading: sends block after Hello."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self.inner = inner
        self.sends = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.sends += 1
        if self.sends > 1:
            await trio.sleep_forever()
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None: ...

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self.inner.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self.inner.aclose()


async def with_stuck(use: Callable[[Session], Awaitable[None]]) -> str:
    left, right = trio.testing.memory_stream_pair()
    session, raw = Session(Stuck(left), hello(), device=B, dialled=False), Raw(right)
    async with trio.open_nursery() as nursery:
        await raw.say(hello())
        await nursery.start(session.run)

        async def chatter() -> None:
            while True:
                await trio.sleep(1)
                await raw.say(Route(True))

        nursery.start_soon(chatter)
        await use(session)
        await session.closed.wait()
        nursery.cancel_scope.cancel()
    return session.closed_reason


async def test_a_peer_that_does_not_read_is_closed_when_a_write_makes_no_progress(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def say_something(session: Session) -> None:
        await session.send(Route(True))

    assert "too slow: did not take" in await with_stuck(say_something)


async def test_a_peer_that_lets_the_queue_overflow_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    async def flood(session: Session) -> None:
        posted = 0
        with contextlib.suppress(SessionClosed):
            while posted < 10_000:
                session.post(RecordsPut(1, (bytes(1_000),)))
                posted += 1
        assert posted <= CONTROL_QUEUE_MAX

    assert "queue" in await with_stuck(flood)


async def test_large_messages_for_a_slow_handler_wait_unread(autojump_clock: trio.testing.MockClock) -> None:
    """A quarter of a gibibyte could wait before, for each session of a device that has a certificate."""
    go_on, heard = trio.Event(), list[bytes]()

    async def slow(_session: Session, message: Message) -> None:
        await go_on.wait()
        assert isinstance(message, AcksPut)
        heard.append(message.acks[0][:1])

    async with against_raw(on_message=slow) as (session, raw, _):
        for number in range(40):
            await raw.say(AcksPut((bytes([number]) * 500_000,)))
        await trio.testing.wait_all_tasks_blocked()
        # One is with the handler, one waits for room, and the rest of what was read is not decoded yet.
        assert session.statistics().control_in_bytes <= session_module.INBOX_SIZE_BYTES_MAX + 2 * 501_000
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
    assert heard == [bytes([number]) for number in range(40)]


async def test_a_handler_that_fails_is_logged_and_the_next_message_is_delivered(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Message] = []

    async def on_message(_session: Session, message: Message) -> None:
        if message == Route(False):
            raise LookupError("a fault of ours")
        seen.append(message)

    async with pair(b={"on_message": on_message}) as (one, two):
        await one.send(Route(False))
        await one.send(Route(True))
        await trio.sleep(0.1)
        assert seen == [Route(True)]
        assert two.closed_reason == ""
    assert "a fault of ours" in caplog.text


async def test_a_handler_that_finds_foreign_bytes_ends_the_session(autojump_clock: trio.testing.MockClock) -> None:
    async def on_message(_session: Session, message: Message) -> None:
        raise UntrustedBytes("bits that do not fit")

    async with pair(b={"on_message": on_message}) as (one, two):
        await one.send(Route(False))
        await two.closed.wait()
        assert "bits that do not fit" in two.closed_reason


async def test_cancelling_run_closes_the_stream(autojump_clock: trio.testing.MockClock) -> None:
    left, right = trio.testing.memory_stream_pair()
    session, raw = Session(left, hello(), device=B, dialled=False), Raw(right)
    async with trio.open_nursery() as nursery:
        await raw.say(hello())
        await nursery.start(session.run)
        nursery.cancel_scope.cancel()
    assert session.closed_reason == "cancelled"
    assert isinstance(await raw.hear(), Hello)
    assert await raw.hear() is None


# Whether the process at the other end lives


async def test_both_ends_answer_when_they_are_asked_and_the_keep_alive_is_not_disturbed() -> None:
    async with pair() as (one, two):
        assert await one.answers(1.0)
        assert await two.answers(1.0), "also the side that does not ping by itself"
        assert not one.closed_reason


async def test_an_open_connection_alone_is_no_answer(autojump_clock: trio.testing.MockClock) -> None:
    async with against_raw() as (session, raw, _):
        await raw.say(Pong(1), Pong(2), Route(True))
        await trio.testing.wait_all_tasks_blocked()
        assert not await session.answers(2.0), "what was said before it was asked does not count, nor does another word"
        asked = await raw.hear()
        await raw.say(Pong(asked.nonce))
        assert not await session.answers(2.0), "an answer that came too late is of the question before"


async def test_a_session_that_has_ended_answers_nothing() -> None:
    async with pair() as (one, two):
        await two.close("done")
        with trio.fail_after(60):
            await one.closed.wait()
        assert not await one.answers(1.0)
