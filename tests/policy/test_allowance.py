"""Allowances: what is not named is not allowed, one row for each thing that a policy can set."""

from __future__ import annotations

import pytest

from pcm_p2p.errors import InputError
from pcm_p2p.policy.allowance import Allowances, decode_allowances, why_beyond
from pcm_p2p.policy.document import Policy, decode_policy

BERLIN = b"""
schema = "pcm.allowances/1"

[[site]]
name = "berlin"
modes = ["observe", "enforce"]
releases = ["berlin-*", "vlc"]
resources = ["package", "archive", "file", "service"]
paths = ["/opt/berlin/", "/etc/motd"]
services = ["berlin-*.service"]
checks = ["file", "service"]
remediate = true
transfer_min = { wan_in_bytes_per_s = 50000 }
"""


def policy(text: str, mode: str = "enforce") -> Policy:
    return decode_policy(f'schema = "pcm.policy/1"\nid = "p"\nversion = 1\nmode = "{mode}"\n{text}'.encode(), "p.toml")


def assigned(resource: str, release: str = "berlin-tools") -> str:
    return f'[[assign]]\nrelease = "{release}"\nversion = "1"\n[[assign.resource]]\n{resource}\n'


def checked(rest: str, kind: str = "file") -> str:
    return f'[[check]]\nid = "c"\nresource = "{kind}"\n{rest}\n'


ALLOWED = [
    "",
    assigned('kind = "file"\npath = "/opt/berlin/a/b"\ncontent = "x"'),
    assigned('kind = "file"\npath = "/etc/motd"\ncontent = "x"'),
    assigned('kind = "file"\npath = "/opt/berlin/x"\ncontent = "x"', release="vlc"),
    assigned('kind = "archive"\nartifact = "a.tar"\nname = "a"\npath = "/opt/berlin"'),
    assigned('kind = "service"\nname = "berlin-x.service"\nactive = true'),
    assigned('kind = "package"\nartifact = "a.deb"'),
    checked('path = "/etc/shadow"\nmode = 0o640'),
    checked('path = "/opt/berlin/x"\nmode = 0o640\nremediate = true'),
    "[transfer]\nwan_in_bytes_per_s = 50000\n",
    "[transfer]\nlan_in_bytes_per_s = 0\n",
]
BEYOND = [
    ("", "notify", "its mode is notify"),
    (assigned('kind = "package"\nartifact = "a.deb"', release="vlc2"), "enforce", "it assigns release vlc2"),
    (assigned('kind = "file"\npath = "/opt/berlin"\nmode = 0o777'), "enforce", "writes to /opt/berlin,"),
    (assigned('kind = "file"\npath = "/opt/berlin2/x"\ncontent = "x"'), "enforce", "writes to /opt/berlin2/x"),
    (assigned('kind = "file"\npath = "/etc/motd/x"\ncontent = "x"'), "enforce", "writes to /etc/motd/x"),
    (assigned('kind = "archive"\nartifact = "a.tar"\nname = "a"\npath = "/opt"'), "enforce", "writes to /opt,"),
    (assigned('kind = "service"\nname = "ssh.service"\nactive = false'), "enforce", "manages ssh.service"),
    (checked('key = "kernel.x"\nlive = 0', "sysctl"), "enforce", "looks at a sysctl"),
    (checked('path = "/etc/shadow"\nmode = 0o640\nremediate = true'), "enforce", "check c: writes to /etc/shadow"),
    ("[transfer]\nwan_in_bytes_per_s = 49999\n", "enforce", "the site may set 50000 or more"),
    ("[transfer]\nlan_out_bytes_per_s = 1000000000\n", "enforce", "the site may set none"),
]


@pytest.mark.parametrize("text", ALLOWED)
def test_what_the_fleet_names_a_site_may_set(text: str) -> None:
    assert why_beyond(policy(text), "berlin", decode_allowances(BERLIN)) == ()


@pytest.mark.parametrize(("text", "mode", "reason"), BEYOND)
def test_what_it_does_not_name_is_refused_with_what_would_be_allowed(text: str, mode: str, reason: str) -> None:
    (why,) = why_beyond(policy(text, mode), "berlin", decode_allowances(BERLIN))
    assert reason in why


def test_a_remedy_needs_the_permission_and_the_kind_that_it_makes() -> None:
    allowances = decode_allowances(
        b'schema = "pcm.allowances/1"\n[default]\nmodes = ["enforce"]\nchecks = ["file"]\npaths = ["/"]\n'
    )
    whys = why_beyond(policy(checked('path = "/a"\nmode = 0o640\nremediate = true')), "anywhere", allowances)
    assert len(whys) == 2
    assert "asks to be remedied" in whys[0]
    assert "makes a file" in whys[1]


@pytest.mark.parametrize(
    ("allowances", "reason"),
    [
        (None, "has signed no allowances"),
        (decode_allowances(BERLIN), "name neither site paris nor a default"),
        (decode_allowances(BERLIN + b'\n[default]\nmodes = ["observe"]\n'), ""),
    ],
)
def test_a_site_that_is_not_named_has_the_default_or_nothing(allowances: Allowances | None, reason: str) -> None:
    whys = why_beyond(policy("", "observe"), "paris", allowances)
    assert (whys == ()) if not reason else (reason in whys[0])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b'[[site]]\nname = "a"\n[[site]]\nname = "a"\n', "stands twice"),
        (b'[[site]]\nname = "../a"\n', "site"),
        (b'[default]\npaths = ["opt/"]\n', "does not start with '/'"),
        (b'[default]\npaths = ["/opt/../etc/"]\n', "plain absolute path"),
        (b'[default]\nreleases = ["[a-z]*"]\n', "'*' for any run"),
        (b'[default]\nmodes = ["audit"]\n', "audit"),
        (b"[default]\nwaive = true\n", "unknown key"),
    ],
)
def test_a_document_that_means_nothing_is_refused_with_its_place(text: bytes, word: str) -> None:
    with pytest.raises(InputError, match="allowances") as caught:
        decode_allowances(b'schema = "pcm.allowances/1"\n' + text)
    assert word in str(caught.value)
