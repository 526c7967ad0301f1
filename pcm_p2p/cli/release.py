"""``release add``, ``release plan``, ``release show``: what an admin releases."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcm_p2p.cli import release_plan
from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.next_step import after_staging
from pcm_p2p.cli.output import Json, counted, note, print_facts, print_json, print_table, size
from pcm_p2p.cli.release_progress import FormChoice, Level, progress_bar

if TYPE_CHECKING:
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.content.manifest import Manifest

app = typer.Typer(help="Releases: files with a name and a version.", no_args_is_help=True)
release_plan.mount(app)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the release, such as the package's.")],
    version: Annotated[str, typer.Argument(help="Its version; never reused with other content.")],
    files: Annotated[list[Path], typer.Argument(help="The artifacts.")],
    fleet: Fleet,
    base: Annotated[
        list[str] | None,
        typer.Option(help="An earlier version to make deltas from; repeat it. Without it: the last three in use."),
    ] = None,
    no_delta: Annotated[bool, typer.Option("--no-delta", help="Make no deltas.")] = False,
    in_use: Annotated[
        Path | None, typer.Option(help="What the console says at /api/releases, saved: versions that devices have.")
    ] = None,
    level: Level = 19,
    form: Annotated[FormChoice, typer.Option(help="How to undo inner compression.")] = FormChoice.auto,
    team: Annotated[
        str | None, typer.Option(help="The team whose release it is; its own keys sign it ('team delegate').")
    ] = None,
    json: Json = False,
) -> None:
    """Make a release of files, and stage it for signing. Cuts them into chunks and segments, with deltas from earlier
    versions.

    Deltas start from the last three versions that a policy assigns, or devices report (--in-use); if there are none, from the
    last three. Stopping it loses nothing: segments that are finished are found again.

    Example: pcm-p2p release add openssl 3.0.15-1 openssl_3.0.15-1_amd64.deb --fleet fleet

    EXIT STATUS: 0; 2 a file or base cannot be used, the version exists with other content, or the team signs nothing; 6 no room
    on the disk.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.cli.delegation import role_named
    from pcm_p2p.cli.release_bases import chosen_bases
    from pcm_p2p.content.manifest import decode_untrusted
    from pcm_p2p.content.publishing.ingest import ingest
    from pcm_p2p.content.publishing.packing import processes_here
    from pcm_p2p.errors import InputError
    from pcm_p2p.trust.delegation import TARGETS

    folder, role = FleetFolder.open(fleet), role_named("team", team) if team is not None else TARGETS
    if no_delta and base:
        raise InputError("--no-delta and --base exclude each other", remedy="Leave one of them out.")
    bases = [] if no_delta else chosen_bases(folder, name, version, base or [], in_use)
    begun = time.monotonic()
    with progress_bar(f"{name} {version}", hidden=json) as progress:
        ingested = ingest(
            files,
            release=name,
            version=version,
            counter=folder.next_counter(name),
            work=folder.path,
            level=level,
            form=form.value,
            processes=processes_here(),
            bases=bases,
            progress=progress,
        )
    for skipped in ingested.skipped:
        note(f"No deltas from {name} {skipped.version}: {skipped.reason}.")
    if ingested.why_not_gzip:
        note(f"Deltas do not look into .gz files: {ingested.why_not_gzip}.")
    path = folder.stage_release(ingested.manifest, ingested.segments_folder, role)
    staged = decode_untrusted(folder.read_target(path))  # the same content again keeps the counter that it had
    if json:
        seconds = round(time.monotonic() - begun, 3)
        print_json({"schema": "pcm.release/1", "target": path, **_facts(staged, folder), "seconds": seconds})
        return
    _show(staged, folder)
    after_staging(folder, more="; a policy assigns it to devices.")


@app.command()
def show(
    fleet: Fleet,
    name: Annotated[str | None, typer.Argument(help="Name of a release; all are listed without it.")] = None,
    version: Annotated[str | None, typer.Argument(help="Its version; the newest without it.")] = None,
    json: Json = False,
) -> None:
    """Show releases that are staged or published. Or one of them in full.

    EXIT STATUS: 0; 2 there is no such release.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import InputError

    folder = FleetFolder.open(fleet)
    found = [
        release for release in folder.releases() if name in (None, release.name) and version in (None, release.version)
    ]
    if name is None:
        rows = [(one.name, one.version, one.counter, "published" if one.published else "staged") for one in found]
        if json:
            print_json([dict(zip(("name", "version", "counter", "state"), row, strict=True)) for row in rows])
        else:
            print_table(("RELEASE", "VERSION", "COUNTER", "STATE"), rows)
        return
    if not found:
        raise InputError(f"there is no release {name} {version or ''}".rstrip(), remedy="See 'pcm-p2p release show'.")
    manifest = folder.manifest(found[-1])
    if json:
        print_json({"schema": "pcm.release/1", "target": found[-1].path, **_facts(manifest, folder)})
    else:
        _show(manifest, folder)


def _offices(manifest: Manifest, folder: FleetFolder) -> list[tuple[str, int, int]]:
    """For each base: its version, the bytes of its deltas, and what an office fetches that has it."""
    from pcm_p2p.content.publishing.deltas import office_bytes

    others = {one.version: one for one in folder.releases() if one.name == manifest.release}
    rows = []
    for of, base in enumerate(manifest.bases):
        chunks = folder.manifest(others[base.version]).chunks if base.version in others else ()
        deltas = sum(one.size for one in manifest.segments if one.kind == "delta" and one.of == of)
        rows.append((base.version, deltas, office_bytes(manifest, base.version, chunks)))
    return rows


def _facts(manifest: Manifest, folder: FleetFolder) -> dict[str, object]:
    return {
        "release": manifest.release,
        "version": manifest.version,
        "counter": manifest.counter,
        "manifest_id": manifest.manifest_id.hex(),
        "manifest_bytes": len(manifest.encoded),
        "delivered_bytes": sum(artifact.delivered_size for artifact in manifest.artifacts),
        "stored_bytes": sum(manifest.sizes),
        "full_segment_bytes": sum(segment.size for _, segment in manifest.full_segments()),
        "delta_segment_bytes": sum(one.size for one in manifest.segments if one.kind == "delta"),
        "layout_segment_bytes": sum(one.size for one in manifest.segments if one.kind == "layout"),
        "bases": [
            {"version": version, "delta_segment_bytes": deltas, "office_with_base_bytes": office}
            for version, deltas, office in _offices(manifest, folder)
        ],
        "chunks": len(manifest.sizes),
        "segments": len(manifest.segments),
        "artifacts": [
            {
                "name": artifact.name,
                "form": artifact.form,
                "delivered_bytes": artifact.delivered_size,
                "delivered_sha256": artifact.delivered_sha256.hex(),
                "stored_bytes": artifact.stored_size,
            }
            for artifact in manifest.artifacts
        ],
    }


def _show(manifest: Manifest, folder: FleetFolder) -> None:
    full = [segment.size for _, segment in manifest.full_segments()]
    print_facts(
        {
            "release": f"{manifest.title}  (counter {manifest.counter})",
            "delivered": size(sum(artifact.delivered_size for artifact in manifest.artifacts)),
            "stored form": f"{size(sum(manifest.sizes))} in {counted(len(manifest.sizes), 'chunk')}",
            "over the WAN": f"{size(sum(full))} in {counted(len(full), 'segment')}",
            "manifest": size(len(manifest.encoded)),
        }
    )
    print_table(
        ("ARTIFACT", "FORM", "DELIVERED", "STORED"),
        ((one.name, one.form, size(one.delivered_size), size(one.stored_size)) for one in manifest.artifacts),
    )
    if manifest.bases:
        print_table(
            ("BASE", "DELTAS", "AN OFFICE THAT HAS IT FETCHES"),
            ((version, size(deltas), size(office)) for version, deltas, office in _offices(manifest, folder)),
        )
