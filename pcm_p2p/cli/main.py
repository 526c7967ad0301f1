"""The application: mounts the command groups, and turns every ``PcmError`` into a message, a remedy and an exit status."""

from __future__ import annotations

import errno
import sys
from functools import cache
from typing import Annotated

import typer
import typer.main
from typer.core import TyperGroup

from pcm_p2p import __version__
from pcm_p2p.cli import (
    apply_service,
    audit,
    ceremony,
    collector,
    delegation,
    device,
    enroll,
    fleet,
    fleet_check,
    halt,
    key,
    lab,
    new_authority,
    node,
    origin,
    people,
    policy,
    proposal,
    recover,
    release,
    signing,
    site_alone,
    store,
    workspace,
)
from pcm_p2p.cli.help_page import Sections, in_order, name_types
from pcm_p2p.errors import PcmError, StorageError, exit_statuses
from pcm_p2p.shown_text import shown

# \b: the lines of the paragraph stay as they are.
EXIT_STATUS_HELP = "\b\nEXIT STATUS\n" + "\n".join(f"  {status}: {text}" for status, text in exit_statuses().items())

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""What a full or read-only disk answers: a matter of the machine, and no mistake of the program that a trace would show."""

app = typer.Typer(
    name="pcm-p2p",
    help="Peer-to-peer patch and configuration management: one WAN download per office, signed policy, honest compliance.\n\n"
    "New here? 'pcm-p2p lab up' brings a whole fleet up on this machine. 'pcm-p2p COMMAND --help' says what a command does and "
    "how it ends; most print JSON with --json.",
    epilog=EXIT_STATUS_HELP,
    cls=Sections,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ceremony.mount(fleet.app)
workspace.mount(fleet.app)
people.mount(key.app, fleet.app)
fleet_check.mount(fleet.app)
fleet.app.add_typer(recover.app, name="recover")
in_order(fleet.app, "init", "sheet", "stage", "activate", "check", "renew", "refresh", "workspace", "threshold")
in_order(release.app, "add", "show", "plan")
in_order(policy.app, "check", "put", "remove", "allow")
in_order(enroll.app, "desk", "token", "list", "revoke", "join", "pending", "approve", "deny")
app.add_typer(fleet.app, name="fleet")
app.add_typer(key.app, name="key")
app.add_typer(release.app, name="release")
app.add_typer(policy.app, name="policy")
delegation.mount(site_alone.app)
in_order(site_alone.app, "delegate", "show", "revoke", "found", "autonomous", "floor")
app.add_typer(site_alone.app, name="site")
app.add_typer(delegation.team_app, name="team")
app.add_typer(halt.app, name="halt")
app.add_typer(proposal.app, name="proposal")
signing.mount(app)
app.add_typer(audit.app, name="audit")
app.add_typer(origin.app, name="origin")
app.add_typer(enroll.app, name="enroll")
app.add_typer(device.app, name="device")
new_authority.mount()
node.mount(app)
app.add_typer(apply_service.app, name="apply-service")
app.add_typer(store.app, name="store")
collector.mount(app)
app.add_typer(lab.app, name="lab")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pcm-p2p {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@cache
def _command() -> TyperGroup:
    """All commands, made once a process: that takes 0.2 s of computing, which a caller of many commands pays once."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup), "an application with groups of commands is one"
    name_types(group)
    return group


def run(arguments: list[str] | None = None) -> None:
    """Entry point of the ``pcm-p2p`` script."""
    try:
        _command()(args=arguments, prog_name="pcm-p2p")
    except PcmError as error:
        report(error)
        sys.exit(error.exit_status)
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        report(
            StorageError(f"{where}{error.strerror}", remedy="Make room, and repeat the command: it goes on from there.")
        )
        sys.exit(StorageError.exit_status)
    except BaseExceptionGroup as group:
        # trio nurseries wrap what a task raised; the person wants the cause, not the tree.
        inner = _first(group)
        if isinstance(inner, PcmError):
            report(inner)
            sys.exit(inner.exit_status)
        raise
    except KeyboardInterrupt:
        sys.exit(130)


def report(error: PcmError) -> None:
    # Messages quote what strangers wrote; it must not reach the terminal as anything but text.
    message = "\n".join(shown(line) for line in error.message.split("\n"))
    sys.stderr.write(f"pcm-p2p: {message}\n")
    if error.remedy:
        sys.stderr.write(f"  {error.remedy}\n")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner


if __name__ == "__main__":
    run()
