"""A policy that a release cannot satisfy is refused before it is signed, and said on the device."""

from __future__ import annotations

import pytest

from pcm_p2p.policy.fitness import why_unfit
from pcm_p2p.policy.resource import ArchiveResource, FileResource, PackageResource, Resource, ServiceResource

PACKAGE = PackageResource(artifact="a.deb")
ARCHIVE = ArchiveResource(artifact="a.tar.gz", name="a", path="/opt")
FILE = FileResource(artifact="a.bin", path="/opt/a.bin", mode=0o644)


@pytest.mark.parametrize(
    ("resource", "form"), [(PACKAGE, "deb"), (PACKAGE, "exact"), (ARCHIVE, "tar"), (ARCHIVE, "exact"), (FILE, "exact")]
)
def test_what_fits_is_let_through(resource: Resource, form: str) -> None:
    assert why_unfit([resource], {"a.deb": form, "a.tar.gz": form, "a.bin": form}) == ""


@pytest.mark.parametrize("form", ["tar", "zip", "deb"])
def test_a_file_resource_needs_the_delivered_bytes(form: str) -> None:
    assert "--form exact" in why_unfit([FILE], {"a.bin": form})


def test_an_absent_artifact_is_named() -> None:
    assert "no artifact a.deb" in why_unfit([PACKAGE], {"b.deb": "deb"})


def test_resources_without_artifacts_ask_nothing_of_the_release() -> None:
    service = ServiceResource(name="ssh.service", active=True)
    assert why_unfit([service, FileResource(path="/etc/x", content="x", mode=0o644)], {}) == ""
