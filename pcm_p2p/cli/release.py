"""``release add``, ``release show``: what an admin releases."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.output import Json, err, note, print_facts, print_json, print_table, size

if TYPE_CHECKING:
    from pcm_p2p.content.manifest import Manifest

app = typer.Typer(help="Releases: files with a name and a version.", no_args_is_help=True)


class FormChoice(StrEnum):
    auto = "auto"
    deb = "deb"
    tar = "tar"
    zip = "zip"
    exact = "exact"


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the release, such as the package's.")],
    version: Annotated[str, typer.Argument(help="Its version; never reused with other content.")],
    files: Annotated[list[Path], typer.Argument(help="The artifacts.")],
    fleet: Fleet,
    level: Annotated[int, typer.Option(min=0, max=22, help="zstd level of the segments; 0 does not compress.")] = 19,
    form: Annotated[FormChoice, typer.Option(help="How to undo inner compression.")] = FormChoice.auto,
    json: Json = False,
) -> None:
    """Cut files into chunks and segments and stage the release for signing.

    Stopping it loses nothing: segments that are finished are found again.

    EXIT STATUS: 0; 2 a file cannot be used, or the version exists with other content; 6 no room on the disk.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from pcm_p2p.content.ingest import IngestProgress, ingest
    from pcm_p2p.content.manifest import decode_untrusted
    from pcm_p2p.trust.repository import FleetFolder

    folder = FleetFolder.open(fleet)
    begun = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err(), disable=json or not err().is_terminal, transient=True) as bars:
        bar = bars.add_task(f"{name} {version}", total=None)

        def show(step: IngestProgress) -> None:
            bars.update(bar, description=step.phase, total=step.bytes_total or None, completed=step.bytes_done)

        ingested = ingest(
            files,
            release=name,
            version=version,
            counter=folder.next_counter(name),
            work=folder.path,
            level=level,
            form=form.value,
            progress=show,
        )
    path = folder.stage_release(ingested.manifest, ingested.segments_folder)
    staged = decode_untrusted(folder.read_target(path))  # the same content again keeps the counter that it had
    if json:
        seconds = round(time.monotonic() - begun, 3)
        print_json({"schema": "pcm.release/1", "target": path, **_facts(staged), "seconds": seconds})
        return
    _show(staged)
    note("Next: 'pcm-p2p sign' and 'pcm-p2p publish'; a policy assigns it to devices.")


@app.command()
def show(
    fleet: Fleet,
    name: Annotated[str | None, typer.Argument(help="Name of a release; all are listed without it.")] = None,
    version: Annotated[str | None, typer.Argument(help="Its version; the newest without it.")] = None,
    json: Json = False,
) -> None:
    """Releases that are staged or published, or one of them in full.

    EXIT STATUS: 0; 2 there is no such release.
    """
    from pcm_p2p.content.manifest import decode_untrusted
    from pcm_p2p.errors import InputError
    from pcm_p2p.trust.repository import FleetFolder

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
    manifest = decode_untrusted(folder.read_target(found[-1].path))
    print_json({"schema": "pcm.release/1", "target": found[-1].path, **_facts(manifest)}) if json else _show(manifest)


def _facts(manifest: Manifest) -> dict[str, object]:
    return {
        "release": manifest.release,
        "version": manifest.version,
        "counter": manifest.counter,
        "manifest_id": manifest.manifest_id.hex(),
        "manifest_bytes": len(manifest.encoded),
        "delivered_bytes": sum(artifact.delivered_size for artifact in manifest.artifacts),
        "stored_bytes": sum(manifest.sizes),
        "full_segment_bytes": sum(segment.size for _, segment in manifest.full_segments()),
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


def _show(manifest: Manifest) -> None:
    print_facts(
        {
            "release": f"{manifest.title}  (counter {manifest.counter})",
            "delivered": size(sum(artifact.delivered_size for artifact in manifest.artifacts)),
            "stored form": f"{size(sum(manifest.sizes))} in {len(manifest.sizes)} chunks",
            "over the WAN": f"{size(sum(one.size for _, one in manifest.full_segments()))} in {len(manifest.segments)} segments",
            "manifest": size(len(manifest.encoded)),
        }
    )
    print_table(
        ("ARTIFACT", "FORM", "DELIVERED", "STORED"),
        ((one.name, one.form, size(one.delivered_size), size(one.stored_size)) for one in manifest.artifacts),
    )
