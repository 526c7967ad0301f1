"""Plan: a change minus what is observed, as ordered reversible steps. Pure.

Order: packages (they bring folders, accounts and units), archives, files, services last; a service that restarts on change
does so when anything before it in the plan changes. Undoing goes backwards, but for services: one that was off is turned
off before its package goes, and one that was on is restarted after everything else, so that it reads what was restored.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pcm_p2p.apply.step import (
    ArchiveObserved,
    FileObserved,
    InstallPackages,
    Observed,
    PackageChange,
    PackageObserved,
    ServiceObserved,
    SetService,
    Step,
    SwitchArchive,
    WriteFile,
    is_configured,
)
from pcm_p2p.policy.desired import Change
from pcm_p2p.policy.resource import (
    ArchiveResource,
    FileResource,
    PackageResource,
    Resource,
    ServiceResource,
    below_root,
)

MODE_OF_NEW_FILES = 0o644


class Plan(msgspec.Struct, frozen=True):
    """``steps`` in the order in which they are made; none when the device is as the change wants it."""

    change: Change
    steps: tuple[Step, ...]

    @property
    def irreversible(self) -> tuple[str, ...]:
        """What could not be rolled back: packages whose installed version is not at hand as a .deb."""
        return tuple(
            f"{package.wanted.name} {package.previous_version}"
            for step in self.steps
            if isinstance(step, InstallPackages)
            for package in step.packages
            if package.previous_version and package.backup is None
        )


def plan(change: Change, observed: Sequence[Observed]) -> Plan:
    """The steps from ``observed`` (one for each resource of ``change``, in its order) to the change."""
    packages: list[PackageChange] = []
    archives: list[Step] = []
    files: list[Step] = []
    services: list[tuple[ServiceResource, ServiceObserved]] = []
    for number, (resource, seen) in enumerate(zip(change.resources, observed, strict=True)):
        if isinstance(resource, PackageResource) and isinstance(seen, PackageObserved):
            packages += _package(resource, seen, number)
        elif isinstance(resource, ArchiveResource) and isinstance(seen, ArchiveObserved):
            archives += _archive(resource, seen, change.version)
        elif isinstance(resource, FileResource) and isinstance(seen, FileObserved):
            files += _file(resource, seen, number)
        elif isinstance(resource, ServiceResource) and isinstance(seen, ServiceObserved):
            services.append((resource, seen))
        else:
            raise TypeError(f"{resource.key} was observed as {type(seen).__name__}")
    steps = [*([InstallPackages(tuple(packages))] if packages else []), *archives, *files]
    changed = bool(steps)
    steps += [step for resource, seen in services for step in _service(resource, seen, changed)]
    return Plan(change, tuple(steps))


def undo_order(steps: Sequence[Step]) -> tuple[int, ...]:
    """The positions of ``steps`` in the order in which they are undone."""
    backwards = range(len(steps) - 1, -1, -1)
    return tuple(sorted(backwards, key=lambda at: _undo_rank(steps[at])))


def _undo_rank(step: Step) -> int:
    if not isinstance(step, SetService):
        return 1
    return 2 if step.was_active or step.was_enabled else 0


def archive_folder(resource: ArchiveResource, version: str) -> str:
    """The name of the folder that holds one version of an archive."""
    return f"{resource.name}-{version}"


def in_place(resource: Resource, seen: Observed, version: str) -> bool:
    """Whether ``seen`` is what ``resource`` asks for, so that no step is needed."""
    return not plan(Change("", version, (resource,)), (seen,)).steps


def _package(resource: PackageResource, seen: PackageObserved, number: int) -> list[PackageChange]:
    if is_configured(seen.status) and (seen.version, seen.architecture) == (
        seen.wanted.version,
        seen.wanted.architecture,
    ):
        return []
    unpacked = bool(seen.status) and seen.status[1:2] not in ("n", "c")
    return [
        PackageChange(
            artifact=resource.artifact,
            sha256=seen.sha256,
            wanted=seen.wanted,
            previous_status=seen.status,
            previous_version=seen.version if unpacked else "",
            previous_architecture=seen.architecture if unpacked else "",
            backup=f"{number}.deb" if unpacked and seen.backup else None,
        )
    ]


def _archive(resource: ArchiveResource, seen: ArchiveObserved, version: str) -> list[Step]:
    folder = archive_folder(resource, version)
    complete = seen.folder_sha256 == seen.sha256
    if complete and seen.link_target == folder:
        return []
    return [
        SwitchArchive(
            path=str(below_root(resource.path)),
            link=resource.link,
            folder=folder,
            artifact=resource.artifact,
            sha256=seen.sha256,
            unpack=not complete,
            replaces=seen.folder_exists and not complete,
            previous_target=seen.link_target,
            made_folders=seen.made_folders,
        )
    ]


def _file(resource: FileResource, seen: FileObserved, number: int) -> list[Step]:
    mode = resource.mode if resource.mode is not None else seen.mode if seen.present else MODE_OF_NEW_FILES
    same_bytes = seen.wanted_sha256 is None or (seen.present and seen.sha256 == seen.wanted_sha256)
    same_attributes = (
        seen.present
        and seen.mode == mode
        and seen.wanted_uid in (None, seen.uid)
        and seen.wanted_gid in (None, seen.gid)
    )
    if same_bytes and same_attributes:
        return []
    return [
        WriteFile(
            path=str(below_root(resource.path)),
            content=resource.content,
            artifact=resource.artifact,
            sha256=None if same_bytes else seen.wanted_sha256,
            mode=mode,
            uid=seen.wanted_uid,
            gid=seen.wanted_gid,
            existed=seen.present,
            previous_mode=seen.mode,
            previous_uid=seen.uid,
            previous_gid=seen.gid,
            backup=f"{number}.file" if seen.present and not same_bytes else None,
            made_folders=seen.made_folders,
            previous_sha256=seen.sha256 if seen.present and not same_bytes else "",
        )
    ]


def _service(resource: ServiceResource, seen: ServiceObserved, changed: bool) -> list[Step]:
    restart = resource.restart_on_change and changed and seen.active and resource.active is not False
    if resource.enabled in (None, seen.enabled) and resource.active in (None, seen.active) and not restart:
        return []
    return [
        SetService(
            name=resource.name,
            enabled=resource.enabled,
            active=resource.active,
            restart=restart,
            was_enabled=seen.enabled,
            was_active=seen.active,
        )
    ]
