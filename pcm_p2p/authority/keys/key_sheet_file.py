"""Writing the sheet about a fleet's keys: from a fleet folder to a page for a browser's printer, or to text."""

from __future__ import annotations

from pathlib import Path

import jinja2
from tuf.api.metadata import Root  # type: ignore[attr-defined]

from pcm_p2p.authority import delegating
from pcm_p2p.authority.keys.key_sheet import KeySheet, as_fields, as_text, key_sheet
from pcm_p2p.authority.keys.key_test_file import holders_of
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError

TEMPLATES = Path(__file__).resolve().parent / "templates"
ENDINGS = (".html", ".txt")


def sheet_of(folder: FleetFolder) -> KeySheet:
    """The sheet of a fleet as its folder stands. Raises ``StorageError`` if the record of tests cannot be read."""
    documents = ((role, folder.document(role) or folder.proposed(role)) for role in folder.roles())
    expiries = tuple((role, one.signed.expires) for role, one in documents if one is not None)
    thresholds = {}
    for role in ("snapshot", "timestamp", *folder.roles()):
        delegator = folder.delegator(role)
        if isinstance(delegator, Root):
            thresholds[role] = delegator.roles[role].threshold
        elif delegator is not None and (given := delegating.holders(delegator, role)) is not None:
            thresholds[role] = given[1]
    return key_sheet(
        folder.name, folder.fleet_id, folder.root(), expiries, holders_of(folder), thresholds, made=folder.wall_clock()
    )


def write_sheet(folder: FleetFolder, path: Path) -> KeySheet:
    """Write the sheet to ``path``, as HTML or text by its ending, in the place of an older one. Raises ``InputError``."""
    if path.suffix not in ENDINGS:
        raise InputError("has no ending that tells the form", path=path, remedy="End it in .html or .txt.")
    sheet = sheet_of(folder)
    text = as_text(sheet) if path.suffix == ".txt" else as_html(sheet)
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror}", path=path, remedy="Check the path, and who may write there."
        ) from None
    return sheet


def as_html(sheet: KeySheet) -> str:
    """One page without scripts, links or pictures, laid out for A4."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("key_sheet.html").render(as_fields(sheet))
