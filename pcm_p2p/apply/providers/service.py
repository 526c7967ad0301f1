"""Services: systemd units, through ``systemctl``. Only for the running system: a private root has no services of its own."""

from __future__ import annotations

from pcm_p2p.apply.command import Completed, Runner, run
from pcm_p2p.apply.root import Root
from pcm_p2p.apply.step import ServiceObserved, SetService
from pcm_p2p.errors import ApplyError
from pcm_p2p.policy.resource import ServiceResource

ASK_S = 20.0
ACT_S = 180.0
"""systemd gives a unit 90 s to start or stop by default; a restart is both."""

_ENABLED = ("enabled", "enabled-runtime", "static", "alias", "indirect", "generated")


class ServiceProvider:
    """``runner`` is the seam to ``systemctl``."""

    def __init__(self, root: Root, runner: Runner = run) -> None:
        self._root = root
        self._run = runner

    def observe(self, resource: ServiceResource) -> ServiceObserved:
        if not self._root.is_system:
            raise ApplyError(
                f"{resource.name}: services belong to the running system, not to a private root",
                remedy="Leave services out of releases for devices whose [apply] root is not /.",
            )
        answer = self._systemctl(ASK_S, "show", "--property=LoadState,UnitFileState,ActiveState", "--", resource.name)
        if answer.status != 0:
            raise ApplyError(f"systemd does not answer: {answer.complaint}", remedy="Check 'systemctl status'.")
        facts = dict(line.partition("=")[::2] for line in answer.text.splitlines())
        return ServiceObserved(
            present=facts.get("LoadState") not in ("not-found", None),
            enabled=facts.get("UnitFileState") in _ENABLED,
            active=facts.get("ActiveState") in ("active", "reloading", "activating"),
        )

    def change(self, step: SetService) -> None:
        self._must("daemon-reload")
        if step.enabled is not None and step.enabled != step.was_enabled:
            self._must("enable" if step.enabled else "disable", step.name)
        if step.active is not None and step.active != step.was_active:
            self._must("start" if step.active else "stop", step.name)
        elif step.restart:
            self._must("restart", step.name)

    def undo(self, step: SetService) -> None:
        self._must("daemon-reload")
        if step.enabled is not None and step.enabled != step.was_enabled:
            self._must("enable" if step.was_enabled else "disable", step.name)
        if step.was_active and step.restart:
            self._must("restart", step.name)
        elif step.active is not None and step.active != step.was_active:
            self._must("start" if step.was_active else "stop", step.name)

    def _must(self, verb: str, *units: str) -> None:
        answer = self._systemctl(ACT_S, "--no-ask-password", verb, *(("--", *units) if units else ()))
        if answer.status != 0:
            raise ApplyError(
                f"systemctl {verb} {' '.join(units)} failed: {answer.complaint}",
                remedy=f"See 'journalctl -u {units[0]}'." if units else None,
            )

    def _systemctl(self, timeout_s: float, *arguments: str) -> Completed:
        return self._run(("systemctl", "--no-pager", *arguments), timeout_s)
