"""What is to be done after something was staged, signed or merged: here, or where it has to be carried.

A folder without the publisher's keys (a workspace, a signer's copy) cannot publish: from there a proposal is carried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pcm_p2p.cli.output import note, out, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pcm_p2p.authority.proposal import Proposal
    from pcm_p2p.authority.repository import FleetFolder


def can_publish(folder: FleetFolder) -> bool:
    """Whether the publisher's keys are in ``folder``."""
    from pcm_p2p.authority.people.changes import online_key_file

    return online_key_file(folder, "timestamp", proposed=False).exists()


def refuse_without_keys(folder: FleetFolder) -> None:
    """Raises ``InputError`` where nothing can be published, before anybody is asked for a passphrase."""
    from pcm_p2p.errors import InputError

    if not can_publish(folder):
        raise InputError(
            "the publisher's keys are not in it",
            path=folder.path,
            remedy="Carry what is proposed to who publishes: 'pcm-p2p proposal export FILE', there 'proposal import FILE'.",
        )


def after_staging(folder: FleetFolder, *, before: str = "", more: str = ".") -> None:
    """``before`` stands in front of it; ``more`` ends the sentence and may go on."""
    proposals = folder.proposals()
    if not proposals:
        note("That is what is published already: nothing is proposed.")
        return
    if can_publish(folder):
        step = "'pcm-p2p sign' and 'pcm-p2p publish'"
    else:
        step = f"'pcm-p2p sign', then '{_export(proposals)}', and carry that file to who publishes"
    note(f"{before}Next: {step}{more}")


def print_staged(folder: FleetFolder, target: str, *, json: bool) -> None:
    """What a command staged, and the next step; ``target`` is the path of the document."""
    if json:
        proposed = [f"{one.role} {one.version_after}" for one in folder.proposals()]
        print_json({"schema": "pcm.staged/1", "target": target, "proposed": proposed})
        return
    out().print(f"staged {target}", markup=False)
    after_staging(folder)


def after_signing(folder: FleetFolder, proposals: Sequence[Proposal]) -> None:
    """Says nothing where nothing is proposed."""
    if not proposals:
        return
    complete = all(one.complete for one in proposals)
    if not can_publish(folder):
        others = "" if complete else " The other signatures can be made here before, or there."
        note(f"Next: '{_export(proposals)}', and carry that file to who publishes ('pcm-p2p proposal import').{others}")
    elif complete:
        note("Next: 'pcm-p2p publish'.")
    else:
        ready = folder.ready_alone()
        first = f" What is complete can go first: 'pcm-p2p publish {only(ready)}'." if ready else ""
        note(f"Next: the others sign, here or carried ('pcm-p2p proposal export FILE').{first}")


def only(roles: Sequence[str]) -> str:
    return " ".join(f"--only {role}" for role in roles)


def _export(proposals: Sequence[Proposal]) -> str:
    """The publisher's folder has no blobs of releases that were made elsewhere."""
    new = any(
        change.path.endswith(".manifest") and change.kind != "removed" for one in proposals for change in one.changes
    )
    return "pcm-p2p proposal export FILE" + (" --with-segments" if new else "")
