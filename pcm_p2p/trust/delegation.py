"""Delegated roles: a team signs its own releases, a site its own policies, and any one authority a halt. Pure.

===============  =====================  ==========================================================================
role             signs                  lists them in
===============  =====================  ==========================================================================
``team-<team>``  ``releases/<team>/*``  ``releases/<team>/index.json``
``site-<site>``  ``policies/<site>/*``  ``policies/<site>/index.json``
``halt``         ``halts/*``            ``halts/index.json``
``targets``      everything else        ``index.json``; it alone delegates
===============  =====================  ==========================================================================

Each delegation has the one path pattern of its name and is terminating, and no two patterns meet. So a path belongs to one role,
which its name tells, and nobody can be outvoted or shadowed by the order of delegations (research/trust.md 2: 5, 5b, 15a).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal

from pcm_p2p.errors import UntrustedBytes

HALT: Final = "halt"
TARGETS: Final = "targets"
FLEET_TEAM: Final = "main"
"""The folder of the fleet's own releases; no team has this name."""
NAME_LENGTH_MAX = 64
DELEGATIONS_MAX = 1_000
"""Choice, from a measurement: python-tuf loads 1,000 delegated roles' delegations in 41 ms (research/trust.md 1.6)."""

Kind = Literal["team", "site", "halt"]

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?=[A-Za-z0-9_-])){0,63}"
"""Narrower than other names: what python-tuf writes into a file name as it stands, and nothing that a pattern means."""
ROLE_PATTERN: Final = rf"halt|(?:team|site)-{_NAME}"
_ROLE = re.compile(rf"(team|site)-({_NAME})")
_FOLDER: dict[str, str] = {"team": "releases", "site": "policies"}


def team_role(team: str) -> str:
    """The role of a team. Raises ``UntrustedBytes`` for a name that no team can have."""
    if team == FLEET_TEAM:
        raise UntrustedBytes(f"no team is called {FLEET_TEAM!r}: that is the folder of the fleet's own releases")
    return _role("team", team)


def site_role(site: str) -> str:
    """The role of a site. Raises ``UntrustedBytes`` for a name that cannot be delegated to."""
    return _role("site", site)


def kind_of(role: str) -> tuple[Kind, str] | None:
    """``("site", "berlin")`` of ``site-berlin``; ``None`` where no such role can be delegated."""
    if role == HALT:
        return "halt", ""
    match = _ROLE.fullmatch(role)
    if match is None or (match[1], match[2]) == ("team", FLEET_TEAM):
        return None
    return ("team", match[2]) if match[1] == "team" else ("site", match[2])


def folder_of(role: str) -> str:
    """The folder that a role speaks for, ending in a slash; empty for the top-level targets. Raises ``UntrustedBytes``."""
    if role == TARGETS:
        return ""
    kind = kind_of(role)
    if kind is None:
        raise UntrustedBytes(f"{role[:80]!r} is not a role that is delegated")
    return "halts/" if kind[0] == "halt" else f"{_FOLDER[kind[0]]}/{kind[1]}/"


def index_of(role: str) -> str:
    """The target in which a role lists what it publishes. Raises ``UntrustedBytes``."""
    return f"{folder_of(role)}index.json"


def pattern_of(role: str) -> str:
    """The one path pattern of a delegated role. Raises ``UntrustedBytes``."""
    return f"{folder_of(role)}*"


def role_of_path(path: str) -> str:
    """The only role that may sign the target ``path``: a matter of its name alone."""
    parts = path.split("/")
    role = TARGETS
    if len(parts) == 2 and parts[0] == "halts":
        role = HALT
    elif len(parts) == 3 and parts[0] == "releases" and parts[1] != FLEET_TEAM:
        role = f"team-{parts[1]}"
    elif len(parts) == 3 and parts[0] == "policies":
        role = f"site-{parts[1]}"
    return role if role == TARGETS or kind_of(role) is not None else TARGETS


def every_role(role: str) -> bool:  # noqa: ARG001 - the shape of a choice of roles
    """Who serves others wants all of them: collectors and relays."""
    return True


def roles_of_device(site: str) -> Callable[[str], bool]:
    """The delegated roles that concern a device of ``site``: its own site's, all teams', and halts."""

    def concerns(role: str) -> bool:
        kind = kind_of(role)
        return kind is not None and (kind[0] != "site" or kind[1] == site)

    return concerns


def title_of(role: str) -> str:
    """For people: ``site berlin``, ``team tools``, ``halt``; any other role by its own name."""
    kind = kind_of(role)
    return role if kind is None or kind[0] == "halt" else f"{kind[0]} {kind[1]}"


def _role(kind: str, name: str) -> str:
    role = f"{kind}-{name}"
    if _ROLE.fullmatch(role) is None:
        raise UntrustedBytes(
            f"{kind} {name[:80]!r} cannot be delegated to: letters, digits and . _ - only, starting with a letter or "
            f"digit, at most {NAME_LENGTH_MAX} characters"
        )
    return role
