"""``origin serve``: a static tree over HTTP for labs and small fleets; any web server or object store does the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcm_p2p.cli.addresses import PortFile, host_and_port

app = typer.Typer(help="The origin: a static tree that any web server can serve.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="The published tree, as 'pcm-p2p publish --to' wrote it.")],
    listen: Annotated[
        str, typer.Option(help="HOST:PORT to listen on; port 0 lets the system choose.")
    ] = "127.0.0.1:8740",
    rate: Annotated[int, typer.Option(min=0, help="Bytes a second over all connections; 0 is without limit.")] = 0,
    port_file: PortFile = None,
) -> None:
    """Serve a published tree over HTTP. Read-only, with ranges, until SIGTERM or Ctrl-C.

    Nobody trusts what serves these bytes: devices verify signatures and hashes. Put it behind any web server or CDN.

    EXIT STATUS: 0 ended on request; 2 the folder or address is wrong.
    """
    import trio

    from pcm_p2p.daemon.log import configure
    from pcm_p2p.errors import InputError
    from pcm_p2p.swarm.origin_server import serve_origin

    configure(json_lines=False, verbose=False)
    if not folder.is_dir():
        raise InputError("is not a folder", path=folder, remedy="Publish into it first: 'pcm-p2p publish --to DIR'.")
    host, port = host_and_port(listen)
    trio.run(lambda: serve_origin(folder, host, port, rate_bytes_per_s=rate, port_file=port_file))
