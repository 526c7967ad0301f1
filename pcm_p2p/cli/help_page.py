"""What ``pcm-p2p --help`` looks like: commands under the person or machine that uses them, in the order in which they are met."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup

if TYPE_CHECKING:
    import typer

SECTIONS = {
    "First of all": ("lab",),
    "On the authority's machine": (
        *("fleet", "key", "release", "policy", "sign", "publish", "halt", "proposal", "merge"),
        *("site", "team", "device", "audit"),
    ),
    "Servers": ("origin", "enroll", "collector"),
    "On a device": ("daemon", "status", "why", "peers", "assess", "doctor", "store", "apply-service"),
}


class Sections(TyperGroup):
    """Each command stands in one section; what is in none would stand in ``Others``."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - as in the library
        others = [name for name in self.commands if not any(name in names for names in SECTIONS.values())]
        width = max(map(len, self.commands))
        for title, names in (*SECTIONS.items(), ("Others", others)):
            rows = [
                (f"{name:<{width}}", self.commands[name].get_short_help_str(formatter.width - 6 - width))
                for name in names
                if name in self.commands
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def name_types(command: Any) -> None:
    """Let options that may be repeated be shown like others, ``<path>`` and not ``<list[Path]>``: below ``command``, too."""
    for one in getattr(command, "commands", {}).values():
        name_types(one)
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.multiple and parameter.metavar is None:
            parameter.metavar = "<path>" if "Path" in parameter.bare_type() else "<str>"


def in_order(app: typer.Typer, *names: str) -> None:
    """Let the commands of ``app`` be listed as ``names`` say, and before all that are not named."""

    def place(command: Any) -> int:
        name = command.name or command.callback.__name__
        return names.index(name) if name in names else len(names)

    app.registered_commands.sort(key=place)
