"""The verifier of this product behind the command line of the public TUF client conformance suite.

``python -m pcm_p2p.trust.tufcli`` lets anyone run that suite (github.com/theupdateframework/tuf-conformance) against what devices
verify with::

    tufcli --metadata-dir D init ROOT
    tufcli --metadata-dir D --metadata-url U refresh
    tufcli --metadata-dir D --metadata-url U --target-name N [--target-name N ...] --target-dir T --target-base-url B download

Exit code 0: done; 1: refused, with a verdict as in ``client.Attempt`` and its reason on standard error.

The updater with its limits and its network, and the verdicts, are those of a device (``updater``). Three things are not:
nothing is staged, because the suite checks that the parts of an attempt that verified are kept; lint and floor stay out, because
foreign repositories know neither this product's fleets nor its names; and the root that was pinned lies in ``D/pinned/``. That is
why nothing in the product imports this module: there is no switch that turns a device's rules off.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx2
from tuf.ngclient import Updater  # type: ignore[attr-defined]

from pcm_p2p.trust.updater import ANSWERED, SourceFailed, SourceMissing, new_updater, verdict

FILE_TIMEOUT_S = 60.0
"""As ``client.FILE_TIMEOUT_S``."""
STALL_S = 15.0
"""Choice: as ``[origin] stall_s`` by default; a connection that brings nothing for so long is given up."""
PINNED = "pinned/root.json"


@dataclass(frozen=True)
class WebSource:
    """A repository on a web server. ``bases``: where ``metadata/`` and ``targets/`` are, by the first part of a path."""

    client: httpx2.Client
    bases: dict[str, str]

    def get(self, path: str, size_bytes_max: int) -> bytes:
        """The file at ``path``, read no further than ``size_bytes_max`` and no longer than ``FILE_TIMEOUT_S``.

        Raises ``SourceMissing`` for 403 and 404, which is how repositories say so, and ``SourceFailed``.
        """
        kind, _, name = path.partition("/")
        deadline_s, data = time.monotonic() + FILE_TIMEOUT_S, bytearray()
        try:
            with self.client.stream("GET", f"{self.bases[kind].rstrip('/')}/{name}") as response:
                if response.status_code in (403, 404):
                    raise SourceMissing(f"{path}: HTTP status {response.status_code}")
                if response.status_code != 200:
                    raise SourceFailed(f"HTTP status {response.status_code}")
                for block in response.iter_raw():
                    data += block
                    if len(data) > size_bytes_max:
                        raise SourceFailed(f"longer than {size_bytes_max} bytes")
                    if time.monotonic() > deadline_s:
                        raise SourceFailed(f"not delivered within {FILE_TIMEOUT_S:g} s")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise SourceFailed(f"{type(error).__name__}: {error}") from None
        return bytes(data)


def init(metadata_dir: Path, root: Path) -> None:
    """Pin ``root``. Raises ``OSError``."""
    pinned = metadata_dir / PINNED
    pinned.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for place in (pinned, metadata_dir / "root.json"):
        shutil.copyfile(root, place)


def opened(metadata_dir: Path, source: WebSource, target_dir: Path) -> Updater:
    """The updater over what ``init`` and earlier runs left. Raises what ``new_updater`` raises."""
    return new_updater(
        metadata_dir,
        target_dir,
        source.get,
        bootstrap=(metadata_dir / PINNED).read_bytes(),
        reference_time=datetime.now(UTC),
    )


def download(updater: Updater, names: Sequence[str]) -> None:
    """Fetch the targets in order, unless they are there already. Raises ``ANSWERED`` or ``OSError``; stops at the first."""
    for name in names:
        info = updater.get_targetinfo(name)
        if info is None:
            raise ValueError(f"{name} is not a target of this repository")
        if updater.find_cached_target(info) is None:
            updater.download_target(info)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tufcli", description="The verifier of pcm_p2p over any TUF repository.")
    parser.add_argument("--metadata-dir", type=Path, required=True, help="where trusted metadata is kept")
    parser.add_argument("--metadata-url", default="", help="where the repository's metadata is")
    parser.add_argument("--target-name", action="append", default=[], help="path of a target; may be repeated")
    parser.add_argument("--target-dir", type=Path, default=None, help="where verified targets are put")
    parser.add_argument("--target-base-url", default="", help="where the repository's targets are")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init", help="pin a root").add_argument("root", type=Path)
    commands.add_parser("refresh", help="update the top-level metadata")
    commands.add_parser("download", help="fetch targets, after a refresh")
    options = parser.parse_args(arguments)
    if options.command != "init" and not options.metadata_url:
        parser.error("--metadata-url is needed")
    if options.command == "download" and not (options.target_name and options.target_dir and options.target_base_url):
        parser.error("--target-name, --target-dir and --target-base-url are needed")
    try:
        if options.command == "init":
            init(options.metadata_dir, options.root)
            return 0
        timeout = httpx2.Timeout(STALL_S)
        with httpx2.Client(trust_env=False, timeout=timeout, headers={"accept-encoding": "identity"}) as client:
            source = WebSource(client, {"metadata": options.metadata_url, "targets": options.target_base_url})
            updater = opened(options.metadata_dir, source, options.target_dir or options.metadata_dir / "targets")
            updater.refresh()
            download(updater, options.target_name)
    except ANSWERED as error:
        print(*verdict(error), sep=": ", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"this machine: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(1)
