"""One session: two nodes, one authenticated stream, control messages and bulk answers in both directions.

Who the peer is was settled below (``link``: mutual TLS); a session adds the exchange of ``Hello``, requests with answers, and
liveness. It runs over any trio stream, so that tests use memory and a virtual clock.

What a user of a session can rely on:

- **Control never waits behind data.** Outgoing control frames go before bulk pieces; answers that are under way share the
  stream piece by piece. An upload limit delays pieces, not messages.
- **Nothing grows without bound.** Control frames wait in a bounded queue (``outgoing``); a peer that lets it overflow is closed
  as too slow. Messages for a handler that is slower than the peer wait in a bounded inbox, and then nothing more is read.
  A peer has at most ``OUTSTANDING_MAX`` requests here, of which ``SERVED_AT_ONCE_MAX`` are worked on; what is above is refused.
- **Nothing waits for ever.** Hello has a deadline, every write and every wait for bytes has one, and a request ends when its
  answer stalls or drips. The side that dialled pings after ``PING_INTERVAL_S`` without traffic, the other answers: two wakeups
  per interval and session, and none at all while data flows. Silence for ``SILENCE_S`` ends the session.
- **Messages arrive in order**, one at a time, at ``on_message``. A handler may send, but must not wait there for an answer on the
  same session: a handler that does not return holds back the reading behind it.
- **An end has one reason.** ``run`` returns it; requests that were waiting raise ``SessionClosed`` with it.

Non-goals: reconnecting (``gossip.overlay``), choosing among peers, limits across sessions (the caller shares pace objects).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import trio

from pcm_p2p.errors import TransferError, UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.framing import (
    BULK_PIECE_SIZE_BYTES,
    BulkFrame,
    Frame,
    FrameDecoder,
    decode_message_untrusted,
    encode_control,
)
from pcm_p2p.wire.messages import PROTOCOL, PROTOCOL_MIN, Bye, Hello, Message, Ping, Pong, Refused
from pcm_p2p.wire.outgoing import Outgoing
from pcm_p2p.wire.pending import Pending

HELLO_TIMEOUT_S = 5.0
"""Choice: a handshake on a LAN takes milliseconds; a loaded machine some hundred."""
PING_INTERVAL_S = 5.0
"""Choice. Measured with 20 daemons' overlays on one machine, 19 idle sessions each: 0.12 to 0.19 % of a core per process."""
SILENCE_S = 15.0
"""Three pings unanswered."""
SERVE_TIMEOUT_S = 30.0
"""Choice: longest work on one request before it is refused as busy."""
INBOX_MAX = 256
INBOX_SIZE_BYTES_MAX = 2 << 20
"""Choice: as framed, two messages of the largest size. Decoded, many small numbers take seven times as much."""
OUTSTANDING_MAX = 32
"""Choice: pipelines are 2 to 8 deep (research/gossip-scale.md 1.4)."""
SERVED_AT_ONCE_MAX = 4
"""Choice: with answers of at most 4 MiB this bounds a session's outgoing memory to 16 MiB."""
RATE_BYTES_PER_S_MIN = 16 << 10
"""Choice: slower than this a LAN peer is worth leaving for another."""
RECEIVE_SIZE_BYTES = 256 << 10

_log = logging.getLogger(__name__)


class SessionClosed(TransferError):
    """The session ended before the answer was complete."""


class PeerRefused(TransferError):
    """The peer answered no. ``reason`` is one of ``messages.Refused``'s, or foreign text: never act on other values."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the peer refused: {reason}")
        self.reason = reason


class PeerTooSlow(TransferError):
    """The answer stalled, or came slower than the least rate."""


class Refuse(Exception):
    """Raised by a serving function to answer ``Refused(reason)``: missing, busy, limit, denied or error."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Pace(Protocol):
    """A rate limit: ``take`` returns once this many bytes may pass. At rate 0 there is no limit at present."""

    @property
    def rate_bytes_per_s(self) -> int: ...

    async def take(self, size_bytes: int, /) -> None: ...


Serve = Callable[["Session", Any], Awaitable["bytes | memoryview"]]
OnMessage = Callable[["Session", Message], Awaitable[None]]
OnStart = Callable[["Session"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """Bytes as framed, before TLS; ``round_trip_s`` is of the last ping, None before the first."""

    control_in_bytes: int = 0
    control_out_bytes: int = 0
    bulk_in_bytes: int = 0
    bulk_out_bytes: int = 0
    round_trip_s: float | None = None


class Session:
    """Made over a stream, then ``run`` in a nursery; ``run`` reports as started once both sides said Hello.

    ``device``, ``role`` and ``site`` are what the peer's certificate says (the caller's matter; the session only carries them for
    its handlers, and the site, where it is not empty, in the place of what the peer claims). ``dialled`` is true on the side that
    opened the connection. ``on_start`` is awaited after Hello and before the first message is delivered; requests of the peer may
    be served meanwhile. ``bye_reason`` is what the peer gave, if it did.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        hello: Hello,
        *,
        device: DeviceId,
        role: str = "device",
        site: str = "",
        dialled: bool,
        serve: Mapping[type[Message], Serve] | None = None,
        on_message: OnMessage | None = None,
        on_start: OnStart | None = None,
        pace_in: Pace | None = None,
        pace_out: Pace | None = None,
    ) -> None:
        self.device = device
        self.role = role
        self._site = site
        self.dialled = dialled
        self.closed = trio.Event()
        self.closed_reason = ""
        self.bye_reason: str | None = None
        self._stream = stream
        self._hello = hello
        self._peer_hello: Hello | None = None
        self._serve = dict(serve or {})
        self._on_message = on_message
        self._on_start = on_start
        self._pace_in = pace_in
        self._pace_out = pace_out
        self._decoder = FrameDecoder()
        self._outgoing = Outgoing()
        self._closing_reason: str | None = None
        self._scope = trio.CancelScope()
        self._inbox_in, self._inbox_out = trio.open_memory_channel[tuple[Message, int]](INBOX_MAX)
        self._inbox_bytes = 0
        self._inbox_room = trio.Event()
        self._pending: dict[int, Pending] = {}
        self._requests = 0
        self._fetching = trio.CapacityLimiter(OUTSTANDING_MAX)
        self._outstanding = 0
        self._serving = trio.CapacityLimiter(SERVED_AT_ONCE_MAX)
        self._control_in = self._bulk_in = 0
        self._round_trip_s: float | None = None
        self._sent_at = self._heard_at = 0.0
        self._ping_sent: tuple[int, float] | None = None
        self._pings = 0
        self._probes: dict[int, trio.Event] = {}

    # What a user calls

    @property
    def peer_hello(self) -> Hello:
        """What the peer said of itself; its site as it is certified, where it is. Only after ``run`` has started."""
        assert self._peer_hello is not None, "the session has not started"
        return self._peer_hello

    def statistics(self) -> SessionStatistics:
        return SessionStatistics(
            self._control_in,
            self._outgoing.control_bytes,
            self._bulk_in,
            self._outgoing.bulk_bytes,
            self._round_trip_s,
        )

    def post(self, message: Message) -> None:
        """Queue a message without waiting. Raises ``SessionClosed``; a full queue closes the session as too slow."""
        if self.closed_reason or self._closing_reason:
            reason = self.closed_reason or self._closing_reason
            raise SessionClosed(f"session with {self.device.short} is closed: {reason}")
        frame = encode_control(message)
        if not self._outgoing.has_room_for(frame):
            self._end("too slow: the queue of messages to it is full")
            raise SessionClosed(f"session with {self.device.short} is closed: {self.closed_reason}")
        self._outgoing.put_control(frame)

    async def send(self, message: Message) -> None:
        """Queue a message and let others run. Raises ``SessionClosed``."""
        self.post(message)
        await trio.lowlevel.checkpoint()

    async def fetch(
        self,
        make_request: Callable[[int], Message],
        size_bytes_max: int,
        timeout_s: float,
        rate_bytes_per_s_min: int = RATE_BYTES_PER_S_MIN,
    ) -> bytes:
        """Send ``make_request(number)`` and return the whole answer, unverified.

        Ends with ``PeerTooSlow`` when no byte of the answer came for ``timeout_s``, or when ``timeout_s`` after the request
        its mean rate is below the least; with ``PeerRefused``; with ``SessionClosed``; with ``UntrustedBytes`` when the
        answer exceeds ``size_bytes_max``. What arrives for a request that ended early is dropped.
        """
        async with self._fetching:
            if self.closed_reason:
                raise SessionClosed(f"session with {self.device.short} is closed: {self.closed_reason}")
            self._requests = number = (self._requests + 1) & 0xFFFF_FFFF
            pending = self._pending[number] = Pending(size_bytes_max)
            try:
                self.post(make_request(number))
                if not await pending.wait(timeout_s, rate_bytes_per_s_min):
                    raise PeerTooSlow(
                        f"{self.device.short} sent {pending.size_bytes} bytes of an answer and then was too slow"
                    )
            finally:
                self._pending.pop(number, None)
            return pending.answer()

    async def answers(self, timeout_s: float) -> bool:
        """Whether the peer answers a ping that is sent now: its process lives, which an open connection does not show."""
        self._pings = number = (self._pings + 1) & 0xFFFF_FFFF
        self._probes[number] = answered = trio.Event()
        try:
            self.post(Ping(number))
            with trio.move_on_after(timeout_s):
                await answered.wait()
        except SessionClosed:
            pass
        finally:
            del self._probes[number]
        return answered.is_set()

    async def close(self, reason: str) -> None:
        """Say Bye, wait at most a second until it is written, and end. Does nothing on a closed session."""
        if not self.closed_reason:
            if not self._closing_reason:
                self._closing_reason = reason
                self._outgoing.put_control(encode_control(Bye(reason[:200])))
            with trio.move_on_after(1.0):
                await self.closed.wait()
            self._end(reason)

    # The life of a session

    async def run(self, *, task_status: trio.TaskStatus[Hello] = trio.TASK_STATUS_IGNORED) -> str:
        """Exchange Hello, report as started with the peer's, and serve until the end; return the reason of the end.

        Raises ``SessionClosed`` when the end came before both sides had said Hello.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    first = await self._guarded(self._exchange_hello)
                    if first is not None:
                        task_status.started(self.peer_hello)
                        nursery.start_soon(self._guarded, self._write)
                        nursery.start_soon(self._guarded, self._deliver)
                        if self.dialled:
                            nursery.start_soon(self._guarded, self._keep_alive)
                        await self._guarded(self._read, nursery, first)
        finally:
            self._end("cancelled")
            await trio.aclose_forcefully(self._stream)
        if self._peer_hello is None:
            raise SessionClosed(f"no session with {self.device.short}: {self.closed_reason}")
        return self.closed_reason

    def _end(self, reason: str) -> None:
        if not self.closed_reason:
            self.closed_reason = reason
            for pending in self._pending.values():
                pending.fail(SessionClosed(f"session with {self.device.short} ended: {reason}"))
            self.closed.set()
            self._scope.cancel()

    async def _guarded(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Turn the ordinary ways for a stream to end into the session's end."""
        try:
            return await function(*args)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._end(f"connection lost: {error.__cause__ or error or type(error).__name__}")
        except UntrustedBytes as error:
            self._end(f"protocol error: {error}")
        except SessionClosed:
            assert self.closed_reason or self._closing_reason, "only its own end is expected here"
        return None

    async def _exchange_hello(self) -> list[Frame] | None:
        """Both sides say Hello at once. Returns the frames that came behind the peer's, or None after ending the session."""
        with trio.move_on_after(HELLO_TIMEOUT_S):
            await self._stream.send_all(encode_control(self._hello))
            while True:
                data = await self._stream.receive_some(RECEIVE_SIZE_BYTES)
                if not data:
                    self._end("closed by the peer before its hello")
                    return None
                frames = self._decoder.feed_untrusted(data)
                if frames:
                    break
            first = frames[0]
            hello = None if isinstance(first, BulkFrame) else decode_message_untrusted(first.body)
            if isinstance(hello, Bye):
                self._end(f"peer said bye: {hello.reason}")
            elif not isinstance(hello, Hello):
                self._end("protocol error: the first frame is not a hello")
            elif hello.protocol < PROTOCOL_MIN:
                self._end(f"peer speaks protocol {hello.protocol}, this version {PROTOCOL_MIN} to {PROTOCOL}")
            elif hello.fleet != self._hello.fleet:
                self._end("peer is of another fleet")
            else:
                self._peer_hello = msgspec.structs.replace(hello, site=self._site) if self._site else hello
                self._sent_at = self._heard_at = trio.current_time()
                return frames[1:]
            return None
        self._end(f"no hello within {HELLO_TIMEOUT_S:g} s")
        return None

    async def _read(self, nursery: trio.Nursery, frames: list[Frame]) -> None:
        while True:
            bulk_bytes = 0
            for frame in frames:
                if isinstance(frame, BulkFrame):
                    bulk_bytes += len(frame.data)
                    self._take_piece(frame)
                else:
                    self._control_in += len(frame.body)
                    await self._take_message(nursery, decode_message_untrusted(frame.body), len(frame.body))
            if bulk_bytes and self._pace_in is not None:
                await self._pace_in.take(bulk_bytes)
            with trio.move_on_after(SILENCE_S) as waiting:
                data = await self._stream.receive_some(RECEIVE_SIZE_BYTES)
            if waiting.cancelled_caught:
                return self._end(f"silent for {SILENCE_S:g} s")
            if not data:
                return self._end("closed by the peer")
            self._heard_at = trio.current_time()
            frames = self._decoder.feed_untrusted(data)

    def _take_piece(self, frame: BulkFrame) -> None:
        self._bulk_in += len(frame.data)
        pending = self._pending.get(frame.request)
        if pending is None:
            if not 0 < frame.request <= self._requests:
                raise UntrustedBytes("an answer to a request that was never made")
            return
        pending.take(frame, self._heard_at)

    async def _take_message(self, nursery: trio.Nursery, message: Message, size_bytes: int) -> None:
        if self._closing_reason:
            return  # who is being sent away is not served any more
        if isinstance(message, Ping):
            self.post(Pong(message.nonce))
        elif isinstance(message, Pong):
            if message.nonce in self._probes:
                self._probes[message.nonce].set()
            if self._ping_sent is not None and self._ping_sent[0] == message.nonce:
                self._round_trip_s = self._heard_at - self._ping_sent[1]
                self._ping_sent = None
        elif isinstance(message, Refused):
            pending = self._pending.get(message.request)
            if pending is not None:
                pending.fail(PeerRefused(message.reason))
        elif isinstance(message, Bye):
            self.bye_reason = message.reason
            self._end(f"peer said bye: {message.reason}")
        elif isinstance(message, Hello):
            raise UntrustedBytes("a second hello")
        elif (serve := self._serve.get(type(message))) is not None:
            if self._outstanding >= OUTSTANDING_MAX:
                self.post(Refused(message.request, "limit"))  # type: ignore[attr-defined]
            else:
                self._outstanding += 1
                nursery.start_soon(self._guarded, self._answer, serve, message)
        elif hasattr(message, "request"):
            self.post(Refused(message.request, "denied"))
        else:
            while self._inbox_bytes and self._inbox_bytes + size_bytes > INBOX_SIZE_BYTES_MAX:
                self._inbox_room = trio.Event()
                await self._inbox_room.wait()
            self._inbox_bytes += size_bytes
            await self._inbox_in.send((message, size_bytes))

    async def _deliver(self) -> None:
        if self._on_start is not None:
            await self._on_start(self)
        async for message, size_bytes in self._inbox_out:
            self._inbox_bytes -= size_bytes
            self._inbox_room.set()
            if self._on_message is None:
                continue
            try:
                await self._on_message(self, message)
            except UntrustedBytes:
                raise
            except (SessionClosed, trio.ClosedResourceError):
                continue  # the handler spoke to a session that has just ended
            except Exception:
                _log.exception("the handler of %s from %s failed", type(message).__name__, self.device.short)

    async def _answer(self, serve: Serve, message: Any) -> None:
        request: int = message.request
        reason = ""
        try:
            async with self._serving:
                with trio.fail_after(SERVE_TIMEOUT_S):
                    data = await serve(self, message)
                await self._send_answer(request, memoryview(data))
        except Refuse as refuse:
            reason = refuse.reason
        except trio.TooSlowError:
            reason = "busy"
        except SessionClosed:
            return
        except Exception:
            _log.exception("serving %s to %s failed", type(message).__name__, self.device.short)
            reason = "error"
        finally:
            self._outstanding -= 1
        if reason and not self.closed_reason and not self._closing_reason:
            self.post(Refused(request, reason))

    async def _send_answer(self, request: int, view: memoryview) -> None:
        """Hand the answer to the writer and wait until it is written; with a pace, piece by piece as the pace allows."""
        limited = self._pace_out is not None and self._pace_out.rate_bytes_per_s > 0
        step = BULK_PIECE_SIZE_BYTES if limited else len(view)
        start = 0
        while True:
            part = view[start : start + step]
            start += len(part)
            if self._pace_out is not None:
                await self._pace_out.take(len(part))
            last = start >= len(view)
            await self._outgoing.write_part(request, part, last=last)
            if last:
                return

    async def _write(self) -> None:
        while True:
            data = self._outgoing.next_write()
            if data is None:
                if self._closing_reason:
                    return self._end(self._closing_reason)
                await self._outgoing.wait()
                continue
            with trio.move_on_after(SILENCE_S) as writing:
                await self._stream.send_all(data)
            if writing.cancelled_caught:
                return self._end(f"too slow: did not take {len(data)} bytes within {SILENCE_S:g} s")
            self._sent_at = trio.current_time()

    async def _keep_alive(self) -> None:
        while True:
            # On whole seconds, so that the sessions of a process wake it together.
            await trio.sleep_until(math.ceil(min(self._sent_at, self._heard_at) + PING_INTERVAL_S))
            now = trio.current_time()
            if min(self._sent_at, self._heard_at) + PING_INTERVAL_S <= now:
                self._pings = (self._pings + 1) & 0xFFFF_FFFF
                self._ping_sent = (self._pings, now)
                self.post(Ping(self._pings))
                # Neither time has moved yet; the answer moves both.
                await trio.sleep(PING_INTERVAL_S / 2)
