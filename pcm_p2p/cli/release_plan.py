"""``release plan``: what an update would cost an office, and why."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcm_p2p.cli.output import Json, note, print_facts, print_json, print_table, size
from pcm_p2p.cli.release_progress import FormChoice, Level, progress_bar

if TYPE_CHECKING:
    from pcm_p2p.content.publishing.preview import Preview, Version

_ROWS_MAX = 15


def mount(app: typer.Typer) -> None:
    app.command()(plan)


def plan(
    old: Annotated[str, typer.Argument(help="The version that offices have: a file, or a release as NAME@VERSION.")],
    new: Annotated[str, typer.Argument(help="The version that they would get: likewise.")],
    fleet: Annotated[
        Path | None,
        typer.Option("--fleet", envvar="PCM_P2P_FLEET", help="The fleet folder of the releases; files need none."),
    ] = None,
    level: Level = 19,
    form: Annotated[FormChoice, typer.Option(help="How to undo inner compression.")] = FormChoice.auto,
    json: Json = False,
) -> None:
    """What an update from OLD to NEW would cost an office. And which files in the container cost it.

    Nothing is published or staged. It works in a folder of its own in TMPDIR, which needs some four times the size unpacked.

    Example: pcm-p2p release plan openssl_3.0.14-1_amd64.deb openssl_3.0.15-1_amd64.deb

    EXIT STATUS: 0; 2 a file cannot be used, or there is no such release; 6 no room on the disk.
    """
    from pcm_p2p.content.publishing.packing import processes_here
    from pcm_p2p.content.publishing.preview import preview

    versions = _version(old, fleet), _version(new, fleet)
    with (
        tempfile.TemporaryDirectory(prefix="pcm-p2p-plan-") as work,
        progress_bar(f"{old} to {new}", hidden=json) as progress,
    ):
        found = preview(
            *versions,
            work=Path(work),
            level=level,
            form=form.value,
            processes=processes_here(),
            progress=progress,
        )
    print_json(asdict(found)) if json else _show(found)


def _version(text: str, fleet: Path | None) -> Version:
    """The file or release that ``text`` names. Raises ``InputError``."""
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.content.publishing.preview import FilesToCompare, ReleaseToCompare
    from pcm_p2p.errors import InputError

    name, at, version = text.rpartition("@")
    if not at or Path(text).exists():
        return FilesToCompare((Path(text),))
    if fleet is None:
        raise InputError(
            f"{text} is neither a file nor, without a fleet folder, a release", remedy="Name the folder with --fleet."
        )
    folder = FleetFolder.open(fleet)
    of_name = {release.version: release for release in folder.releases() if release.name == name}
    if version not in of_name:
        there = ", ".join(of_name) or "none"
        raise InputError(f"there is no release {name} {version}", remedy=f"There is {name}: {there}.")
    return ReleaseToCompare(folder.manifest(of_name[version]), folder.segments)


def _show(found: Preview) -> None:
    def share(count_bytes: int) -> str:
        return f"{size(count_bytes)}  ({count_bytes / max(1, found.delivered_bytes):.1%} of what was delivered)"

    print_facts(
        {
            "delivered": size(found.delivered_bytes),
            "stored form": size(found.stored_bytes),
            "full segments": size(found.full_segment_bytes),
            "delta segments": size(found.delta_segment_bytes),
            "an office with the old version fetches": share(found.office_with_base_bytes),
            "an office without it fetches": share(found.office_without_base_bytes),
            "time": f"{found.seconds:.1f} s",
        }
    )
    rows = [row for row in found.members if row.delta_bytes or row.full_bytes][:_ROWS_MAX]
    print_table(
        ("WHERE THE BYTES GO", "STORED", "FULL", "DELTA"),
        ((row.path, size(row.stored_bytes), size(row.full_bytes), size(row.delta_bytes)) for row in rows),
    )
    if found.why_not_gzip:
        note(f"Deltas do not look into .gz files: {found.why_not_gzip}.")
