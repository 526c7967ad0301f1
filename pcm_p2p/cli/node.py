"""``daemon``, ``status``, ``peers``, ``why``, ``doctor``, ``assess``: one endpoint, run and asked."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column

from pcm_p2p.cli.one_file import refuse_in_one_file
from pcm_p2p.cli.output import Json, counted, err, out, print_facts, print_json, print_table, size
from pcm_p2p.daemon.control import ask

State = Annotated[
    Path,
    typer.Option("--state", envvar="PCM_P2P_STATE", help="State folder of the daemon.", show_default=True),
]
DEFAULT_STATE = Path("/var/lib/pcm-p2p")
DAEMON_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
"""Measured on a device of three: one malloc arena instead of one per thread saves 5 MB resident."""
STATES = ("pass", "fail", "error", "not_run", "not_applicable", "manual")
CACHED_SHOWN = 5
"""Releases whose copies ``status`` shows; all of them are in its JSON."""


def mount(app: typer.Typer) -> None:
    for command in (daemon, status, peers, why, doctor, assess):
        app.command()(command)


def daemon(
    state: State = DEFAULT_STATE,
    json_log: Annotated[bool, typer.Option("--json-log", help="One JSON object per log line.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log debugging details too.")] = False,
) -> None:
    """Run this device's daemon. SIGTERM or Ctrl-C ends it in order, with exit status 0.

    EXIT STATUS: 0 ended on request; 2 config.toml is wrong; 5 the identity is missing or refused; 6 the state folder is
    in use by another daemon or cannot be written.
    """
    refuse_in_one_file("daemon")
    # -P: nothing that lies in the working directory is loaded as a module.
    words = [sys.executable, "-P", "-m", "pcm_p2p.daemon", "--state", str(state)]
    words += ["--json-log"] if json_log else []
    words += ["--verbose"] if verbose else []
    os.execve(sys.executable, words, {**os.environ, **DAEMON_ENVIRONMENT})  # noqa: S606 - our own interpreter and module


def status(state: State = DEFAULT_STATE, json: Json = False) -> None:
    """What this device has, is doing, and is waiting for.

    EXIT STATUS: 0 all well; 1 something needs attention (listed as a problem); 3 no daemon answers.
    """
    facts = ask(state, "status")
    if json:
        print_json(facts)
    else:
        _print_status(facts)
    if facts["problems"]:
        raise typer.Exit(1)


def _print_status(facts: dict[str, Any]) -> None:
    trust, reports, store = facts["trust"], facts["reports"], facts["store"]
    counts = ", ".join(f"{facts['compliance'][name]} {name}" for name in STATES if facts["compliance"][name])
    print_facts(
        {
            "device": f"{facts['device']}  (site {facts['site']}, {facts['role']})",
            "trust": f"{trust['state']}: root {trust['root']}, timestamp {trust['timestamp']}, targets {trust['targets']}"
            + (f"  ({trust['reason']})" if trust["reason"] else ""),
            **_site_alone(facts["site_repository"]),
            "identity": f"certified until {facts['certificate']['ends'][:10]}, "
            f"renewed on {facts['certificate']['renewed'][:10]}"
            + (f"  ({facts['certificate']['problem']})" if facts["certificate"]["problem"] else ""),
            "changes": "allowed"
            if facts["activation"]["allowed"]
            else f"not allowed: {facts['activation']['why_not']}",
            "address": ", ".join(facts["listening"]) or "none: this network is of no site",
            "peers": f"{facts['peers']['site']} at this site, {counted(facts['peers']['sessions'], 'session')}",
            "transfer": f"WAN in {size(facts['transfer']['wan_in_bytes'])}, LAN in {size(facts['transfer']['lan_in_bytes'])}, "
            f"LAN out {size(facts['transfer']['lan_out_bytes'])}",
            "store": f"{counted(store['chunks'], 'chunk')}, {size(store['bytes'])} of {size(store['quota_bytes_max'])}",
            "cache": _cache(facts["cache"]),
            "reports": f"{reports['outbox']} waiting, {reports['acknowledged']} acknowledged, {reports['carried']} carried "
            f"for others; collector {reports['route']}",
            "checks": counts or "none",
            **_revoked(facts.get("revocation", {})),
        }
    )
    if facts["releases"]:
        out().print()
        print_table(
            ("RELEASE", "VERSION", "STATE", "CHUNKS", "WAN", "LAN", "DETAIL"),
            (
                (
                    row["name"],
                    row["version"],
                    row["state"],
                    f"{row['chunks_have']}/{row['chunks_total']}",
                    size(row["wan_bytes"]),
                    size(row["lan_bytes"]),
                    row["detail"],
                )
                for row in facts["releases"]
            ),
        )
    for problem in facts["problems"]:
        err().print(f"[bold]problem[/bold]: {escape(problem)}")


def _revoked(revocation: dict[str, int]) -> dict[str, str]:
    """A line where anybody is revoked, and none else."""
    if not revocation.get("devices") and not revocation.get("authorities"):
        return {}
    devices, authorities = counted(revocation["devices"], "device"), revocation["authorities"]
    connections, reports = revocation["sessions_refused"], revocation["records_refused"]
    return {
        "revoked": f"{devices}, {counted(authorities, 'authority', 'authorities')}; refused since the start: "
        f"{counted(connections, 'connection')}, {counted(reports, 'report')}"
    }


def _site_alone(site: dict[str, Any]) -> dict[str, str]:
    """A line about the repository with which the site acts alone, where there is one or should be."""
    if site["state"] == "none" and not site["reason"]:
        return {}
    said = f"{site['state']}: root {site['root']}, timestamp {site['timestamp']}, targets {site['targets']}"
    return {"own site": said + (f"  ({site['reason']})" if site["reason"] else "")}


def _cache(cache: dict[str, Any]) -> str:
    """What is here, what the office has, and of each release how many copies each chunk has."""
    rows = [
        f"{row['release']} {row['version']}: {row['copies_min']} (median {row['copies_median']})"
        for row in cache["releases"]
    ]
    more = f" and {len(rows) - CACHED_SHOWN} more" if len(rows) > CACHED_SHOWN else ""
    copies = f"; copies of {', '.join(rows[:CACHED_SHOWN])}{more}" if rows else ""
    return f"{size(cache['mine_bytes'])} here, {size(cache['office_bytes'])} at this site{copies}"


def peers(state: State = DEFAULT_STATE, json: Json = False) -> None:
    """The devices this one knows, and the sessions it has.

    EXIT STATUS: 0; 3 no daemon answers.
    """
    rows = ask(state, "peers")
    if json:
        print_json(rows)
        return
    print_table(
        # Whole: 'device revoke' and 'fleet recover lost-device' take no less.
        (Column("DEVICE", no_wrap=True), "SITE", "ADDRESS", "STATUS", "SESSION", "IN", "OUT"),
        (
            (
                row["device"],
                row["site"],
                row["address"],
                row["status"],
                row["session"],
                size(row["bytes_in"]),
                size(row["bytes_out"]),
            )
            for row in rows
        ),
    )


def why(
    release: Annotated[str, typer.Argument(help="NAME or NAME@VERSION of a release; a check's id is explained too.")],
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> None:
    """Why a release or a check stands where it does. Of a release: each segment, its source and the reason, and what it
    would cost in every other way. Of a check: what it expects, and what it found.

    Example: pcm-p2p why openssl

    EXIT STATUS: 0; 2 nothing of that name is known here; 3 no daemon answers.
    """
    facts = ask(state, "why", name=release)
    if json:
        print_json(facts)
        return
    print_facts(dict(_said(name, value) for name, value in facts["facts"].items() if value not in ("", 0)))
    if facts["segments"]:
        out().print()
        print_table(
            ("SEGMENT", "SIZE", "SOURCE", "REASON", "OVER THE WAN"),
            (
                (str(row["segment"]), size(row["size_bytes"]), row["source"], row["reason"], _alternatives(row))
                for row in facts["segments"]
            ),
        )


def _said(name: str, value: Any) -> tuple[str, Any]:
    """A fact as people read it, by the unit in its name: ``needed_bytes: 1200000`` is ``needed  1.2 MB``."""
    if name.endswith("_bytes_per_s"):
        name, value = name.removesuffix("_bytes_per_s"), f"{size(value)}/s"
    elif name.endswith("_bytes"):
        name, value = name.removesuffix("_bytes"), size(value)
    elif name.endswith("_at_ms") or name == "last_attempt_ms":
        moment = datetime.fromtimestamp(value / 1_000, UTC)
        name, value = name.removesuffix("_ms").removesuffix("_at"), f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    return name.replace("_", " "), value


def _alternatives(row: dict[str, Any]) -> str:
    """``delta from 1.0: 120 kB; full: 4.1 MB``, and what speaks against one."""
    return "; ".join(
        f"{each['name']}: {size(each['size_bytes'])}" + (f" ({each['why_not']})" if each["why_not"] else "")
        for each in row["alternatives"]
    )


def assess(
    state: State = DEFAULT_STATE,
    json: Json = False,
    all_findings: Annotated[bool, typer.Option("--all", help="Show the passing checks too.")] = False,
) -> None:
    """Run every assigned check now. The result is reported, and printed.

    EXIT STATUS: 0 all pass; 1 a check fails, has an error or was not run; 3 no daemon answers.
    """
    findings = ask(state, "assess")
    if json:
        print_json(findings)
    else:
        shown = [row for row in findings if all_findings or row["state"] not in ("pass", "not_applicable")]
        print_table(
            ("CHECK", "STATE", "SEVERITY", "EXPECTED", "ACTUAL", "MESSAGE"),
            (
                (
                    f"{row['policy']}/{row['check']}",
                    row["state"],
                    row["severity"],
                    row["expected"],
                    row["actual"],
                    row["message"],
                )
                for row in shown
            ),
        )
        out().print(
            f"{counted(len(findings), 'check')}, {len(findings) - len(shown)} not shown" if not all_findings else ""
        )
    if any(row["state"] in ("fail", "error", "not_run") for row in findings):
        raise typer.Exit(1)


def doctor(state: State = DEFAULT_STATE, json: Json = False) -> None:
    """Check this device's set-up, and change nothing. Identity, clock, folder, trust, peers, origin, collector.

    EXIT STATUS: 0 every item is well; 1 an item needs attention; each comes with its next step.
    """
    from pcm_p2p.daemon.doctor import examine

    items = examine(state)
    if json:
        print_json([item.facts() for item in items])
    else:
        print_table(("ITEM", "STATE", "WHAT", "NEXT STEP"), ((i.name, i.state, i.what, i.next_step) for i in items))
    if any(item.state == "bad" for item in items):
        raise typer.Exit(1)
