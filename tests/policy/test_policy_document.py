"""Policy documents: what decodes is meaningful, and what is refused says file, line, key and remedy."""

from __future__ import annotations

import pytest

from pcm_p2p.errors import InputError
from pcm_p2p.policy.condition import Condition
from pcm_p2p.policy.document import FileCheck, Policy, ServiceCheck, SysctlCheck, decode_policy
from pcm_p2p.policy.resource import (
    ArchiveResource,
    FileResource,
    PackageResource,
    ServiceResource,
    artifact_of,
)

DOCUMENT = """\
schema = "pcm.policy/1"
id = "base"
version = 3
title = "What every desk has"
mode = "enforce"
applies_to = { sites = ["paris", "lyon"] }

[[assign]]
release = "tool"
version = "1.2"
to = { labels = ["canary"] }

[[assign.resource]]
kind = "package"
artifact = "tool_1.2_amd64.deb"

[[assign.resource]]
kind = "archive"
artifact = "tool-data.tar.xz"
name = "tool-data"
path = "/opt/tool"

[[assign.resource]]
kind = "file"
path = "/etc/tool.conf"
content = "colour = blue\\n"
mode = 0o640
owner = "root"

[[assign.resource]]
kind = "service"
name = "tool.service"
enabled = true
restart_on_change = true

[[check]]
id = "sudo"
title = "sudo has the fix"
severity = "high"
resource = "package"
name = "sudo"
version = { ge = "1.9.13p3-1+deb12u2" }
absent = "not_applicable"

[[check]]
id = "shadow"
resource = "file"
path = "/etc/shadow"
mode = { at_most = 0o640 }
group = { in = ["shadow", "root"] }

[[check]]
id = "root-login"
resource = "file_content"
path = "/etc/ssh/sshd_config"
pattern = '^PermitRootLogin\\s+(\\S+)'
value = "no"
existence = "any"

[[check]]
id = "forwarding"
resource = "sysctl"
key = "net.ipv4.ip_forward"
live = 0
persisted = { eq = 0 }
remediate = true

[[check]]
id = "ssh"
resource = "service"
name = "ssh.service"
active = true

[[check]]
id = "tmp"
resource = "mount"
path = "/tmp"
options = { includes = ["nosuid", "nodev"] }

[transfer]
wan_in_bytes_per_s = 500_000
"""


def decode(text: str) -> Policy:
    return decode_policy(text.encode(), "base.toml")


def refusal(text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        decode(text)
    return caught.value


def line_of(needle: str, text: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), start=1) if needle in line)


def test_a_document_with_everything_decodes() -> None:
    policy = decode(DOCUMENT)
    assert (policy.id, policy.version, policy.mode) == ("base", 3, "enforce")
    (assignment,) = policy.assignments
    assert [type(resource) for resource in assignment.resources] == [
        PackageResource,
        ArchiveResource,
        FileResource,
        ServiceResource,
    ]
    assert [artifact_of(resource) for resource in assignment.resources] == [
        "tool_1.2_amd64.deb",
        "tool-data.tar.xz",
        None,
        None,
    ]
    assert [check.resource for check in policy.checks] == [
        "package",
        "file",
        "file_content",
        "sysctl",
        "service",
        "mount",
    ]
    assert [check.target for check in policy.checks] == [
        "sudo",
        "/etc/shadow",
        "/etc/ssh/sshd_config",
        "net.ipv4.ip_forward",
        "ssh.service",
        "/tmp",
    ]
    assert policy.transfer.wan_in_bytes_per_s == 500_000


def test_each_check_says_what_it_asks_as_rows() -> None:
    asked = {check.id: list(check.conditions()) for check in decode(DOCUMENT).checks}
    assert asked == {
        "sudo": [Condition("version", "version", "ge", "1.9.13p3-1+deb12u2")],
        "shadow": [Condition("group", "text", "in", ("shadow", "root")), Condition("mode", "mode", "at_most", 0o640)],
        "root-login": [Condition("existence", "text", "eq", "any"), Condition("value", "text", "eq", "no")],
        "forwarding": [Condition("live", "number", "eq", 0), Condition("persisted", "number", "eq", 0)],
        "ssh": [Condition("active", "bool", "eq", True)],
        "tmp": [Condition("options", "options", "includes", ("nosuid", "nodev"))],
    }


def test_a_new_policy_observes_and_speaks_about_everyone() -> None:
    policy = decode('schema = "pcm.policy/1"\nid = "new"\nversion = 1\n')
    assert policy.mode == "observe"
    assert policy.applies_to.all


REFUSED = [
    ("mode = { at_most = 0o640 }", "mode = { atmost = 0o640 }", "unknown key", "Did you mean 'at_most'?"),
    ('severity = "high"', 'severty = "high"', "unknown key", "Did you mean 'severity'?"),
    ('resource = "sysctl"', 'resource = "sysctrl"', "invalid value 'sysctrl'", "Did you mean 'sysctl'?"),
    ('kind = "archive"', 'kind = "archiv"', "invalid value 'archiv'", "Did you mean 'archive'?"),
    ('mode = "enforce"', 'mode = "enforced"', "invalid enum value 'enforced'", "Did you mean 'enforce'?"),
    ("wan_in_bytes_per_s = 500_000", "wan_in_bytes_per_sec = 1", "unknown key", "Did you mean 'wan_in_bytes_per_s'?"),
    ('id = "ssh"', 'id = "tmp"', "stands 2 times as a check", "Keep one check of this name."),
    ("version = 3", 'version = "3"', "expected `int`", ""),
    ('path = "/opt/tool"', 'path = "opt/tool"', "does not start with '/'", ""),
    ('path = "/etc/tool.conf"', 'path = "/etc/../tool.conf"', "not a plain absolute path", ""),
    ("active = true", "", "asks nothing", ""),
    ('options = { includes = ["nosuid", "nodev"] }', "options = {}", "asks nothing; use one of", ""),
    ("live = 0", 'live = { lt = "x" }', "expected `int", ""),
    ('value = "no"', 'value = { matches = "(a)(?=b)" }', "no look-around", ""),
    ('name = "tool.service"', 'name = "tool"', "not a systemd unit name", ""),
    ('to = { labels = ["canary"] }', "to = {}", "selects nobody", ""),
    ('to = { labels = ["canary"] }', 'to = { all = true, labels = ["canary"] }', "cannot be narrowed", ""),
    ('owner = "root"', 'owner = "ro ot"', "neither an account name nor a number", ""),
    ('absent = "not_applicable"', "remediate = true", "there is no remedy", ""),
    ('content = "colour = blue\\n"', 'content = ""\nartifact = "x"', "a file has one of them", ""),
]


@pytest.mark.parametrize(
    ("there", "instead", "message", "remedy"), REFUSED, ids=[row[1][:40] or row[2] for row in REFUSED]
)
def test_a_wrong_document_is_refused_with_its_place(there: str, instead: str, message: str, remedy: str) -> None:
    assert DOCUMENT.count(there) == 1
    text = DOCUMENT.replace(there, instead)
    error = refusal(text)
    assert message in str(error)
    assert error.path == "base.toml"
    assert error.line is not None
    if remedy:
        assert error.remedy == remedy
        assert str(error.key).rpartition(".")[2] in text.splitlines()[error.line - 1]


def test_the_line_is_that_of_the_third_table_and_not_of_the_first_with_such_a_key() -> None:
    text = DOCUMENT.replace('path = "/etc/ssh/sshd_config"', 'path = "/etc/ssh/sshd_config"\nsevrity = "low"')
    assert refusal(text).line == line_of("sevrity", text)
    text = DOCUMENT.replace("persisted = { eq = 0 }", "persisted = { eq = [] }")
    assert refusal(text).line == line_of("persisted", text)


@pytest.mark.parametrize(
    "text", ["", "schema", "[[check]]", 'schema = "pcm.policy/2"\nid = "a"\nversion = 1', "a = [[[[", "\x00", "é = 1"]
)
def test_rubbish_is_one_kind_of_error(text: str) -> None:
    assert refusal(text).exit_status == 2


def test_bytes_that_are_not_text_are_refused_with_the_line() -> None:
    with pytest.raises(InputError) as caught:
        decode_policy(b'schema = "pcm.policy/1"\nid = "\xff"', "base.toml")
    assert caught.value.line == 2


def check_text(lines: str) -> str:
    return f'schema = "pcm.policy/1"\nid = "a"\nversion = 1\n[[check]]\nid = "c"\nremediate = true\n{lines}'


def test_remedies_are_the_resources_that_make_a_check_pass() -> None:
    (check,) = decode(
        check_text(
            'resource = "file"\npath = "/etc/shadow"\nmode = { at_most = 0o640 }\ngroup = { in = ["shadow", "root"] }'
        )
    ).checks
    assert isinstance(check, FileCheck)
    assert check.remedy() == (FileResource(path="/etc/shadow", mode=0o640, group="shadow"),)
    (check,) = decode(check_text('resource = "service"\nname = "ssh.service"\nenabled = true\nactive = true')).checks
    assert isinstance(check, ServiceCheck)
    assert check.remedy() == (ServiceResource(name="ssh.service", enabled=True, active=True),)
    (check,) = decode(check_text('resource = "sysctl"\nkey = "net.ipv4.ip_forward"\nlive = 0\npersisted = 0')).checks
    assert isinstance(check, SysctlCheck)
    file, service = check.remedy()
    assert isinstance(file, FileResource)
    assert file.path == "/etc/sysctl.d/90-pcm_p2p-net.ipv4.ip_forward.conf"
    assert file.content == "# Managed by pcm_p2p: check c\nnet.ipv4.ip_forward = 0\n"
    assert isinstance(service, ServiceResource)


@pytest.mark.parametrize(
    "lines",
    [
        'resource = "mount"\npath = "/tmp"\nmounted = true',
        'resource = "file"\npath = "/x"\nsha256 = "' + "a" * 64 + '"',
        'resource = "file"\npath = "/x"\nmode = 0o600\nlogic = "any"',
        'resource = "sysctl"\nkey = "a.b"\nlive = 1',
        'resource = "sysctl"\nkey = "a.b"\nlive = 1\npersisted = 2',
        'resource = "service"\nname = "a.service"\nmasked = true',
        'resource = "file"\npath = "/x"\nowner = { ne = "root" }',
    ],
)
def test_a_remedy_that_does_not_exist_is_refused_when_the_policy_is_written(lines: str) -> None:
    assert "remed" in str(refusal(check_text(lines)))
