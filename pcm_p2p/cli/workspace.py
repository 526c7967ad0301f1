"""``fleet workspace``: a folder to sign in, for people of a site or team."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcm_p2p.cli.output import Json, note, print_facts, print_json


def mount(app: typer.Typer) -> None:
    app.command()(workspace)


def workspace(
    folder: Annotated[Path, typer.Argument(help="The folder to make, or to bring up to date.")],
    source: Annotated[str, typer.Option("--from", help="The published tree: a folder, or the URL of an origin.")],
    root: Annotated[
        Path | None,
        typer.Option(help="The fleet's first root, as its authority handed it to you; the first time only."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a folder to sign in, out of what is published. It is verified like a device does, and holds no key of the fleet.

    People of a site or team stage and sign in it ('policy put --site', 'release add --team', 'sign', 'halt') and carry the result
    to whoever publishes ('proposal export'). Run it again to learn what is new; what is proposed here stays.

    Example: pcm-p2p fleet workspace berlin --from https://updates.example.org --root 1.root.json

    EXIT STATUS: 0; 2 the folder or root cannot be used; 5 what is there cannot be believed, or is older than what is here; 7 it
    did not deliver.
    """
    import trio

    from pcm_p2p.daemon.workspace import Workspace, bring_workspace, open_tree
    from pcm_p2p.errors import InputError

    def pinned() -> bytes | None:
        try:
            return root.read_bytes() if root is not None else None
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror}", path=root, remedy="Check the path, and who may read it."
            ) from None

    async def bring() -> Workspace:
        from pcm_p2p.authority.staging import system_clock

        async with open_tree(source) as tree:
            return await bring_workspace(folder, tree, pinned(), wall_clock=system_clock)

    brought = trio.run(bring)
    facts = {
        "fleet": f"{brought.folder.name}  ({brought.folder.fleet_id})",
        "folder": str(folder),
        **brought.versions._asdict(),
    }
    if json:
        print_json(
            {
                "schema": "pcm.workspace/1",
                **facts,
                "problems": list(brought.problems),
                "overtaken": list(brought.overtaken),
            }
        )
        return
    print_facts(facts)
    for problem in brought.problems:
        note(f"! {problem}")
    for role in brought.overtaken:
        note(
            f"! what was proposed here for {role} counts no more: something else of it was published meanwhile."
            " Look what of it is missing there, and propose that anew."
        )
    note("Next: stage in it, 'pcm-p2p sign', and carry the result with 'pcm-p2p proposal export'.")
