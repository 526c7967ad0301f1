"""Device: the four verbs of the providers over any resource and any step of one root."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pcm_p2p.apply.providers.archive import ArchiveProvider
from pcm_p2p.apply.providers.file import FileProvider
from pcm_p2p.apply.providers.package import PackageProvider
from pcm_p2p.apply.providers.service import ServiceProvider
from pcm_p2p.apply.step import (
    InstallPackages,
    Observed,
    PackageIdentity,
    SetService,
    Staged,
    Step,
    SwitchArchive,
    WriteFile,
)
from pcm_p2p.policy.desired import Change
from pcm_p2p.policy.resource import ArchiveResource, FileResource, PackageResource

StagedArtifacts = Callable[[str], Staged]
"""Artifact name → the assembled file and the SHA-256 that the signed manifest gives for it."""


class Device:
    """Providers of one root. Blocking; called from a worker thread."""

    def __init__(
        self, packages: PackageProvider, archives: ArchiveProvider, files: FileProvider, services: ServiceProvider
    ) -> None:
        self.packages = packages
        self.archives = archives
        self.files = files
        self.services = services

    def observe(
        self, change: Change, sha256_of: Callable[[str], str], package_of: Callable[[str], PackageIdentity]
    ) -> tuple[Observed, ...]:
        """One observation for each resource. Both callables take artifact names; ``package_of`` says what a .deb holds."""
        seen: list[Observed] = []
        for resource in change.resources:
            if isinstance(resource, PackageResource):
                seen.append(self.packages.observe(package_of(resource.artifact), sha256_of(resource.artifact)))
            elif isinstance(resource, ArchiveResource):
                seen.append(self.archives.observe(resource, change.version, sha256_of(resource.artifact)))
            elif isinstance(resource, FileResource):
                wanted = sha256_of(resource.artifact) if resource.artifact is not None else None
                seen.append(self.files.observe(resource, wanted))
            else:
                seen.append(self.services.observe(resource))
        return tuple(seen)

    def replaced_packages(self, change: Change, staged: StagedArtifacts) -> tuple[PackageIdentity, ...]:
        """The packages that ``change`` would replace, as they are installed now."""
        wanted = [one.artifact for one in change.resources if isinstance(one, PackageResource)]
        found = [self.packages.replaced(self.packages.identify(staged(artifact))) for artifact in wanted]
        return tuple(one for one in found if one is not None)

    def prepare(self, step: Step, backups: Path) -> None:
        if isinstance(step, InstallPackages):
            self.packages.prepare(step, backups)
        elif isinstance(step, WriteFile):
            self.files.prepare(step, backups)

    def change(self, step: Step, staged: StagedArtifacts) -> None:
        if isinstance(step, InstallPackages):
            self.packages.change(step, staged)
        elif isinstance(step, SwitchArchive):
            self.archives.change(step, staged(step.artifact) if step.unpack else None)
        elif isinstance(step, WriteFile):
            self.files.change(step, staged(step.artifact) if step.artifact and step.sha256 else None)
        else:
            self.services.change(step)

    def undo(self, step: Step, backups: Path) -> None:
        if isinstance(step, InstallPackages):
            self.packages.undo(step, backups)
        elif isinstance(step, SwitchArchive):
            self.archives.undo(step)
        elif isinstance(step, WriteFile):
            self.files.undo(step, backups)
        else:
            self.services.undo(step)

    def commit(self, step: Step) -> None:
        """Let go of what only an undo would have needed."""
        if isinstance(step, SwitchArchive):
            self.archives.commit(step)

    def needs_settling(self, step: Step) -> bool:
        """Whether what the step started has to prove that it stays up."""
        return isinstance(step, SetService) and (step.restart or bool(step.active))
