"""Who may ask: the login, its forms, its limits, its cookies."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path

import httpx2
import pytest
from console_client import HASHED, PLAIN, browser, log_in, signed_in, token_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.collector.console import access
from pcm_p2p.collector.console.access import LoginGate, Sessions
from pcm_p2p.collector.console.events import seen_untrusted
from pcm_p2p.collector.console.login import basic_password_untrusted, form_untrusted, next_untrusted
from pcm_p2p.collector.console.password import Password, load_password
from pcm_p2p.errors import InputError, StorageError, UntrustedBytes

ASKING = [
    "/",
    "/devices",
    "/devices.csv",
    "/devices/x",
    "/releases",
    "/releases/a/1",
    "/savings",
    "/nowhere",
    "/loginx",
]


@pytest.mark.parametrize("address", ASKING)
async def test_pages_lead_to_the_login_and_back(demo_archive: Path, address: str) -> None:
    async with browser(demo_archive) as client:
        response = await client.get(address)
        assert response.status_code == 303
        assert response.headers["location"] == str(httpx2.URL("/login", params={"next": address}))
        assert "set-cookie" not in response.headers


@pytest.mark.parametrize("address", ["/api/overview", "/api/devices", "/api/nowhere", "/events", "/static"])
async def test_what_scripts_ask_is_refused_without_a_password(demo_archive: Path, address: str) -> None:
    async with browser(demo_archive) as client:
        assert (await client.get(address)).status_code in (401, 303)


@pytest.mark.parametrize("address", ["/login", "/healthz", "/static/console.css"])
async def test_some_addresses_are_open(demo_archive: Path, address: str) -> None:
    async with browser(demo_archive) as client:
        response = await client.get(address)
        assert response.status_code == 200
        assert response.headers["x-content-type-options"] == "nosniff"


async def test_the_right_password_opens_what_was_asked_for(demo_archive: Path) -> None:
    async with browser(demo_archive) as client:
        response = await log_in(client, next="/devices?state=failing")
        assert (response.status_code, response.headers["location"]) == (303, "/devices?state=failing")
        assert (await client.get("/devices")).status_code == 200
        assert (await client.get("/login")).headers["location"] == "/"


@pytest.mark.parametrize("secure", [False, True])
async def test_cookies_are_out_of_reach_of_scripts_and_other_sites(demo_archive: Path, secure: bool) -> None:
    async with browser(demo_archive, secure=secure) as client:
        response = await log_in(client)
        (cookie,) = [one for one in response.headers.get_list("set-cookie") if "session" in one]
        assert cookie.startswith("__Host-pcm-session=" if secure else "pcm-session=")
        for word in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200", *(["Secure"] if secure else [])):
            assert word in cookie
        assert ("strict-transport-security" in response.headers) == secure


@pytest.mark.parametrize("password", ["", "wrong", PLAIN + " ", PLAIN.upper(), "\0", "x" * 3_000])
async def test_a_wrong_password_opens_nothing(demo_archive: Path, password: str) -> None:
    async with browser(demo_archive) as client:
        assert (await log_in(client, password)).status_code == 401
        assert (await client.get("/devices")).status_code == 303


async def test_guessing_is_slowed_down_and_the_right_password_waits_too(demo_archive: Path) -> None:
    async with browser(demo_archive) as client:
        answers = [(await log_in(client, f"guess {n}")).status_code for n in range(access.FAILURES_MAX)]
        assert answers == [401] * (access.FAILURES_MAX - 1) + [429]
        blocked = await log_in(client)
        assert blocked.status_code == 429
        assert 0 < int(blocked.headers["retry-after"]) <= access.WINDOW_S + 1
        assert (await client.get("/api/overview", auth=("x", PLAIN))).status_code == 429


@pytest.mark.parametrize(
    ("changes", "headers", "status"),
    [
        ({}, {}, 303),
        ({}, {"sec-fetch-site": "same-origin"}, 303),
        ({}, {"sec-fetch-site": "cross-site"}, 403),
        ({}, {"sec-fetch-site": "same-site"}, 403),
        ({"token": ""}, {}, 403),
        ({"token": "another"}, {}, 403),
        ({"token": "ümlaut"}, {}, 403),
    ],
)
async def test_a_login_form_from_elsewhere_is_refused(
    demo_archive: Path, changes: dict[str, str], headers: dict[str, str], status: int
) -> None:
    async with browser(demo_archive) as client:
        client.headers.update(headers)
        assert (await log_in(client, **changes)).status_code == status


async def test_a_login_form_without_its_cookie_is_refused(demo_archive: Path) -> None:
    async with browser(demo_archive) as client:
        token = token_of((await client.get("/login")).text)
        client.cookies.clear()
        response = await client.post("/login", data={"token": token, "password": PLAIN})
        assert response.status_code == 403


async def test_signing_out_ends_the_session_and_needs_its_own_form(demo_archive: Path) -> None:
    async with signed_in(demo_archive) as client:
        kept = dict(client.cookies)
        token = token_of((await client.get("/")).text)
        assert (await client.post("/logout", data={"token": "wrong"})).status_code == 403
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/logout")).status_code == 405
        assert (await client.post("/logout", data={"token": token})).status_code == 303
        client.cookies.update(kept)
        assert (await client.get("/")).status_code == 303


@pytest.mark.parametrize("body", [b"\xff=\xfe", b"&".join(b"a%d=1" % n for n in range(20)), b"%FF=%FF"])
async def test_a_form_that_cannot_be_read_is_refused(demo_archive: Path, body: bytes) -> None:
    async with browser(demo_archive) as client:
        response = await client.post(
            "/login", content=body, headers={"content-type": "application/x-www-form-urlencoded"}
        )
        assert response.status_code in (400, 403)


async def test_scripts_may_use_the_password_as_http_basic(demo_archive: Path) -> None:
    async with browser(demo_archive) as client:
        assert (await client.get("/api/overview", auth=("anybody", PLAIN))).status_code == 200
        assert (await client.get("/api/devices", auth=("anybody", PLAIN))).json()["total"] > 40
        assert (await client.get("/devices", auth=("anybody", PLAIN))).status_code == 303
        wrong = await client.get("/api/overview", auth=("anybody", "wrong"))
        assert (wrong.status_code, "www-authenticate" in wrong.headers) == (401, True)
        quiet = await client.get("/api/overview", headers={"sec-fetch-mode": "cors"})
        assert (quiet.status_code, "www-authenticate" in quiet.headers) == (401, False)


@pytest.mark.parametrize(
    ("asked", "goes_to"),
    [
        ("/devices?q=a&site=b", "/devices?q=a&site=b"),
        ("", "/"),
        ("//evil.test/", "/"),
        ("https://evil.test/", "/"),
        ("/\\evil.test", "/"),
        ("/\tevil", "/"),
        ("javascript:alert(1)", "/"),
        ("/" + "x" * 2_000, "/"),
    ],
)
def test_a_login_never_leads_to_another_site(asked: str, goes_to: str) -> None:
    assert next_untrusted(asked) == goes_to


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_noise_in_forms_and_headers_is_decoded_or_refused(noise: bytes) -> None:
    for decode, given_noise in (
        (form_untrusted, noise),
        (basic_password_untrusted, noise.decode("latin-1")),
        (basic_password_untrusted, "Basic " + noise.decode("latin-1")),
    ):
        with contextlib.suppress(UntrustedBytes):
            decode(given_noise)  # type: ignore[operator]
    assert next_untrusted(noise.decode("latin-1")).startswith("/")
    assert seen_untrusted(noise.decode("latin-1")) is None or noise.isdigit()


def test_a_session_ends_by_age_by_request_and_by_crowding() -> None:
    sessions = Sessions()
    sessions.begin(cookie="a", form_token="t", now_s=0)
    assert sessions.find("a", now_s=access.SESSION_LIFETIME_S - 1) is not None
    assert sessions.find("a", now_s=access.SESSION_LIFETIME_S) is None
    assert len(sessions) == 0
    for number in range(access.SESSIONS_MAX + 1):
        sessions.begin(cookie=f"c{number}", form_token="t", now_s=0)
    assert sessions.find("c0", now_s=0) is None
    assert sessions.find("c1", now_s=0) is not None
    assert len(sessions) == access.SESSIONS_MAX


def test_the_limit_on_guessing_slides_and_counts_everybody() -> None:
    gate = LoginGate()
    for number in range(access.FAILURES_MAX):
        assert gate.wait_s("a", now_s=number) == 0
        gate.failed("a", now_s=number)
    assert gate.wait_s("a", now_s=10) == access.WINDOW_S - 10
    assert gate.wait_s("b", now_s=10) == 0
    assert gate.wait_s("a", now_s=access.WINDOW_S) == 0
    for number in range(access.FAILURES_ALL_MAX):
        gate.failed(f"address {number}", now_s=1_000)
    assert gate.wait_s("never seen", now_s=1_000) == access.WINDOW_S
    assert gate.wait_s("never seen", now_s=1_000 + access.WINDOW_S) == 0


def test_a_right_password_is_not_counted_as_a_guess() -> None:
    gate = LoginGate()
    for number in range(10 * access.FAILURES_ALL_MAX):
        assert gate.wait_s("a", now_s=number) == 0
        gate.failed("a", now_s=number)
        gate.succeeded("a", at_s=number)


def test_a_password_is_made_once_and_kept_as_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "password"
    made = load_password(path)
    assert made.fresh is not None
    assert made.is_right(made.fresh)
    assert len(made.fresh.replace("-", "")) == 20
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert made.fresh.encode() not in path.read_bytes()
    again = load_password(path)
    assert again.fresh is None
    assert again.is_right(made.fresh)
    assert not again.is_right(made.fresh + "x")


def test_a_plain_password_in_the_file_is_replaced_by_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("  the admin's choice \n")
    path.chmod(0o644)
    loaded = load_password(path)
    assert loaded.fresh is None
    assert loaded.is_right("the admin's choice")
    assert path.read_bytes().startswith(b"$argon2id$")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_password_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b" \n")
    with pytest.raises(InputError, match="empty: holds no password"):
        load_password(empty)
    with pytest.raises(StorageError):
        load_password(tmp_path)
    with pytest.raises(StorageError):
        load_password(empty / "below a file")


def test_the_hash_in_these_tests_is_a_hash() -> None:
    assert Password(HASHED).is_right(PLAIN)
