"""``store stats``, ``store verify``, ``store gc``: the chunks that a device keeps. Asks the daemon; without one, the folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pcm_p2p.cli.node import DEFAULT_STATE, State
from pcm_p2p.cli.output import Json, counted, err, out, print_facts, print_json, print_table, size
from pcm_p2p.daemon.control import ask
from pcm_p2p.errors import DaemonUnreachable, InputError

if TYPE_CHECKING:
    from pcm_p2p.content.keeping.store import ChunkStore

POLL_S = 0.2

app = typer.Typer(help="The chunks that this device keeps. For itself and its neighbours.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@contextmanager
def _opened(state: Path) -> Iterator[ChunkStore]:
    """The store of a state folder that no daemon uses, under its lock. Raises ``InputError`` or ``StorageError``."""
    from pcm_p2p.config import load_config
    from pcm_p2p.content.keeping.store import ChunkStore
    from pcm_p2p.daemon.state_lock import lock_state

    if not (state / "store").is_dir():
        raise InputError(
            "there is no store", path=state / "store", remedy="Pass the --state of the daemon whose store you mean."
        )
    quota_bytes_max = 0
    if (state / "config.toml").exists():
        quota_bytes_max = load_config(state / "config.toml").store.quota_bytes_max
    with lock_state(state):
        yield ChunkStore(state / "store", quota_bytes_max).open().scan()


def _answer(question: Callable[[], Any]) -> Any:
    """The daemon's answer; None if there is no daemon."""
    try:
        return question()
    except DaemonUnreachable:
        return None


@app.command()
def stats(state: State = DEFAULT_STATE, json: Json = False) -> None:
    """Show what is kept, and of which releases. How much is wanted, kept for the office, the last copy of the office, or
    surplus.

    EXIT STATUS: 0; 2 there is no store; 6 it cannot be read, or a daemon that does not answer uses it.
    """
    facts = _answer(lambda: ask(state, "store_stats"))
    if facts is None:
        from pcm_p2p.daemon.upkeep import keep_what_is_named, statistics

        with _opened(state) as store:
            keep_what_is_named(store, state)
            facts = statistics(store, state)
    if json:
        print_json(facts)
        return
    print_facts(
        {
            "store": f"{counted(facts['chunks'], 'chunk')}, {size(facts['bytes'])} of {size(facts['quota_bytes_max'])}"
            + (" (full)" if facts["state"] == "full" else ""),
            "wanted": size(facts["wanted_bytes"]),
            "kept": f"{size(facts['kept_bytes'])} for the office, {size(facts['last_bytes'])} that only this device has",
            "surplus": size(facts["surplus_bytes"]),
            "index": "read" if facts["scanned"] else "being read; the figures grow",
            "since start": f"{facts['stored']} stored, {facts['evicted']} evicted, {facts['trimmed']} let go, "
            f"{facts['rotten']} rotten, {facts['misses']} misses",
        }
    )
    if facts["releases"]:
        out().print()
        print_table(
            ("RELEASE", "VERSION", "CHUNKS", "ON DISK"),
            (
                (row["name"], row["version"], f"{row['chunks_have']}/{row['chunks_total']}", size(row["bytes"]))
                for row in facts["releases"]
            ),
        )


@app.command()
def verify(state: State = DEFAULT_STATE, json: Json = False) -> None:
    """Read and hash every chunk, with low priority. Rotten ones are deleted; a daemon fetches again what it wants of them.

    EXIT STATUS: 0 all are good; 1 some were rotten; 2 there is no store; 6 it cannot be read, or a daemon that does not
    answer uses it.
    """
    begun = _answer(lambda: ask(state, "store_verify", action="start"))
    if begun is not None:
        facts = _watch(
            lambda: ask(state, "store_verify", action="progress"),
            lambda: ask(state, "store_verify", action="stop"),
            quiet=json,
        )
    else:
        from pcm_p2p.content.keeping.verification import Verification

        with _opened(state) as store:
            verification = Verification(store)
            verification.start()
            facts = _watch(lambda: asdict(verification.progress()), verification.stop, quiet=json)
    if json:
        print_json(facts)
    else:
        bad = f"rotten and deleted: {facts['rotten']}" if facts["rotten"] else "all are good"
        out().print(f"{facts['chunks_done']} of {facts['chunks_total']} chunks read, {bad}")
    if facts["rotten"]:
        raise typer.Exit(1)


def _watch(progress: Callable[[], dict[str, Any]], stop: Callable[[], object], *, quiet: bool) -> dict[str, Any]:
    """Show the progress until it ends; when interrupted, end it."""
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err(), transient=True, disable=quiet or not sys.stderr.isatty()) as bar:
        task = bar.add_task("verifying", total=None)
        try:
            while (facts := progress())["state"] == "running":
                bar.update(task, total=facts["chunks_total"] or None, completed=facts["chunks_done"])
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            stop()
            raise
    return facts


@app.command()
def gc(
    state: State = DEFAULT_STATE,
    to: Annotated[
        int | None, typer.Option("--to", min=0, metavar="BYTES", help="Stop when the store has at most so many bytes.")
    ] = None,
    all_surplus: Annotated[
        bool, typer.Option("--all-surplus", help="Drop everything that is surplus; the default.")
    ] = False,
    json: Json = False,
) -> None:
    """Drop surplus copies now. What is not wanted here, and what others of the office keep. Neighbours are told before.

    Without a running daemon nobody knows what the office keeps, so that everything a release on this device names stays.

    EXIT STATUS: 0; 2 there is no store; 4 the daemon does not know yet what is surplus; 6 the store cannot be changed, or a
    daemon that does not answer uses it.
    """
    if to is not None and all_surplus:
        raise InputError("--to and --all-surplus exclude each other", remedy="Give one of them.")
    facts = _answer(lambda: ask(state, "store_gc", to=to or 0))
    if facts is None:
        from pcm_p2p.daemon.upkeep import collected, surplus

        with _opened(state) as store:
            before = store.statistics().bytes
            facts = collected(store, before, store.trim(surplus(store, state, to or 0)))
    if json:
        print_json(facts)
        return
    out().print(
        f"{counted(facts['dropped'], 'chunk')} dropped, {size(facts['dropped_bytes'])}; {size(facts['bytes'])} are left"
    )
    if to is not None and facts["bytes"] > to:
        err().print(f"what is left is wanted or kept, so it stays above {size(to)}", markup=False)
