"""Renewal: keeps the certificate of this device, or collector, from ending.

Due at two thirds of its life (``enrolment.renewal_times``), and soon after another authority certifies (``look_again``). The
way is that of an enrolment: the desk directly, else through neighbours, whose addresses are known even to a device whose
certificate has ended and whom they refuse otherwise. The new certificate is written atomically; then ``installed`` puts it to
use without a restart. Sessions that are open go on.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Any

import trio

from pcm_p2p.enrolment.errand import LookAround, NotTheDesk
from pcm_p2p.enrolment.renew import renew
from pcm_p2p.enrolment.renewal_times import due, retry
from pcm_p2p.errors import PcmError, TrustError
from pcm_p2p.trust.identity import DeviceIdentity, is_certified_by_first_untrusted, peer_identity_untrusted

LOOK_S = 3_600.0
"""Choice: clocks are set and laptops sleep, so the time is looked at at least this often."""
NEW_AUTHORITY_S = 3_600.0
"""Choice: when another authority certifies, a fleet renews within an hour of having read of it, not at once."""
START_S_MIN, START_S_MAX = 0.5, 5.0
"""Choice: after a start, so that neighbours are known and an office that is switched on together does not come at once."""

log = logging.getLogger(__name__)


class Renewal:
    """``now`` is the time that signed documents prove at least; ``desks`` and ``neighbours`` are asked for at each attempt.

    ``installed`` is awaited with the new identity and must not raise. ``identity`` is the present one.
    """

    def __init__(
        self,
        identity: DeviceIdentity,
        *,
        now: Callable[[], datetime],
        desks: Callable[[], Sequence[str]],
        authorities_pem: Callable[[], bytes],
        neighbours: Callable[[], Sequence[tuple[str, int]]],
        look_around: LookAround | None,
        installed: Callable[[DeviceIdentity], Awaitable[object]],
        rng: Random,
    ) -> None:
        self.identity = identity
        self.problem = ""
        self._now = now
        self._desks = desks
        self._authorities_pem = authorities_pem
        self._neighbours = neighbours
        self._look_around = look_around
        self._installed = installed
        self._rng = rng
        self._failures = 0
        self._again = trio.Event()
        self._not_before, self._due = self._dates()

    def facts(self) -> dict[str, Any]:
        """For status: when the certificate ends and is renewed (ISO 8601, UTC), how many days are left, the last problem."""
        left = self.identity.not_after - self._now()
        return {
            "ends": self.identity.not_after.isoformat(timespec="seconds"),
            "renewed": self._due.isoformat(timespec="seconds"),
            "days_left": left // timedelta(days=1),
            "problem": self.problem,
        }

    def problems(self) -> list[str]:
        """What a person should know: an end that has come, or a renewal that keeps failing."""
        ended = self._now() > self.identity.not_after
        if ended:
            reason = f": {self.problem}" if self.problem else ""
            return [
                f"the certificate ended on {self.identity.not_after:%Y-%m-%d}, neighbours refuse this device{reason}"
            ]
        return [f"the certificate could not be renewed: {self.problem}"] if self.problem else []

    def look_again(self) -> None:
        """Another authority may certify now: a certificate of the one before it ends when that one is retired."""
        pem = self._authorities_pem()
        if pem and not is_certified_by_first_untrusted(self.identity.certificate_der, pem):
            soon = self._now() + timedelta(seconds=self._rng.uniform(0.5, 1.0) * NEW_AUTHORITY_S)
            if soon < self._due:
                self._due = soon
                self._again.set()

    async def run(self) -> None:
        """Renew in time, until cancelled."""
        await trio.sleep(self._rng.uniform(START_S_MIN, START_S_MAX))
        while True:
            await self._take_from_disk()
            self.look_again()
            wait_s = (self._due - self._now()).total_seconds()
            if wait_s > 0:
                self._again = trio.Event()
                with trio.move_on_after(min(wait_s, LOOK_S)):
                    await self._again.wait()
                continue
            await trio.sleep(await self.attempt())

    async def attempt(self) -> float:
        """Go to the desk once; seconds until the next look."""
        try:
            identity, brought = await renew(
                self.identity,
                self._desks(),
                self._authorities_pem(),
                self._now(),
                neighbours=self._neighbours(),
                look_around=self._look_around,
            )
        except PcmError as error:
            return self._failed(error)
        await self._use(identity, f"through {brought.through}" if brought.through else f"at {brought.address}")
        return 0.0

    async def _take_from_disk(self) -> None:
        """Somebody may have renewed by 'enroll join'. Reads a few small files, once an hour or an attempt."""
        try:
            found = DeviceIdentity.load(self.identity.folder)
        except TrustError:
            return  # what is in memory goes on; doctor says what is wrong with the folder
        if found.device_id == self.identity.device_id and found.certificate_der != self.identity.certificate_der:
            await self._use(found, "by hand")

    async def _use(self, identity: DeviceIdentity, how: str) -> None:
        self.identity, self._failures, self.problem = identity, 0, ""
        self._not_before, self._due = self._dates()
        self.look_again()
        log.info("the certificate was renewed %s and is good until %s", how, identity.not_after.date())
        await self._installed(identity)

    def _failed(self, error: PcmError) -> float:
        self._failures += 1
        # A desk that says no is not asked again in minutes.
        refused = isinstance(error, TrustError) and not isinstance(error, NotTheDesk)
        failures = max(self._failures, 10) if refused else self._failures
        wait = retry(failures, self._not_before, self.identity.not_after, self._now(), self._rng)
        if error.message != self.problem:
            log.warning(
                "the certificate could not be renewed, and is good until %s: %s", self.identity.not_after, error
            )
        self.problem = error.message
        return wait.total_seconds()

    def _dates(self) -> tuple[datetime, datetime]:
        """When the present certificate began, and when it is renewed."""
        dates = peer_identity_untrusted(self.identity.certificate_der)  # it was loaded, so it reads
        return dates.not_before, due(dates.not_before, dates.not_after, self._rng)
