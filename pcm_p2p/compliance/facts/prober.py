"""Prober: the probe for each kind of check, and every way of not knowing as ``Unknown``. Blocking: for worker threads."""

from __future__ import annotations

import time
from pathlib import Path

from pcm_p2p.compliance.facts import file, file_content, mount, service, sysctl
from pcm_p2p.compliance.facts.below_root import Below
from pcm_p2p.compliance.facts.observation import CannotTell, Observation, OutOfBudget, Unknown
from pcm_p2p.compliance.facts.package import PackageProbe
from pcm_p2p.policy.document import (
    AnyCheck,
    FileCheck,
    FileContentCheck,
    MountCheck,
    PackageCheck,
    ServiceCheck,
    SysctlCheck,
)

CHECK_TIMEOUT_S = 10.0
"""Choice (research/compliance.md 2, example policy)."""


class Prober:
    """Observes below ``root``. ``procfs`` and ``run`` (systemctl) are the seams for fixture trees."""

    def __init__(self, root: Path, *, procfs: Path = Path("/proc"), run: service.Run = service.run_command) -> None:
        self._root = root
        self._procfs = procfs
        self._run = run
        self._packages = PackageProbe()

    def observe(self, check: AnyCheck, timeout_s: float = CHECK_TIMEOUT_S) -> Observation:
        """What is there of the check's object. Never raises on account of what is there: that becomes ``Unknown``."""
        try:
            return self._observe(check, Below(self._root, time.monotonic() + timeout_s))
        except CannotTell as error:
            unknown = Unknown("error", str(error))
        except OutOfBudget as error:
            unknown = Unknown("not_run", str(error))
        except Exception as error:  # one probe that breaks must not take the other checks with it
            unknown = Unknown("error", f"the probe broke: {type(error).__name__}: {error}")
        asked = [condition.attribute for condition in check.conditions()]
        return dict.fromkeys([*asked, "hits"], unknown)

    def _observe(self, check: AnyCheck, below: Below) -> Observation:
        match check:
            case PackageCheck():
                return self._packages.observe(below, check.name)
            case FileCheck():
                return file.observe(below, check.path, hashed=check.sha256 is not None)
            case FileContentCheck():
                return file_content.observe(below, check.path, check.pattern)
            case SysctlCheck():
                return sysctl.observe(below, self._procfs, check.key)
            case ServiceCheck():
                if not below.is_system:
                    raise CannotTell("a private root has no running services")
                return service.observe(self._run, check.name)
            case MountCheck():
                return mount.observe(below, self._procfs, check.path)
