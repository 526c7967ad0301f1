"""The plan: only what is missing, in an order that works, and undone in one that works too."""

from __future__ import annotations

import pytest

from pcm_p2p.apply.plan import in_place, plan, undo_order
from pcm_p2p.apply.step import (
    ArchiveObserved,
    FileObserved,
    InstallPackages,
    Observed,
    PackageIdentity,
    PackageObserved,
    ServiceObserved,
    SetService,
    SwitchArchive,
    WriteFile,
)
from pcm_p2p.policy.desired import Change
from pcm_p2p.policy.resource import ArchiveResource, FileResource, PackageResource, Resource, ServiceResource

PACKAGE = PackageResource(artifact="a.deb")
WANTED = PackageIdentity("a", "2", "amd64")
ARCHIVE = ArchiveResource(artifact="a.tar", name="a", path="/opt/a")
FILE = FileResource(path="/etc/a", content="x")
SERVICE = ServiceResource(name="a.service", active=True, restart_on_change=True)

TABLE: list[tuple[str, Resource, Observed, bool]] = [
    ("absent package", PACKAGE, PackageObserved(WANTED, "h"), False),
    ("older package", PACKAGE, PackageObserved(WANTED, "h", "ii", "1", "amd64"), False),
    ("package", PACKAGE, PackageObserved(WANTED, "h", "ii", "2", "amd64"), True),
    ("held package", PACKAGE, PackageObserved(WANTED, "h", "hi", "2", "amd64"), True),
    ("half configured package", PACKAGE, PackageObserved(WANTED, "h", "iF", "2", "amd64"), False),
    ("package to reinstall", PACKAGE, PackageObserved(WANTED, "h", "iiR", "2", "amd64"), False),
    ("other architecture", PACKAGE, PackageObserved(WANTED, "h", "ii", "2", "i386"), False),
    ("no archive", ARCHIVE, ArchiveObserved("h", False, "", None), False),
    ("archive", ARCHIVE, ArchiveObserved("h", True, "h", "a-1"), True),
    ("archive of other bytes", ARCHIVE, ArchiveObserved("h", True, "other", "a-1"), False),
    ("archive not linked", ARCHIVE, ArchiveObserved("h", True, "h", "a-0"), False),
    ("no file", FILE, FileObserved(False, "h", None, None), False),
    ("file", FILE, FileObserved(True, "h", None, None, "h", 0o600), True),
    ("other bytes", FILE, FileObserved(True, "h", None, None, "i", 0o600), False),
    ("other owner", FILE, FileObserved(True, "h", 0, None, "h", 0o600, 5), False),
    ("other mode", FileResource(path="/a", mode=0o644), FileObserved(True, None, None, None, "", 0o600), False),
    ("mode", FileResource(path="/a", mode=0o600), FileObserved(True, None, None, None, "", 0o600), True),
    ("attributes of nothing", FileResource(path="/a", mode=0o600), FileObserved(False, None, None, None), False),
    ("running service", SERVICE, ServiceObserved(True, False, True), True),
    ("stopped service", SERVICE, ServiceObserved(True, False, False), False),
]


@pytest.mark.parametrize(("resource", "seen", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_step_is_planned_exactly_when_something_is_missing(
    resource: Resource, seen: Observed, expected: bool
) -> None:
    assert in_place(resource, seen, "1") is expected


def test_packages_come_first_in_one_run_and_services_last() -> None:
    change = Change("a", "1", (SERVICE, FILE, ARCHIVE, PACKAGE, PackageResource(artifact="b.deb")))
    steps = plan(
        change,
        (
            ServiceObserved(True, True, True),
            FileObserved(False, "h", None, None),
            ArchiveObserved("h", False, "", None),
            PackageObserved(WANTED, "h"),
            PackageObserved(PackageIdentity("b", "1", "all"), "h"),
        ),
    ).steps
    assert [type(step) for step in steps] == [InstallPackages, SwitchArchive, WriteFile, SetService]
    assert steps[0].title == "install a 2, b 1"
    assert steps[3].title == "restart a.service"
    assert undo_order(steps) == (2, 1, 0, 3), "restarted after everything that it reads is back"


def test_a_service_that_comes_with_the_package_is_stopped_before_the_package_goes() -> None:
    change = Change("a", "1", (PACKAGE, SERVICE))
    steps = plan(change, (PackageObserved(WANTED, "h"), ServiceObserved(False, False, False))).steps
    assert undo_order(steps) == (1, 0)


def test_a_service_is_not_restarted_when_nothing_changed() -> None:
    change = Change("a", "1", (FILE, SERVICE))
    assert (
        plan(change, (FileObserved(True, "h", None, None, "h", 0o644), ServiceObserved(True, True, True))).steps == ()
    )


def test_the_plan_says_what_could_not_be_rolled_back() -> None:
    change = Change("a", "1", (PACKAGE,))
    assert plan(change, (PackageObserved(WANTED, "h", "ii", "1", "amd64"),)).irreversible == ("a 1",)
    assert plan(change, (PackageObserved(WANTED, "h", "ii", "1", "amd64", backup=True),)).irreversible == ()
    assert plan(change, (PackageObserved(WANTED, "h", "rc", "1", "amd64"),)).irreversible == ()
