"""What must be root is apart from the network: what the apply service does for an honest daemon, and what for one that lies.

The rows of attacks are what somebody can try who has the network's daemon in his hand: its user, its socket, its metadata, its
artifacts. Each ends with the device unchanged, or with what is signed for it now.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import floors
import pytest
import trio
from apply_world import HAS_DPKG, ApplyWorld, Liar, tar_of
from repository_simulator import PASSPHRASE, RepositorySimulator, TreeSource, killed_before

from pcm_p2p.apply.dialogue import (
    REQUEST_BYTES_MAX,
    Answer,
    Apply,
    AskArtifact,
    AskPackage,
    Bring,
    Ended,
    GetReceipts,
    GetStanding,
    InPlace,
    NoMore,
    Observe,
    Observed,
    Offer,
    Question,
    Refused,
    Reset,
    Said,
    Standing,
    encode,
)
from pcm_p2p.apply.judgement import digest_of_check
from pcm_p2p.apply.receipt import ATTEMPTS_MAX
from pcm_p2p.authority import halting
from pcm_p2p.authority.keys.signing_key import open_signing_key
from pcm_p2p.authority.people.founders import Founders
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.site_repository import found_site, signed_root
from pcm_p2p.compliance.facts.observation import Unknown
from pcm_p2p.compliance.facts.prober import Prober
from pcm_p2p.content.publishing.ingest import ingest
from pcm_p2p.daemon import doctor
from pcm_p2p.daemon.applying.channel import Channel, ChannelClosed
from pcm_p2p.daemon.applying.client import RemoteProber, ServiceUnreachable, ask_once
from pcm_p2p.errors import TrustError
from pcm_p2p.policy.desired import Change
from pcm_p2p.policy.document import FileCheck
from pcm_p2p.policy.resource import FileResource
from pcm_p2p.trust.delegation import HALT


@pytest.fixture(name="world")
def _world(tmp_path: Path, fleet: RepositorySimulator, quick_disk: None) -> Iterator[ApplyWorld]:
    world = ApplyWorld(tmp_path, fleet)
    with world.daemon:
        yield world


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def refusal(said: Said) -> str:
    assert isinstance(said, Refused), said
    return said.message


# An honest daemon


async def test_a_file_comes_to_the_device_through_the_service(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    async with world.serving():
        remote, desired = world.remote(), await world.refresh()
        await remote.resume()
        change = desired.releases[0].change
        assert not await remote.is_in_place(change, {})
        outcome = await remote.apply(change, desired.authorisation, world.staged)
        assert (outcome.verdict, outcome.error) == ("done", "")
        assert world.installed == b"first"
        assert await remote.is_in_place(change, {})
        assert [receipt.applied_version for receipt in remote.receipts()] == ["1"]
    assert list((world.folder / "state/staging").glob("*")) == [], "nothing of a change that has ended is left"


async def test_an_archive_comes_to_the_device_through_the_service(world: ApplyWorld) -> None:
    world.staged.put("app.tar", tar_of(("bin/app", b"run"), ("doc", b"text")))
    world.release("1", "app.tar")
    world.publish('kind = "archive"\nartifact = "app.tar"\nname = "app"\npath = "/opt/app"')
    async with world.serving():
        desired = await world.refresh()
        outcome = await world.remote().apply(desired.releases[0].change, desired.authorisation, world.staged)
    assert (outcome.verdict, outcome.error) == ("done", "")
    assert (world.root / "opt/app/current/bin/app").read_bytes() == b"run"


@pytest.mark.debian
@pytest.mark.skipif(not HAS_DPKG, reason="dpkg and dpkg-deb are not here")
async def test_a_package_comes_to_the_device_and_the_one_before_comes_back_if_it_fails(world: ApplyWorld) -> None:
    for version in ("1", "2"):
        world.staged.put_deb(f"a_{version}.deb", "pcm-test-a", version, {"usr/share/a/x": version})
    package = 'kind = "package"\nartifact = "a_{0}.deb"'
    world.release("1", "a_1.deb")
    world.publish(package.format(1))
    async with world.serving():
        desired, remote = await world.refresh(), world.remote({"pcm-test-a 1": world.staged.folder / "a_1.deb"})
        outcome = await remote.apply(desired.releases[0].change, desired.authorisation, world.staged)
        assert (outcome.verdict, outcome.error) == ("done", "")
        assert (world.root / "usr/share/a/x").read_text() == "1"
        # The second brings the package, and a file for which there is no place.
        (world.root / "blocked").write_text("not a folder")
        world.release("2", "a_2.deb")
        world.publish(package.format(2), 'kind = "file"\npath = "/blocked/x"\ncontent = "x"', version="2")
        desired = await world.refresh()
        (world.root / "blocked").unlink()
        (world.root / "blocked").mkdir()
        (world.root / "blocked/x").mkdir()
        outcome = await remote.apply(desired.releases[0].change, desired.authorisation, world.staged)
        assert outcome.verdict == "rolled_back", outcome
        assert (world.root / "usr/share/a/x").read_text() == "1"
        # Without what is in the way it goes through, and then it can be gone back to by a later release, too.
        (world.root / "blocked/x").rmdir()
        world.clock.advance(minutes=2)
        desired = await world.refresh()
        outcome = await remote.apply(desired.releases[0].change, desired.authorisation, world.staged)
        assert (outcome.verdict, outcome.error) == ("done", "")
        assert (world.root / "usr/share/a/x").read_text() == "2"


@pytest.mark.debian
@pytest.mark.skipif(not HAS_DPKG, reason="dpkg and dpkg-deb are not here")
async def test_only_the_bytes_that_were_applied_before_count_as_the_package_to_go_back_to(world: ApplyWorld) -> None:
    for version in ("1", "2"):
        world.staged.put_deb(f"a_{version}.deb", "pcm-test-a", version, {"usr/share/a/x": version})
    world.staged.put_deb("evil.deb", "pcm-test-a", "1", {"usr/share/a/x": "evil"})
    world.release("1", "a_1.deb")
    world.publish('kind = "package"\nartifact = "a_1.deb"')
    async with world.serving():
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()
        assert isinstance(await liar.apply(desired.releases[0].change), Ended)
        world.release("2", "a_2.deb")
        world.publish('kind = "package"\nartifact = "a_2.deb"', version="2")
        desired = await world.refresh()
        await liar.offer()

        async def bring(question: Question, channel: Channel) -> None:
            if isinstance(question, AskPackage):
                data = (world.staged.folder / "evil.deb").read_bytes()
                assert question.version == "1"
                await channel.give(data.ljust(question.size_bytes, b"\0")[: question.size_bytes])
            else:
                await liar.bring(question, channel)

        said = await liar.apply(desired.releases[0].change, bring)
        assert isinstance(said, Ended)
        assert any(isinstance(question, AskPackage) for question in liar.asked)
        assert (world.root / "usr/share/a/x").read_text() == "2"


async def test_a_remedy_of_a_check_is_made_through_the_service(world: ApplyWorld) -> None:
    world.publish(checks=CHECK)
    (world.root / "etc/motd").write_text("old\n")
    async with world.serving():
        desired, remote = await world.refresh(), world.remote()
        (check,) = desired.checks
        assert check.remedy is not None
        outcome = await remote.apply(check.remedy, desired.authorisation, world.staged)
        assert (outcome.verdict, outcome.error) == ("done", "")
    assert (world.root / "etc/motd").stat().st_mode & 0o7777 == 0o600


CHECK = """
[[check]]
id = "motd"
resource = "file"
path = "/etc/motd"
mode = { eq = 0o600 }
remediate = true
"""


async def test_checks_of_files_are_looked_at_by_the_service_and_only_those_of_the_policies(world: ApplyWorld) -> None:
    world.publish(checks=CHECK)
    (world.root / "etc/motd").write_text("old\n")
    (world.root / "etc/motd").chmod(0o640)
    async with world.serving():
        desired = await world.refresh()
        await Liar(world).offer()
        prober = RemoteProber(world.socket, Prober(world.root))
        seen = await trio.to_thread.run_sync(prober.observe, desired.checks[0].check)
        assert (seen["mode"], seen["exists"]) == (0o640, True)
        other = FileCheck(id="shadow", path="/etc/shadow", exists=True)
        seen = await trio.to_thread.run_sync(prober.observe, other)
        assert isinstance(seen["exists"], Unknown)
        assert "no signed policy" in seen["exists"].reason
    seen = await trio.to_thread.run_sync(prober.observe, desired.checks[0].check)
    assert isinstance(seen["mode"], Unknown)
    assert "does not answer" in seen["mode"].reason


async def test_what_policies_only_observe_is_looked_at_by_the_service_though_no_change_is_due(
    world: ApplyWorld,
) -> None:
    world.publish(mode="observe", checks=CHECK.replace("remediate = true\n", ""))
    (world.root / "etc/motd").write_text("old\n")
    (world.root / "etc/motd").chmod(0o640)
    desired, remote = await world.refresh(), world.remote()
    await remote.learn()  # nobody is there: whatever asks says so
    async with world.serving():
        await remote.learn()
        prober = RemoteProber(world.socket, Prober(world.root))
        seen = await trio.to_thread.run_sync(prober.observe, desired.checks[0].check)
    assert seen["mode"] == 0o640


async def test_what_arrives_without_a_new_version_goes_over_too(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    world.halt("tool", "1")
    world.publish_file("2", b"second")
    withheld = {path: data for path, data in world.simulator.tree().items() if not path.endswith(".halt.json")}
    async with world.serving() as service:
        remote = world.remote()
        assert (await world.daemon.attempt(TreeSource(withheld))).kind == "good"
        await remote.learn()
        assert service._trust.desired().why_not.startswith("The newest list of halts has not arrived")
        desired = await world.refresh()
        await remote.learn()
        assert service._trust.desired().why_not == ""
        outcome = await remote.apply(desired.releases[0].change, desired.authorisation, world.staged)
        assert outcome.verdict == "done"


async def test_probes_that_hang_cost_their_checks_and_nothing_else(world: ApplyWorld) -> None:
    world.publish_file("1", b"first", checks=CHECK)
    released = threading.Event()
    async with world.serving() as service:
        service._prober.observe = lambda check, timeout_s: {"hung": released.wait(60)}  # type: ignore[method-assign]
        desired, liar = await world.refresh(), Liar(world)
        await liar.offer()
        request = Observe(digest_of_check(desired.checks[0].check), 10)
        try:
            for why in ("did not answer within 0.01 s", "did not answer within 0.01 s", "earlier probes hang"):
                seen = await liar.ask(request)
                assert isinstance(seen, Observed)
                assert {(fact.unknown, why in fact.reason) for fact in seen.facts} == {("not_run", True)}
            assert isinstance(await liar.apply(desired.releases[0].change), Ended)
        finally:
            released.set()
    assert world.installed == b"first"


async def test_it_says_what_it_is_and_trusts(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    async with world.serving():
        before = await trio.to_thread.run_sync(ask_once, world.socket, GetStanding())
        await Liar(world).offer()
        after = await trio.to_thread.run_sync(ask_once, world.socket, GetStanding())
    assert isinstance(before, Standing)
    assert isinstance(after, Standing)
    assert (before.versions, before.changes_allowed) == ((0, 0, 0, 0), False)
    assert (after.site, after.labels, after.freshness, after.changes_allowed) == ("office", ("desktop",), "fresh", True)


async def test_doctor_looks_at_the_service(world: ApplyWorld) -> None:
    state = world.folder / "daemon"
    state.mkdir()
    config = state / "config.toml"
    config.write_text('[apply]\nroot = "/srv/root"\n')
    assert doctor._apply_service(state) == [], "where the daemon applies below a private root"
    config.write_text('[device]\nsite = "office"\n')
    (item,) = doctor._apply_service(state)
    assert (item.state, "who takes it over" in item.what) == ("warn", True)
    config.write_text(f'[device]\nsite = "office"\nlabels = ["desktop"]\n[apply]\nservice = "{world.socket}"\n')

    async def look() -> tuple[str, str]:
        (item,) = await trio.to_thread.run_sync(doctor._apply_service, state)
        return item.state, item.what

    assert (await look())[0] == "bad"
    async with world.serving():
        assert await look() == ("ok", "answers, trusts frozen metadata")
        config.write_text(config.read_text().replace("desktop", "server"))
        assert await look() == (
            "warn",
            "takes this for site office, labels desktop; config.toml says otherwise",
        )


async def test_a_daemon_without_its_service_is_told_so(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    desired, remote = await world.refresh(), world.remote()
    with pytest.raises(ServiceUnreachable, match="does not answer"):
        await remote.is_in_place(desired.releases[0].change, {})
    async with world.serving():
        assert not await remote.is_in_place(desired.releases[0].change, {}), "and asked again later"


async def test_why_the_service_hangs_up_is_heard_in_the_middle_of_sending(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    (world.staged.folder / "tool-1.bin").write_bytes(bytes(8 << 20))
    async with world.serving():
        desired, remote = await world.refresh(), world.remote()
        with pytest.raises(TrustError, match=r"offers 8388608 bytes for 0-tool-1\.bin; 5 were signed"):
            await remote.apply(desired.releases[0].change, desired.authorisation, world.staged)


async def test_news_go_over_once(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    async with world.serving() as service:
        desired, remote = await world.refresh(), world.remote()
        for _ in range(3):
            await remote.is_in_place(desired.releases[0].change, {})
        assert service._trust.fleet.statistics() == {"good": 1}


# A daemon that lies: what is not due


Prepare = Callable[[ApplyWorld], None]


def for_another_device(world: ApplyWorld) -> None:
    world.publish_file("1", b"first", to=f'devices = ["{"f" * 32}"]')


def for_another_label(world: ApplyWorld) -> None:
    world.publish_file("1", b"first", to='labels = ["server"]')


def not_activated(world: ApplyWorld) -> None:
    world.publish_file("1", b"first", activate=False)


def only_observed(world: ApplyWorld) -> None:
    world.publish_file("1", b"first", mode="observe")


def only_notified(world: ApplyWorld) -> None:
    world.publish_file("1", b"first", mode="notify")


NOT_DUE: dict[str, tuple[Prepare, str]] = {
    "for another device": (for_another_device, "do not assign tool 1"),
    "for another label": (for_another_label, "do not assign tool 1"),
    "not activated": (not_activated, "no signed activation"),
    "policy observes": (only_observed, "mode observe"),
    "policy notifies": (only_notified, "mode notify"),
}


@pytest.mark.parametrize("row", NOT_DUE)
async def test_what_is_not_due_is_not_made(world: ApplyWorld, row: str) -> None:
    prepare, reason = NOT_DUE[row]
    prepare(world)
    change = Change("tool", "1", (FileResource(artifact="tool-1.bin", path="/opt/tool"),))
    async with world.serving():
        liar = Liar(world)
        assert (await liar.offer()).kind == "good"
        assert reason in refusal(await liar.apply(change))
        assert not any(isinstance(question, AskArtifact) for question in liar.asked), "it does not even ask for bytes"
    assert world.installed is None


async def test_frozen_metadata_allows_nothing_new(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    async with world.serving():
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()
        world.clock.advance(days=400)
        assert "frozen" in refusal(await liar.apply(desired.releases[0].change))
    assert world.installed is None


async def test_a_site_that_acts_alone_is_followed_within_what_the_fleet_allows(world: ApplyWorld) -> None:
    site = found_site(
        world.folder / "site",
        world.simulator.fleet.fleet_id,
        "office",
        Founders(owners=("olga",)),
        PASSPHRASE,
        preset="lab",
        wall_clock=world.clock,
    )
    floors.hold(site)
    keys = OnlineKeys.open(site, PASSPHRASE)
    world.staged.put("office.bin", b"of the office")
    made = ingest(
        [world.staged.folder / "office.bin"],
        release="office-tool",
        version="1",
        counter=site.next_counter("office-tool"),
        work=site.path,
        processes=1,
    )
    site.stage_release(made.manifest, made.segments_folder)
    site.stage_policy("own", OFFICE)
    site.sign(site.path / "keys" / "targets-olga.key", PASSPHRASE)
    publish(site, world.folder / "site-tree", keys)
    world.simulator.fleet.stage_file("fleet/allowances.toml", ALLOWANCES)
    world.publish()
    async with world.serving() as service:
        liar = Liar(world)
        await liar.offer()
        assert "lists no repository of site office" in refusal(await liar.ask(Offer(site=True)))
        world.simulator.fleet.stage_file("sites/office/root.json", signed_root(site))
        world.publish()
        await liar.offer()
        assert (await liar.offer(world.simulator.origin, site=True)).kind == "bad", (
            "the fleet's metadata are not the site's"
        )
        assert (await liar.offer(world.folder / "site-tree", site=True)).kind == "good"
        (release,) = service._trust.desired().releases
        said = await liar.apply(release.change)
        assert isinstance(said, Ended), said
        assert said.outcome.verdict == "done"
        assert (world.root / "opt/office").read_bytes() == b"of the office"
        # Who signs there may halt there, and while it is not known what is halted, nothing new is made.
        key = open_signing_key(site.path / "keys" / "targets-olga.key", PASSPHRASE)
        halting.order(site, key, release="office-tool", version="1", reason="it breaks")
        publish(site, world.folder / "site-tree", keys, only=(HALT,))
        tree = read_whole(world.folder / "site-tree")
        withheld = {path: data for path, data in tree.items() if not path.endswith(".halt.json")}
        assert (await liar.offer(withheld, site=True)).kind == "good"
        assert "list of halts" in refusal(await liar.apply(release.change))
        assert (await liar.offer(tree, site=True)).kind == "good"
        assert "Halted by olga" in refusal(await liar.apply(release.change))
        # The fleet takes the site's word away.
        world.simulator.fleet.unstage("sites/office/root.json")
        world.publish()
        await liar.offer(world.simulator.origin)
        assert service._trust.desired().releases == ()


def read_whole(tree: Path) -> dict[str, bytes]:
    return {file.relative_to(tree).as_posix(): file.read_bytes() for file in tree.rglob("*") if file.is_file()}


OFFICE = b"""
schema = "pcm.policy/1"
id = "own"
version = 1
mode = "enforce"
[[assign]]
release = "office-tool"
version = "1"
to = { all = true }
[[assign.resource]]
kind = "file"
artifact = "office.bin"
path = "/opt/office"
"""
ALLOWANCES = b"""
schema = "pcm.allowances/1"
[default]
modes = ["observe", "enforce"]
releases = ["*"]
resources = ["file"]
paths = ["/opt/"]
"""


async def test_what_is_halted_is_not_made(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    async with world.serving():
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()
        world.halt("tool", "1")
        assert (await liar.offer()).kind == "good"
        assert "Halted by alice" in refusal(await liar.apply(desired.releases[0].change))
    assert world.installed is None


async def test_who_keeps_the_list_of_halts_back_gets_nothing_new_made(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    async with world.serving():
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()
        world.halt("tool", "1")
        without = {path: data for path, data in world.simulator.tree().items() if not path.endswith(".halt.json")}
        await liar.offer(without)
        assert "list of halts" in refusal(await liar.apply(desired.releases[0].change))
    assert world.installed is None


async def test_a_clock_that_was_set_back_does_not_thaw_it(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    desired = await world.refresh()
    async with world.serving():
        liar = Liar(world)
        await liar.offer()
        world.clock.now -= timedelta(days=20_000)
        standing = await trio.to_thread.run_sync(ask_once, world.socket, GetStanding())
        assert isinstance(standing, Standing)
        assert standing.freshness == "fresh"
        assert isinstance(await liar.apply(desired.releases[0].change), Ended), "the floor of time holds, not the clock"


async def test_another_change_under_the_same_name_is_not_made(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    async with world.serving():
        liar = Liar(world)
        await liar.offer()
        mine = Change("tool", "1", (FileResource(artifact="tool-1.bin", path="/etc/cron.d/tool"),))
        assert "say otherwise" in refusal(await liar.apply(mine))
    assert not (world.root / "etc/cron.d").exists()


async def test_metadata_of_before_is_not_believed_again(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    old_tree, old = world.simulator.tree(), (await world.refresh()).releases[0].change
    world.publish_file("2", b"second")
    async with world.serving():
        liar, desired = Liar(world), await world.refresh()
        assert (await liar.offer()).kind == "good"
        assert isinstance(await liar.apply(desired.releases[0].change), Ended)
        assert (await liar.offer(old_tree)).kind in ("older", "bad")
        assert "do not assign tool 1" in refusal(await liar.apply(old))
    async with world.serving():
        assert (await liar.offer(old_tree)).kind in ("older", "bad"), "nor after a restart"
    assert world.installed == b"second"


async def test_a_lower_release_counter_is_refused(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    world.publish_file("2", b"second")
    async with world.serving():
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()
        assert isinstance(await liar.apply(desired.releases[0].change), Ended)
        world.publish('kind = "file"\nartifact = "tool-1.bin"\npath = "/opt/tool"', version="1")
        desired = await world.refresh()
        assert (await liar.offer()).kind == "good"
        assert "Counter 1 of tool 1 is below 2" in refusal(await liar.apply(desired.releases[0].change))
    assert world.installed == b"second"


async def test_a_team_speaks_for_no_release_of_the_fleet_by_what_is_in_its_manifest(world: ApplyWorld) -> None:
    """Its key signs ``helper@1``, and in it stands ``tool`` with a counter that the fleet's own never reaches."""
    fleet = world.simulator.fleet
    world.simulator.delegate("team-tools", "tess")
    world.staged.put("helper.bin", b"helper")
    files = [world.staged.folder / "helper.bin"]
    made = ingest(files, release="tool", version="9", counter=1 << 62, work=fleet.path, level=0, processes=1)
    for segment in made.manifest.segments:
        fleet.files.bring_segment(segment, made.segments_folder)
    path, facts = "releases/tools/helper@1.manifest", {"release": "helper", "version": "1", "counter": 1}
    fleet.stage("team-tools", {path: made.manifest.encoded}, custom={path: facts})
    world.simulator.sign("tess", role="team-tools")
    world.publish('kind = "file"\nartifact = "helper.bin"\npath = "/opt/helper"', name="helper")
    async with world.serving():
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()
        assert "not here" in refusal(await liar.apply(desired.releases[0].change))
        world.publish_file("1", b"first")
        desired = await world.refresh()
        await liar.offer()
        assert isinstance(await liar.apply(desired.releases[0].change), Ended)
    assert world.installed == b"first"


async def test_metadata_signed_by_strangers_is_bad(world: ApplyWorld, tmp_path: Path) -> None:
    stranger = RepositorySimulator(tmp_path / "stranger")
    world.publish_file("1", b"first")
    before = world.simulator.tree()
    async with world.serving():
        liar = Liar(world)
        assert (await liar.offer(stranger.tree())).kind == "bad"
        standing = await trio.to_thread.run_sync(ask_once, world.socket, GetStanding())
        assert isinstance(standing, Standing)
        assert standing.versions == (0, 0, 0, 0)
        assert (await liar.offer(before)).kind == "good", "and nobody else is blamed"


async def test_a_change_that_fails_is_not_tried_without_end(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    (world.root / "opt").write_text("in the way")
    async with world.serving():
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()
        change, tried = desired.releases[0].change, 0
        for _ in range(4 * ATTEMPTS_MAX):
            tried += isinstance(await liar.apply(change), Ended)
        assert tried == 1, "at once: it waits"
        for _ in range(2 * ATTEMPTS_MAX):
            world.clock.advance(hours=2)
            tried += isinstance(await liar.apply(change), Ended)
        assert tried == ATTEMPTS_MAX
        assert "Parked" in refusal(await liar.apply(change))
        assert (await liar.ask(Reset("tool"))) == Answer(yes=True), "root may; this test is root"
        (world.root / "opt").unlink()
        assert isinstance(await liar.apply(change), Ended)
    assert world.installed == b"first"


async def test_what_is_due_is_decided_again_when_the_bytes_are_here(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    async with world.serving():
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()

        async def bring(question: Question, channel: Channel) -> None:
            world.publish_file("2", b"second")
            assert (await Liar(world).offer()).kind == "good", "another connection may bring news meanwhile"
            await liar.bring(question, channel)

        assert "do not assign tool 1" in refusal(await liar.apply(desired.releases[0].change, bring))
    assert world.installed is None


@pytest.mark.parametrize("withdrawn", [True, False])
async def test_bytes_of_a_manifest_that_was_replaced_meanwhile_are_not_applied(
    world: ApplyWorld, withdrawn: bool
) -> None:
    """Whoever withdraws a release, or signs its version anew, has not signed what is still on its way to the service."""
    world.publish_file("1", b"first")
    fleet, path = world.simulator.fleet, "releases/main/tool@1.manifest"
    world.staged.put("other.bin", b"other")
    files = [world.staged.folder / "other.bin"]
    other = ingest(files, release="tool", version="1", counter=2, work=fleet.path, level=0, processes=1)
    async with world.serving():
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()

        async def bring(question: Question, channel: Channel) -> None:
            if withdrawn:
                fleet.unstage(path)
            else:
                for segment in other.manifest.segments:
                    fleet.files.bring_segment(segment, other.segments_folder)
                facts = {"release": "tool", "version": "1", "counter": 2}
                fleet.stage("targets", {path: other.manifest.encoded}, custom={path: facts})
            world.simulator.sign()
            world.simulator.publish()
            assert (await Liar(world).offer()).kind == "good"
            await liar.bring(question, channel)

        assert "meanwhile" in refusal(await liar.apply(desired.releases[0].change, bring))
    assert world.installed is None


async def test_one_change_at_a_time(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    async with world.serving():
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()

        async def bring(question: Question, channel: Channel) -> None:
            assert "another change" in refusal(await Liar(world).apply(desired.releases[0].change))
            await liar.bring(question, channel)

        assert isinstance(await liar.apply(desired.releases[0].change, bring), Ended)


# Killed


def test_killed_before_any_operation_on_files_a_change_ends_whole_at_the_next_start(
    tmp_path: Path, fleet: RepositorySimulator, quick_disk: None
) -> None:
    world = ApplyWorld(tmp_path, fleet)
    saved = {part: tmp_path / f"saved-{part}" for part in ("state", "root")}

    async def prepare() -> Change:
        world.publish_file("1", b"first")
        with world.daemon:
            async with world.serving():
                liar = Liar(world)
                await liar.offer()
                assert isinstance(await liar.apply((await world.refresh()).releases[0].change), Ended)
                world.publish_file("2", b"second")
                await liar.offer()
                return (await world.refresh()).releases[0].change

    change = trio.run(prepare)

    async def make() -> Said:
        async with world.serving():
            return await Liar(world).apply(change)

    async def restart() -> tuple[bytes | None, Said]:
        async with world.serving():
            return world.installed, await Liar(world).apply(change)

    for part, copy in saved.items():
        shutil.copytree(tmp_path / part, copy, symlinks=True)
    seen, died, step = set(), True, 0
    while died:
        for part, copy in saved.items():
            shutil.rmtree(tmp_path / part)
            shutil.copytree(copy, tmp_path / part, symlinks=True)
        died = killed_before(step, lambda: trio.run(make))
        found, said = trio.run(restart)
        seen.add(found)
        assert found in (b"first", b"second"), f"half made after a kill at {step}"
        assert isinstance(said, Ended)
        assert said.outcome.verdict == "done"
        assert world.installed == b"second"
        left = {path.name for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".pcm-tmp", "journal.json"))}
        assert not left
        step += 7  # every one of the applier's own is in test_apply_crash
    assert seen == {b"first", b"second"}
    assert step > 15


# A daemon that lies: bytes


Lie = Callable[[Question, Channel, bytes], Awaitable[None]]


async def other_bytes(_question: Question, channel: Channel, data: bytes) -> None:
    await channel.give(bytes(len(data)))


async def one_bit(_question: Question, channel: Channel, data: bytes) -> None:
    await channel.give(data[:-1] + bytes([data[-1] ^ 1]))


async def too_many(_question: Question, channel: Channel, data: bytes) -> None:
    await channel.give(data + b"x")


async def too_few(_question: Question, channel: Channel, data: bytes) -> None:
    await channel.give(data[:-1])


async def endless(_question: Question, channel: Channel, data: bytes) -> None:
    await channel.say(Bring(1 << 36))


async def nothing(_question: Question, channel: Channel, data: bytes) -> None:
    await channel.say(Bring(0))


BYTES: dict[str, Lie] = {
    "other bytes of the right length": other_bytes,
    "one bit": one_bit,
    "a byte too many": too_many,
    "a byte too few": too_few,
    "64 GiB": endless,
    "nothing": nothing,
}


@pytest.mark.parametrize("row", BYTES)
async def test_bytes_that_were_not_signed_are_not_applied(world: ApplyWorld, row: str) -> None:
    data = b"first" * 1_000
    world.publish_file("1", data)
    async with world.serving():
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()
        change = desired.releases[0].change
        message = refusal(await liar.apply(change, lambda question, channel: BYTES[row](question, channel, data)))
        assert "not the signed ones" in message or "were signed" in message
        assert world.installed is None
        assert isinstance(await liar.apply(change), Ended), "a failure of the daemon is none of the change"
    assert world.installed == data


async def break_off(_question: Question, channel: Channel, data: bytes) -> None:
    await channel.say(Bring(len(data)))
    await channel._send(data[: len(data) // 2])
    await channel._stream.aclose()


async def stall(_question: Question, channel: Channel, data: bytes) -> None:
    await channel.say(Bring(len(data)))
    await channel._send(data[: len(data) // 2])


async def say_nothing(_question: Question, channel: Channel, data: bytes) -> None:
    pass


async def talk_nonsense(_question: Question, channel: Channel, data: bytes) -> None:
    await channel._send(b"\0\0\0\5\xff\xff\xff\xff\xff")


async def ask_instead(_question: Question, channel: Channel, data: bytes) -> None:
    await channel._send(encode(GetReceipts()))


BREAKS: dict[str, Lie] = {
    "closes in the middle": break_off,
    "stalls in the middle": stall,
    "says nothing": say_nothing,
    "nonsense": talk_nonsense,
    "a request in place of an answer": ask_instead,
}


@pytest.mark.parametrize("row", BREAKS)
async def test_a_daemon_that_breaks_off_leaves_nothing(world: ApplyWorld, row: str) -> None:
    data = b"first" * 1_000
    world.publish_file("1", data)
    async with world.serving(stall_s=1.0):
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()
        change = desired.releases[0].change
        with pytest.raises((ChannelClosed, trio.ClosedResourceError)):
            await liar.apply(change, lambda question, channel: BREAKS[row](question, channel, data))
        assert world.installed is None
        while not isinstance(said := await liar.apply(change), Ended):
            assert "another change" in refusal(said), "until the service has noticed"
    assert world.installed == data
    assert list((world.folder / "state/staging").glob("*")) == []


async def test_open_files_that_are_passed_never_arrive(world: ApplyWorld) -> None:
    """A file that changes after it was hashed, a link, a pipe, a disk that never answers: none of them is ever taken."""
    world.publish_file("1", b"first")
    secret = world.folder / "file"
    secret.write_bytes(b"first")
    async with world.serving():
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()

        async def bring(question: Question, channel: Channel) -> None:
            link = world.folder / "link"
            link.symlink_to("/etc/shadow")
            pipe = os.pipe()
            held = [os.open(secret, os.O_RDWR), os.open(link, os.O_PATH | os.O_NOFOLLOW), *pipe]
            before = open_files()
            message = encode(Bring(5))
            sent = socket.send_fds(channel._stream.socket._sock, [message], held)  # type: ignore[attr-defined]
            assert sent == len(message)
            await channel._send(b"first")
            secret.write_bytes(b"other")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert open_files() <= before + 2, "the service has at most its own new file open"
            for descriptor in held:
                os.close(descriptor)

        assert isinstance(await liar.apply(desired.releases[0].change, bring), Ended)
    assert world.installed == b"first"


FIRST: dict[str, bytes] = {
    "junk": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4,
    "zeros": bytes(64),
    "a huge length": b"\xff\xff\xff\xff" + bytes(64),
    "one byte above the bound": (REQUEST_BYTES_MAX + 1).to_bytes(4, "big") + bytes(REQUEST_BYTES_MAX + 1),
    "an unknown message": b"\0\0\0\2\x91\x63",
    "deep nesting": (9_000).to_bytes(4, "big") + b"\x91" * 9_000,
    "an answer": encode(Bring(5)),
    "half a message": encode(Apply("tool", "1", "0" * 64))[:-3],
    "a subject that climbs": encode(InPlace("../../etc", "../1", "0" * 64)),
    "an end at once": b"",
}


async def test_what_is_no_request_costs_a_connection_and_nothing_else(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    async with world.serving(stall_s=1.0):
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()
        for name, data in FIRST.items():
            async with liar.connected() as (_, stream):
                with trio.fail_after(60):
                    try:
                        await stream.send_all(data)
                        await stream.send_eof()
                        answer = await stream.receive_some(1 << 16)
                    except trio.BrokenResourceError:
                        answer = b""
                assert len(answer) < 1_000, name
        assert isinstance(await liar.apply(desired.releases[0].change), Ended)


async def test_what_is_asked_in_vain_costs_the_asker(world: ApplyWorld) -> None:
    world.publish_file("1", b"first", activate=False)
    async with world.serving(penalty_s=0.5):
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()
        began = trio.current_time()
        for _ in range(5):
            refusal(await liar.apply(desired.releases[0].change))
        assert trio.current_time() - began >= 4 * 0.05


async def test_what_nobody_thought_of_ends_one_connection(world: ApplyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish_file("1", b"first")
    async with world.serving() as service:
        liar, desired = Liar(world), await world.refresh()
        await liar.offer()
        monkeypatch.setattr(service, "_standing", lambda: 1 / 0)
        with pytest.raises(ChannelClosed):
            await liar.ask(GetStanding())
        assert isinstance(await liar.apply(desired.releases[0].change), Ended)


async def test_a_flood_of_connections_is_served_in_turn(world: ApplyWorld) -> None:
    async with world.serving(stall_s=1.0):
        streams: list[trio.SocketStream] = []
        with trio.move_on_after(1.0):
            while len(streams) < 100:
                streams.append(await trio.open_unix_socket(str(world.socket)))
        opened = open_files()
        assert opened < 100 + 50, "those that wait are the kernel's, not the service's"
        for stream in streams:
            await stream.aclose()
        with trio.fail_after(60):
            while True:
                try:
                    assert isinstance(await Liar(world).ask(GetReceipts()), NoMore)
                    break
                except (ChannelClosed, OSError):
                    continue


async def test_root_of_the_device_must_be_roots(world: ApplyWorld) -> None:
    world.root.chmod(0o777)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with world.serving():
            pass
    assert caught.group_contains(TrustError, match="can be written by others")


async def test_a_root_that_others_could_replace_is_refused(world: ApplyWorld) -> None:
    world.folder.chmod(0o777)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with world.serving():
            pass
    assert caught.group_contains(TrustError, match="which others can change")
    world.folder.chmod(0o1777)
    async with world.serving():
        assert (world.folder / "s/socket").is_socket(), "others can add names there, and not take ours away"


async def test_a_socket_in_a_folder_of_others_is_refused(world: ApplyWorld) -> None:
    world.socket.parent.mkdir()
    world.socket.parent.chmod(0o777)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with world.serving():
            pass
    assert caught.group_contains(TrustError, match="can be written by others")
