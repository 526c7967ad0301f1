"""What is handed to browsers: vendored files are what they claim to be, nothing comes from elsewhere, nothing is inline."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

import pytest
from console_client import browser

from pcm_p2p.collector.console.presentation import LABELS, TONES
from pcm_p2p.collector.console.state import HERE, STATIC

VENDOR = STATIC / "vendor"
VENDORED = tomllib.loads((VENDOR / "vendored.toml").read_text())["file"]
TEMPLATES = sorted((HERE / "templates").glob("*.html"))
OWN = sorted(path for path in STATIC.glob("*") if path.is_file())
CSS = (STATIC / "console.css").read_text()


@pytest.mark.parametrize("file", VENDORED, ids=lambda file: file["name"])
def test_a_vendored_file_is_what_its_package_holds(file: dict[str, str]) -> None:
    assert hashlib.sha256((VENDOR / file["name"]).read_bytes()).hexdigest() == file["sha256"]
    assert file["licence"] in ("0BSD", "MIT", "OFL-1.1")
    assert len((VENDOR / file["licence_file"]).read_text()) > 500


def test_nothing_else_lies_beside_the_vendored_files() -> None:
    listed = {"vendored.toml", *(file["name"] for file in VENDORED), *(file["licence_file"] for file in VENDORED)}
    assert {path.name for path in VENDOR.iterdir()} == listed


@pytest.mark.parametrize("path", [*TEMPLATES, *OWN], ids=lambda path: path.name)
def test_nothing_is_inline_and_nothing_comes_from_elsewhere(path: Path) -> None:
    text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|//cdn|@import|\beval\(|new Function", text)
    if path.suffix == ".html":
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=\"|hx-on|hx-vals|javascript:", text)
        assert not re.search(r"<script(?![^>]*src=)", text)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_table_has_a_caption_and_its_headings_a_scope(path: Path) -> None:
    text = path.read_text()
    assert text.count("<table") == text.count("<caption")
    assert not re.search(r"<th(?![^>]*scope=)[ >]", text)
    for image in re.findall(r"<svg[^>]*>", text):
        assert "aria-hidden" in image or "aria-label" in image


async def test_static_files_are_kept_by_their_hash_and_stay_in_their_folder(tmp_path: Path) -> None:
    async with browser(tmp_path / "absent") as client:
        html = (await client.get("/login")).text
        addresses = re.findall(r'(?:href|src)="(/static/[^"]+)"', html)
        assert len(addresses) == 3
        for address in addresses:
            response = await client.get(address)
            assert response.status_code == 200
            assert "immutable" in response.headers["cache-control"]
        assert (await client.get("/static/console.css")).headers["cache-control"] == "no-cache"
        for address in (
            "/static/../app.py",
            "/static/%2e%2e/app.py",
            "/static/..%2fapp.py",
            "/static/vendor/",
            "/static/",
        ):
            assert (await client.get(address)).status_code in (303, 404)


def tokens(block: str) -> dict[str, tuple[int, int, int]]:
    return {
        name: (int(value[0:2], 16), int(value[2:4], 16), int(value[4:6], 16))
        for name, value in re.findall(r"--([a-z-]+): #([0-9a-f]{6});", block)
    }


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """WCAG 2.2 contrast ratio."""

    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [value / 255 / 12.92 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


LIGHT = tokens(CSS.partition(":root {")[2].partition("}")[0])
DARK = tokens(CSS.partition(':root:not([data-theme="light"]) {')[2].partition("}")[0])


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read_on_every_ground(theme: dict[str, tuple[int, int, int]]) -> None:
    for ground in ("card", "raised", "ground"):
        for text in ("text", "text-soft", "accent", "good", "bad", "warn", "busy", "stale", "blank", "plain"):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
    for edge in ("field", "accent"):
        assert contrast(theme[edge], theme["card"]) >= 3, edge
    assert contrast(theme["accent"], theme["accent-soft"]) >= 4.5


def test_dark_is_the_same_by_choice_and_by_system() -> None:
    assert tokens(CSS.partition(':root[data-theme="dark"] {')[2].partition("}")[0]) == DARK
    assert set(DARK) == set(LIGHT)


def test_every_word_of_state_has_a_colour_and_an_icon() -> None:
    icons = set(re.findall(r"'(\w+)': '\w+'", (HERE / "templates" / "_parts.html").read_text().partition("ICON_OF")[2]))
    words = set(LABELS) - {"observe", "notify", "enforce", "asked"}
    assert words == set(TONES) == icons
    assert all(f".tone-{tone} " in CSS and f".fill-{tone} " in CSS for tone in TONES.values())
