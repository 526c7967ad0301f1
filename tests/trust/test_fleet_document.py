"""The fleet document: what a person may write, and what they are told when it cannot be used."""

from __future__ import annotations

import pytest

from pcm_p2p.errors import InputError
from pcm_p2p.ids import DeviceId
from pcm_p2p.trust.fleet_document import FleetDocument, decode_fleet_document, starting_document

FLEET = "0123456789abcdef" * 2
VERIFY = "ab" * 32
COLLECTOR = DeviceId.of_public_key(bytes.fromhex(VERIFY)).hex()
TEXT = f"""
[fleet]
id = "{FLEET}"
name = "Example"

[[origin]]
url = "https://updates.example.org/pcm"

[[collector]]
id = "{COLLECTOR}"
address = "collector.example.org:8743"
seal_key = "{"cd" * 32}"
verify_key = "{VERIFY}"

[[desk]]
address = "desk.example.org:8742"

[[site]]
name = "office-1"
subnets = ["10.1.0.0/16", "2001:db8:1::/48"]

[[site]]
name = "lab"
subnets = ["10.1.7.0/24"]
"""


def read(text: str) -> FleetDocument:
    return decode_fleet_document(text.encode(), "fleet.toml")


def test_a_document_reads() -> None:
    document = read(TEXT)
    (collector,) = document.collector
    assert (document.fleet.id, document.fleet.name) == (FLEET, "Example")
    assert document.origin[0].url == "https://updates.example.org/pcm"
    assert collector.device_id == DeviceId.parse(COLLECTOR)
    assert collector.endpoint == ("collector.example.org", 8743)
    assert [desk.endpoint for desk in document.desk] == [("desk.example.org", 8742)]


@pytest.mark.parametrize(
    ("address", "site"),
    [
        ("10.1.0.5", "office-1"),
        ("10.1.7.5", "lab"),
        ("::ffff:10.1.7.5", "lab"),
        ("2001:db8:1::9", "office-1"),
        ("10.2.0.1", None),
        ("2001:db8:2::1", None),
        ("example.org", None),
        ("", None),
    ],
)
def test_the_narrowest_subnet_names_the_site(address: str, site: str | None) -> None:
    assert read(TEXT).site_of(address) == site


@pytest.mark.parametrize(
    ("old", "new", "key", "message"),
    [
        ("https://updates.example.org/pcm", "ftp://x", "origin.url", "not an http or https address"),
        ("https://updates.example.org/pcm", "https://", "origin.url", "not an http or https address"),
        ("https://updates.example.org/pcm", "https://[::1", "origin.url", "not an http or https address"),
        ("collector.example.org:8743", "collector.example.org", "collector.address", "is not host:port"),
        ("collector.example.org:8743", "collector.example.org:0", "collector.address", "is not host:port"),
        ("collector.example.org:8743", "collector.example.org:65536", "collector.address", "is not host:port"),
        ("collector.example.org:8743", "::1:8743", "collector.address", "is not host:port"),
        ("collector.example.org:8743", "host:²", "collector.address", "is not host:port"),
        ("collector.example.org:8743", "collector..org:8743", "collector.address", "is not host:port"),
        ("collector.example.org:8743", f"{'a' * 64}.org:8743", "collector.address", "is not host:port"),
        ("desk.example.org:8742", "desk.example.org", "desk.address", "is not host:port"),
        (COLLECTOR, "0" * 32, "collector.id", "does not belong to its verify_key"),
        ("10.1.7.0/24", "10.1.7.1/24", "site.subnets", "host bits"),
        ("10.1.7.0/24", "office", "site.subnets", "office"),
        ('name = "lab"', 'name = "office-1"', "site.name", "two sites"),
        ('name = "lab"', 'name = "../lab"', "site.name", "site"),
    ],
)
def test_what_cannot_be_used_names_its_key(old: str, new: str, key: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(TEXT.replace(old, new))
    assert caught.value.key == key
    assert str(caught.value).startswith("fleet.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[origin]]", "[[orgin]]", "unknown key"),
        (f'id = "{FLEET}"', "", "is missing"),
        (FLEET, "short", "fleet.toml:"),
        (FLEET, FLEET + r"\n", "fleet.toml:"),
        ("[fleet]", "[fleet", "is not TOML"),
    ],
)
def test_what_does_not_fit_the_schema_names_its_line(old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(TEXT.replace(old, new, 1))
    assert caught.value.line is not None


def test_one_collector_twice() -> None:
    table = TEXT[TEXT.index("[[collector]]") : TEXT.index("[[desk]]")]
    with pytest.raises(InputError, match="two collectors"):
        read(TEXT + table)


def test_addresses_in_brackets() -> None:
    document = read(TEXT.replace("collector.example.org:8743", "[2001:db8::5]:8743"))
    assert document.collector[0].endpoint == ("2001:db8::5", 8743)


@pytest.mark.parametrize("name", ["Example", 'with "quotes" and \\', "Ünïcode"])
def test_a_new_fleet_starts_with_a_document_that_reads(name: str) -> None:
    document = read(starting_document(FLEET, name))
    assert (document.fleet.id, document.fleet.name) == (FLEET, name)
    assert (document.origin, document.collector, document.site) == ((), (), ())
