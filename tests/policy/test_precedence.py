"""Precedence: who stands lower adds and tightens, never loosens. Tables of loosening, and random fleets and sites."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product

import pytest
from floors import EVERYTHING, Fleet, floor
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.activation import decode_activation
from pcm_p2p.policy.allowance import Allowances, decode_allowances
from pcm_p2p.policy.desired import Desired, decide
from pcm_p2p.policy.document import Policy, decode_policy
from pcm_p2p.policy.precedence import (
    ASSIGNMENTS_MAX,
    CHANGES_MAX,
    CHECKS_MAX,
    POLICIES_MAX,
    STRENGTH,
    Freshness,
    Speaker,
    Spoken,
    may_meet,
    surely_covers,
    weigh,
    why_looser,
)
from pcm_p2p.policy.selector import DeviceFacts, Selector

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DEVICE = DeviceFacts(DeviceId(bytes(16)), "berlin", ("canary",))
ACTIVE = decode_activation(b'schema = "pcm.activation/1"\nscope = "all"\nnot_before = 2026-01-01T00:00:00Z\n')
ANYTHING = decode_allowances(EVERYTHING)
GOING_ON = decode_allowances(EVERYTHING.replace(b"remediate = true", b"remediate = true\nwhen_frozen = true"))


def document(name: str, text: str = "", *, mode: str = "enforce", version: int = 1) -> bytes:
    return f'schema = "pcm.policy/1"\nid = "{name}"\nversion = {version}\nmode = "{mode}"\n{text}'.encode()


def policy(name: str, text: str = "", *, mode: str = "enforce", version: int = 1) -> Policy:
    return decode_policy(document(name, text, mode=mode, version=version), f"{name}.toml")


def assign(release: str, version: str = "1", resource: str = "", to: str = "") -> str:
    selector = f"to = {to}\n" if to else ""
    place = f"[[assign.resource]]\n{resource}\n" if resource else ""
    return f'[[assign]]\nrelease = "{release}"\nversion = "{version}"\n{selector}{place}'


def file(path: str, rest: str = 'content = "x"') -> str:
    return f'kind = "file"\npath = "{path}"\n{rest}'


def check(kind: str, rest: str, name: str = "c") -> str:
    return f'[[check]]\nid = "{name}"\nresource = "{kind}"\n{rest}\n'


def decided(
    *spoken: Spoken, allowances: Allowances | None = ANYTHING, freshness: Freshness = "fresh"
) -> tuple[Desired, tuple[str, ...]]:
    weighed = weigh(spoken, allowances, DEVICE, freshness)
    return decide(weighed.policies, ACTIVE, DEVICE, NOW, freshness, weighed.standing), weighed.problems


FLEET = policy(
    "base",
    assign("agent", "2", file("/opt/agent/bin"))
    + assign("tree", "1", 'kind = "archive"\nartifact = "t.tar"\nname = "tree"\npath = "/srv"')
    + assign("deb", "1", 'kind = "package"\nartifact = "vlc_3.0_amd64.deb"')
    + assign("unit", "1", 'kind = "service"\nname = "agent.service"\nactive = true')
    + assign("elsewhere", "9", file("/opt/elsewhere"), to='{ sites = ["paris"] }')
    + check("file", 'path = "/etc/shadow"\nmode = { at_most = 0o640 }', "shadow")
    + check("sysctl", 'key = "kernel.kptr_restrict"\nlive = 2', "kptr")
    + check("service", 'name = "auditd.service"\nactive = true', "audit")
    + check("package", 'name = "telnet"\ninstalled = false', "telnet")
    + check("mount", 'path = "/tmp"\nfstab_options = { includes = ["nosuid"] }', "tmp")
    + check("mount", 'path = "/var/my-data"\nmounted = true', "data")
    + check("service", 'name = "backup-daily@home.service"\nactive = true', "backup"),
)

LOOSER = {
    "older version": assign("agent", "1", file("/opt/agent/bin")),
    "newer version": assign("agent", "3", file("/opt/agent/bin")),
    "something else of the same version": assign("agent", "2", file("/opt/agent/other")),
    "nothing of the same version": assign("agent", "2"),
    "a place of a fleet release": assign("mine", "1", file("/opt/agent/bin")),
    "a folder around such a place": assign("mine", "1", file("/opt/agent", "mode = 0o777")),
    "a file inside a fleet archive": assign("mine", "1", file("/srv/tree-1/bin/x")),
    "the link of a fleet archive": assign("mine", "1", file("/srv/current")),
    "an archive over a fleet archive": assign(
        "mine", "1", 'kind = "archive"\nartifact = "m.tar"\nname = "tree"\npath = "/srv"'
    ),
    "an archive around a fleet file": assign(
        "mine", "1", 'kind = "archive"\nartifact = "m.tar"\nname = "x"\npath = "/opt"\nlink = "agent"'
    ),
    "a package of the fleet": assign("mine", "1", 'kind = "package"\nartifact = "vlc_2.0_amd64.deb"'),
    "a service of the fleet": assign("mine", "1", 'kind = "service"\nname = "agent.service"\nenabled = false'),
    "a file that the fleet checks": assign("mine", "1", file("/etc/shadow", "mode = 0o666")),
    "a remedy on a file that the fleet checks": check("file", 'path = "/etc/shadow"\nmode = 0o666\nremediate = true'),
    "a service that the fleet checks": assign("mine", "1", 'kind = "service"\nname = "auditd.service"\nactive = false'),
    "a drop-in of a service that the fleet checks": assign(
        "mine", "1", file("/etc/systemd/system/auditd.service.d/a.conf")
    ),
    "a drop-in of all services": assign("mine", "1", file("/etc/systemd/system/service.d/a.conf")),
    "a drop-in in the folder of systemctl": assign(
        "mine", "1", file("/etc/systemd/system.control/auditd.service.d/a.conf")
    ),
    "a drop-in of the beginning of a name": assign("mine", "1", file("/run/systemd/system/backup-.service.d/a.conf")),
    "the template of a service of the fleet": assign("mine", "1", file("/etc/systemd/system/backup-daily@.service")),
    "the unit of a mount that the fleet checks": assign("mine", "1", file("/etc/systemd/system/tmp.mount")),
    "the end of a mount that the fleet checks": assign(
        "mine", "1", 'kind = "service"\nname = "var-my\\\\x2ddata.mount"\nactive = false'
    ),
    "the unit of a service of the fleet": assign("mine", "1", file("/usr/lib/systemd/system/agent.service")),
    "a link in place of such a unit": assign(
        "mine",
        "1",
        'kind = "archive"\nartifact = "m.tar"\nname = "x"\npath = "/etc/systemd/system"\nlink = "auditd.service"',
    ),
    "an archive whose versions are around a fleet file": assign(
        "mine", "1", 'kind = "archive"\nartifact = "m.tar"\nname = "tree"\npath = "/srv"\nlink = "other"'
    ),
    "a sysctl file beside a fleet sysctl": assign("mine", "1", file("/etc/sysctl.d/99-z.conf")),
    "the remedy of the same sysctl": check(
        "sysctl", 'key = "kernel/kptr_restrict"\npersisted = 0\nremediate = true', "kptr"
    ),
    "a package that must not be there": assign("mine", "1", 'kind = "package"\nartifact = "telnet_1_all.deb"'),
    "the table of mounts": assign("mine", "1", file("/etc/fstab")),
    "a folder around what is checked": assign("mine", "1", file("/etc", "mode = 0o777")),
}
FINE = {
    "nothing": "",
    "the same assignment": assign("agent", "2", file("/opt/agent/bin")),
    "a release of its own": assign("mine", "1", file("/opt/mine")),
    "a neighbouring place": assign("mine", "1", file("/opt/agent/bin2")),
    "what the fleet assigns elsewhere": assign("elsewhere", "1", file("/opt/elsewhere")),
    "for another site": assign("agent", "1", file("/opt/agent/bin"), to='{ sites = ["paris"] }'),
    "restart of a fleet service": assign(
        "mine", "1", 'kind = "service"\nname = "agent.service"\nrestart_on_change = true'
    ),
    "a stricter check": check("file", 'path = "/etc/shadow"\nmode = { at_most = 0o600 }', "shadow"),
    "another sysctl remedied": check("sysctl", 'key = "kernel.dmesg"\npersisted = 1\nremediate = true'),
    "a unit of its own": assign("mine", "1", file("/etc/systemd/system/mine.service")),
    "a unit whose name begins alike": assign("mine", "1", file("/etc/systemd/system/backup-weekly.service")),
    "a drop-in of another kind": assign("mine", "1", file("/etc/systemd/system/timer.d/a.conf")),
    "a sysctl file where nothing of the fleet is": assign("mine", "1", file("/etc/sysctl.conf.d")),
    "a lower limit": "[transfer]\nwan_in_bytes_per_s = 5000\n",
}


@pytest.mark.parametrize(("name", "speaker"), list(product(LOOSER, ("site role", "site repository"))), ids=str)
def test_a_site_policy_that_would_loosen_is_set_aside_whole_and_the_rest_goes_on(name: str, speaker: Speaker) -> None:
    loosening = policy("mine", LOOSER[name] + assign("beside", "1", file("/opt/beside")), version=9)
    other = policy("other", assign("other", "1", file("/opt/other")))
    desired, problems = decided(Spoken(FLEET), Spoken(loosening, speaker), Spoken(other, speaker))
    (problem,) = problems
    assert problem.startswith("policy mine of site berlin is set aside: ")
    assert {release.name for release in desired.releases} == {"agent", "tree", "deb", "unit", "other"}
    assert [one.policy_id for one in desired.checks] == ["base"] * 7
    # The tool says the same, for it knows the site and no device.
    assert why_looser(loosening, (FLEET,), may_meet("berlin"))


@pytest.mark.parametrize("name", FINE)
def test_a_site_policy_that_adds_or_tightens_counts(name: str) -> None:
    desired, problems = decided(Spoken(FLEET), Spoken(policy("mine", FINE[name]), "site role"))
    assert problems == ()
    assert not desired.conflicts
    assert why_looser(policy("mine", FINE[name]), (FLEET,), may_meet("berlin")) == ()


def test_a_milder_mode_for_what_the_fleet_enforces_is_refused_and_a_stronger_one_counts() -> None:
    same = assign("agent", "2", file("/opt/agent/bin"))
    _, problems = decided(Spoken(FLEET), Spoken(policy("mine", same, mode="notify"), "site role"))
    assert "its mode is notify" in problems[0]
    shy = policy("base", same, mode="notify")
    desired, problems = decided(Spoken(shy), Spoken(policy("mine", same), "site role"))
    assert problems == ()
    assert [(release.mode, release.why_not) for release in desired.releases] == [("enforce", "")]


def test_an_id_of_the_fleet_is_refused_even_where_its_policy_speaks_of_others() -> None:
    elsewhere = policy("base", 'applies_to = { sites = ["paris"] }')
    desired, problems = decided(Spoken(elsewhere), Spoken(policy("base", version=99), "site role"))
    assert "has this id" in problems[0]
    assert desired.releases == ()


def test_the_delegated_role_stands_above_the_repository_of_the_same_site() -> None:
    role = policy("role", assign("tool", "2", file("/opt/tool")))
    repository = policy("own", assign("tool", "1", file("/opt/tool")), version=50)
    for order in ((0, 1), (1, 0)):
        spoken = [Spoken(role, "site role"), Spoken(repository, "site repository")]
        desired, problems = decided(*(spoken[place] for place in order))
        assert [release.version for release in desired.releases] == ["2"]
        assert "policy own of site berlin is set aside" in problems[0]


@pytest.mark.parametrize(
    ("freshness", "when_frozen", "speaker", "own_frozen", "may"),
    [
        ("fresh", False, "site repository", False, True),
        ("stale", False, "site repository", False, True),
        ("frozen", False, "site repository", False, False),
        ("frozen", True, "site repository", False, True),
        ("frozen", True, "site role", False, False),
        ("frozen", True, "site repository", True, False),
        ("fresh", True, "site repository", True, False),
        ("fresh", True, "site role", True, False),
    ],
)
def test_who_may_install_something_new_while_whose_metadata_is_frozen(
    freshness: Freshness, when_frozen: bool, speaker: Speaker, own_frozen: bool, may: bool
) -> None:
    allowances = GOING_ON if when_frozen else ANYTHING
    mine = policy(
        "mine",
        assign("mine", "1", file("/opt/mine")) + check("file", 'path = "/opt/x"\nmode = 0o600\nremediate = true', "x"),
    )
    desired, _ = decided(
        Spoken(FLEET), Spoken(mine, speaker, frozen=own_frozen), allowances=allowances, freshness=freshness
    )
    found = desired.release("mine")
    agent = desired.release("agent")
    assert found is not None
    assert agent is not None
    assert (found.why_not == "") is may
    assert desired.authorisation.permits(found.change) is may
    assert [one.remedy is not None for one in desired.checks if one.policy_id == "mine"] == [may]
    assert (agent.why_not == "") is (freshness != "frozen"), "the fleet's own changes do not follow a site's freshness"


def test_a_site_changes_nothing_before_the_fleet_is_activated() -> None:
    weighed = weigh([Spoken(policy("mine", assign("mine", "1")), "site repository")], ANYTHING, DEVICE, "fresh")
    desired = decide(weighed.policies, None, DEVICE, NOW, "fresh", weighed.standing)
    assert "no signed activation" in desired.releases[0].why_not


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        (Selector(all=True), Selector(all=True), True),
        (Selector(sites=("paris",)), Selector(all=True), False),
        (Selector(sites=("paris", "berlin")), Selector(labels=("a",)), True),
        (Selector(labels=("a",)), Selector(labels=("b",)), False),
        (Selector(labels=("a", "b")), Selector(labels=("b",)), True),
        (Selector(devices=("00" * 16,)), Selector(devices=("01" * 16,)), False),
        (Selector(devices=("00" * 16,)), Selector(labels=("b",)), True),
    ],
)
def test_two_selectors_meet_at_the_site_unless_they_plainly_do_not(one: Selector, other: Selector, meet: bool) -> None:
    assert may_meet("berlin")(one, other) is meet


@pytest.mark.parametrize(
    ("one", "other", "covers"),
    [
        (Selector(all=True), Selector(labels=("a",)), True),
        (Selector(labels=("a",)), Selector(all=True), False),
        (Selector(labels=("a", "b")), Selector(labels=("b",)), True),
        (Selector(labels=("a",)), Selector(labels=("a", "b")), False),
        (Selector(sites=("berlin",)), Selector(all=True), True),
        (Selector(sites=("paris",)), Selector(sites=("paris",)), False),
        (Selector(devices=("00" * 16,)), Selector(labels=("a",)), False),
        (Selector(devices=("00" * 16,)), Selector(labels=("a",), devices=("00" * 16,)), True),
    ],
)
def test_one_selector_covers_another_at_the_site(one: Selector, other: Selector, covers: bool) -> None:
    assert surely_covers("berlin")(one, other) is covers


@pytest.mark.parametrize(
    ("more", "mine", "refused"),
    [
        ("", "", False),
        (assign("x", "1", file("/opt/a")), "", True),
        (assign("x", "1", file("/opt/a")), '{ labels = ["canary"] }', False),
        (assign("x", "1", file("/opt/a"), to='{ labels = ["canary"] }'), "", False),
        (check("file", 'path = "/opt/a"\nmode = 0o600'), "", True),
    ],
    ids=["nothing else there", "a release there", "for the same devices", "a release for these alone", "a check there"],
)
def test_what_the_fleet_asks_of_some_devices_a_site_may_ask_of_all_unless_something_of_the_fleet_is_there(
    more: str, mine: str, refused: bool
) -> None:
    fleet = policy("base", assign("z", "1", file("/opt/a"), to='{ labels = ["canary"] }') + more)
    own = policy("own", assign("z", "1", file("/opt/a"), to=mine))
    assert bool(why_looser(own, (fleet,), may_meet("berlin"), covers=surely_covers("berlin"))) is refused
    for labels in ((), ("canary",)):
        device = DeviceFacts(DEVICE.device, DEVICE.site, labels)
        problems = weigh([Spoken(fleet), Spoken(own, "site repository")], ANYTHING, device, "fresh").problems
        assert not problems or refused
        assert problems or labels or not refused, "the device without the label sets it aside"


# Random fleets and sites

RESOURCES = st.sampled_from(
    [
        "",
        file("/opt/a"),
        file("/opt/b"),
        file("/opt/a/b"),
        file("/opt", "mode = 0o777"),
        'kind = "archive"\nartifact = "t.tar"\nname = "a"\npath = "/opt"',
        'kind = "service"\nname = "a.service"\nactive = true',
        'kind = "service"\nname = "a.service"\nactive = false',
    ]
)
CHECKS = st.sampled_from(
    [
        check("file", 'path = "/opt/a"\nmode = 0o600\nremediate = true', "fa"),
        check("file", 'path = "/opt/a"\nmode = 0o666\nremediate = true', "fb"),
        check("service", 'name = "a.service"\nactive = true\nremediate = true', "sa"),
        check("service", 'name = "a.service"\nactive = false\nremediate = true', "sb"),
        check("package", 'name = "x"\ninstalled = true', "px"),
    ]
)
SELECTORS = st.sampled_from(["", '{ labels = ["canary"] }', '{ labels = ["rest"] }', '{ sites = ["paris"] }'])


@st.composite
def documents(draw: st.DrawFn, ids: tuple[str, ...]) -> bytes:
    text = ""
    applies = draw(SELECTORS)
    if applies:
        text += f"applies_to = {applies}\n"
    limit = draw(st.sampled_from([0, 0, 500, 2_000, 9_000]))
    text += f"transfer = {{ wan_in_bytes_per_s = {limit} }}\n" if limit else ""
    for release in draw(st.lists(st.sampled_from("xyz"), max_size=2, unique=True)):
        text += assign(release, draw(st.sampled_from("12")), draw(RESOURCES), draw(SELECTORS))
    text += "".join(draw(st.lists(CHECKS, max_size=2, unique=True)))
    mode = draw(st.sampled_from(["observe", "notify", "enforce", "enforce"]))
    return document(draw(st.sampled_from(ids)), text, mode=mode, version=draw(st.integers(1, 5)))


def policies(ids: tuple[str, ...]) -> st.SearchStrategy[Policy]:
    return documents(ids).map(lambda data: decode_policy(data, "drawn"))


def by_id(ids: tuple[str, ...], most: int) -> st.SearchStrategy[dict[str, bytes]]:
    drawn = st.lists(documents(ids), max_size=most)
    return drawn.map(lambda many: {decode_policy(data, "drawn").id: data for data in many})


@given(
    fleet=st.lists(policies(("a", "b", "c")), max_size=3, unique_by=lambda one: one.id),
    role=st.lists(policies(("a", "d", "e")), max_size=2, unique_by=lambda one: one.id),
    own=st.lists(policies(("b", "e", "f")), max_size=2, unique_by=lambda one: one.id),
    freshness=st.sampled_from(["fresh", "stale", "frozen"]),
    when_frozen=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_whatever_a_site_signs_a_device_is_never_milder_than_the_fleet_alone_makes_it(
    fleet: list[Policy], role: list[Policy], own: list[Policy], freshness: Freshness, when_frozen: bool
) -> None:
    allowances = GOING_ON if when_frozen else ANYTHING
    of_fleet = [Spoken(one) for one in fleet]
    of_site = [Spoken(one, "site role") for one in role] + [Spoken(one, "site repository") for one in own]
    alone, _ = decided(*of_fleet, allowances=allowances, freshness=freshness)
    both, problems = decided(*of_fleet, *of_site, allowances=allowances, freshness=freshness)
    turned, turned_problems = decided(*of_site[::-1], *of_fleet[::-1], allowances=allowances, freshness=freshness)

    for wanted in alone.releases:
        found = both.release(wanted.name)
        assert found is not None
        assert (found.version, found.resources) == (wanted.version, wanted.resources)
        assert STRENGTH[found.mode] >= STRENGTH[wanted.mode]
        assert not alone.authorisation.permits(wanted.change) or both.authorisation.permits(found.change)
    remaining = list(both.checks)
    for one in alone.checks:
        assert one in remaining, "no check of the fleet is gone, and none has lost its remedy"
    limits = (alone.transfer.wan_in_bytes_per_s, both.transfer.wan_in_bytes_per_s)
    assert limits[0] == limits[1] or (limits[1] is not None and limits[1] >= 1_000)
    assert limits[0] is None or (limits[1] is not None and limits[1] <= limits[0])
    assert both.changes_allowed == alone.changes_allowed
    assert (both.releases, both.checks, problems) == (turned.releases, turned.checks, turned_problems)
    assert set(alone.conflicts) <= set(both.conflicts)

    # Nothing that a site makes is where the fleet makes or checks something.
    held = {resource.key for release in alone.releases for resource in release.resources}
    ids = {one.id for one in fleet}
    for release in both.releases:
        if release.policy_id not in ids:
            assert not held & {resource.key for resource in release.resources}


NARROW = (
    b'schema = "pcm.allowances/1"\n[[site]]\nname = "berlin"\nmodes = ["enforce"]\nreleases = ["x", "y"]\nresources = ["file"]\n'
    b'paths = ["/opt/a", "/opt/b"]\nchecks = ["file", "package"]\nremediate = true\n'
)
LABELS = ((), ("canary",), ("rest",), ("canary", "rest"))


@given(
    fleet=by_id(("a", "b", "c"), 3),
    role=st.none() | by_id(("a", "d", "e"), 2),
    own=by_id(("b", "e", "f", "g"), 2),
    narrow=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_what_the_folder_of_a_site_takes_no_device_sets_aside_and_what_it_refuses_some_device_does(
    fleet: dict[str, bytes], role: dict[str, bytes] | None, own: dict[str, bytes], narrow: bool
) -> None:
    """The tool judges by the floor that it holds, in signed bytes; a device weighs the same documents. (Where a device has two
    labels, each of which one policy names, the tool leaves it to that device.)"""
    signed = NARROW if narrow else EVERYTHING
    allowances, said = decode_allowances(signed), Fleet().says(fleet, allowances=signed, of_role=role)
    refused = floor(said).set_aside({f"policies/{name}.toml": data for name, data in own.items()})
    refused_ids = {path.removeprefix("policies/").removesuffix(".toml") for path in refused}
    spoken = [Spoken(decode_policy(data, "x")) for data in fleet.values()]
    spoken += [Spoken(decode_policy(data, "x"), "site role", site="berlin") for data in (role or {}).values()]
    of_own = {name: Spoken(decode_policy(data, "x"), "site repository") for name, data in own.items()}
    set_aside = set[str]()
    for labels in LABELS:
        device = DeviceFacts(DEVICE.device, DEVICE.site, labels)
        weighed = weigh([*spoken, *of_own.values()], allowances, device, "fresh")
        for name, one in of_own.items():
            if not any(one.policy is counting for counting in weighed.policies):
                set_aside.add(name)
                assert name in refused_ids or len(labels) == 2, (name, weighed.problems)
    if not role:
        assert refused_ids <= set_aside, "nothing is refused that every device would take"


# How much of a site counts


@pytest.mark.parametrize(
    ("policies", "counting", "word"),
    [
        ([""] * (POLICIES_MAX + 2), POLICIES_MAX, "policies"),
        ([assign("x", "1"), "".join(assign(f"r{number}") for number in range(ASSIGNMENTS_MAX))], 1, "assignments"),
        (
            [
                "".join(
                    assign(f"r{number}", "1", file(f"/opt/{number}/a"))
                    + f"[[assign.resource]]\n{file(f'/opt/{number}/b')}\n"
                    for number in range(ASSIGNMENTS_MAX // 2)
                ),
                "".join(
                    check("file", f'path = "/opt/c{number}"\nmode = 0o600\nremediate = true', f"c{number}")
                    for number in range(CHANGES_MAX - ASSIGNMENTS_MAX + 1)
                ),
            ],
            1,
            "changes",
        ),
        (
            ["".join(check("file", 'path = "/x"\nmode = 0o600', f"c{number}") for number in range(CHECKS_MAX + 1))],
            0,
            "checks",
        ),
    ],
    ids=["policies", "assignments", "changes", "checks"],
)
def test_a_site_cannot_crowd_out_what_the_fleet_asks(policies: list[str], counting: int, word: str) -> None:
    spoken = [Spoken(policy(f"p{number:03}", text), "site role") for number, text in enumerate(policies)]
    weighed = weigh([Spoken(FLEET), *spoken], ANYTHING, DEVICE, "fresh")
    assert [one.id for one in weighed.policies] == ["base", *(f"p{number:03}" for number in range(counting))]
    assert len(weighed.problems) == len(policies) - counting
    assert all(f"{word}, and at most" in problem for problem in weighed.problems)


def test_each_signer_of_a_site_has_a_measure_of_its_own() -> None:
    spoken = [Spoken(policy(f"r{number:02}"), "site role") for number in range(POLICIES_MAX)]
    spoken += [Spoken(policy(f"o{number:02}"), "site repository") for number in range(POLICIES_MAX)]
    assert len(weigh(spoken, ANYTHING, DEVICE, "fresh").policies) == 2 * POLICIES_MAX
