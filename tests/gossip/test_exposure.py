"""Where a device lets itself be reached: on networks of a site, before there is one on private networks, nowhere else."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcm_p2p.gossip.exposure import ADDRESSES_MAX, Network, exposed

OFFICE: list[Network] = [ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("2001:db8:1::/48")]
MACHINE = ("127.0.0.1", "::1", "10.1.7.9", "192.168.178.20", "203.0.113.5", "2001:db8:1::9", "2001:db8:2::9", "fe80::1")


def test_with_a_fleet_document_only_addresses_of_a_site_are_listened_on() -> None:
    assert exposed(MACHINE, OFFICE, own_site_is_named=True) == ("10.1.7.9", "2001:db8:1::9")


def test_before_the_first_document_only_private_addresses_are_listened_on() -> None:
    assert exposed((*MACHINE, "169.254.7.7", "fd00::7"), [], own_site_is_named=False) == (
        "10.1.7.9",
        "169.254.7.7",
        "192.168.178.20",
        "fd00::7",
    )


def test_a_device_of_a_site_without_subnets_is_reached_on_private_networks_too() -> None:
    """Naming the subnets of one office must not silence the others."""
    assert exposed(MACHINE, OFFICE, own_site_is_named=False) == ("10.1.7.9", "192.168.178.20", "2001:db8:1::9")


@pytest.mark.parametrize(
    "address",
    [
        "203.0.113.5",
        "8.8.8.8",
        "2001:db8:2::9",
        "192.168.178.20",
        "127.0.0.1",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "224.0.0.251",
    ],
)
def test_a_network_without_a_site_is_not_listened_on(address: str) -> None:
    assert exposed([address], OFFICE, own_site_is_named=True) == ()


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "100.64.0.1", "2001:4860:4860::8888", "::1", "0.0.0.0", "::", "nonsense", ""]
)
def test_what_the_internet_routes_is_never_guessed(address: str) -> None:
    assert exposed([address], [], own_site_is_named=False) == ()


def test_loopback_and_link_local_ipv6_are_never_opened_even_if_a_site_names_everything() -> None:
    everything: list[Network] = [ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")]
    assert exposed(("127.0.0.1", "::1", "fe80::1", "8.8.8.8"), everything, own_site_is_named=True) == ("8.8.8.8",)


def test_a_host_of_many_addresses_opens_a_bounded_number_of_doors() -> None:
    assert (
        len(
            exposed([f"10.1.{number // 250}.{number % 250}" for number in range(1_000)], OFFICE, own_site_is_named=True)
        )
        == ADDRESSES_MAX
    )


@given(st.lists(st.ip_addresses().map(str) | st.text(max_size=20)))
def test_every_door_is_in_a_network_of_a_site(addresses: list[str]) -> None:
    for address in exposed(addresses, OFFICE, own_site_is_named=True):
        assert any(ipaddress.ip_address(address) in network for network in OFFICE)
