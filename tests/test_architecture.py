"""The house rules that a machine can check. Each failure says which line breaks which rule, and what to do instead.

The rules are those of the package's own docstring: imports point downwards, cores decide without touching the world, a room's
``__init__`` is its page and nothing else, one noun per file, hostile bytes are decoded in functions that say so in their name.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
PACKAGE = TOP / "pcm_p2p"
LINES_MAX = 500

NOUNS = {"errors", "ids", "toml_document", "durable", "lock_file", "private_file", "shown_text", "config"}
"""Below every room, in the order in which they may know each other."""

PLATFORM = {"sidecar", "database"}
"""Shells that every shell may use."""

ENTRY = "__main__"
"""``python -m pcm_p2p``: starts the application of ``cli`` and knows nothing else."""

KNOWS: dict[str, set[str]] = {
    # A room and the rooms whose cores it may use. Not named: it knows the nouns only.
    "content": set(),
    "wire": set(),
    "policy": set(),
    "trust": {"content"},
    "authority": {"content", "policy", "trust"},
    "enrolment": {"authority", "trust", "wire"},
    "gossip": {"wire"},
    "swarm": {"content", "wire"},
    "apply": {"policy"},
    "compliance": {"policy", "wire"},
    "collector": {"compliance", "wire"},
    "lab": {"content"},
}
ABOVE = {"daemon", "cli"}
"""Where everything is wired; nothing below may know them."""

SHELLS_OF_OTHERS = {
    # A shell that other rooms may use, and why.
    "wire.session": "a session is the room's one product: gossip opens them, the others speak through them",
    "wire.link": "the stream below a session, opened together with it",
    "trust.identity": "who a member is, and the TLS contexts that follow: the desk and joining make identities",
    "authority.fleet_ca": "the desk certifies members with it; its key file is the authority's",
    "authority.repository": "the fleet folder is what invitations and the desk read",
    "content.keeping.store": "chunks are put where they belong as they arrive; the store is a folder with rules, not a service",
}

CORES = {
    *("content.chunk", "content.manifest", "content.pieces", "content.segment", "content.xz_packing"),
    *("content.delta.blob", "content.delta.covers", "content.delta.gzip_members", "content.delta.repacking"),
    *("content.delta.stretches", "content.decoding.job", "content.forms.member", "content.keeping.inventory"),
    *("content.publishing.chunker", "content.publishing.deltas", "content.publishing.matching"),
    *("wire.doorkeeper", "wire.framing", "wire.messages"),
    *(
        "policy.activation",
        "policy.allowance",
        "policy.condition",
        "policy.desired",
        "policy.expression",
        "policy.fitness",
        "policy.document",
        "policy.places",
        "policy.precedence",
        "policy.resource",
        "policy.selector",
    ),
    *("trust.certificate", "trust.deny", "trust.fleet_document", "trust.floor", "trust.index", "trust.lint"),
    *("trust.delegation", "trust.halt", "trust.site_root"),
    *("authority.keys.fingerprint", "authority.keys.public_key"),
    *("authority.keys.words", "authority.proposal", "authority.release_list"),
    *("authority.people.founders", "authority.keys.key_sheet", "authority.keys.key_test"),
    *("authority.delegating", "authority.difference", "authority.document_difference", "shown_text"),
    *("authority.halt_difference", "authority.fleet_floor", "authority.site_judgement"),
    *("authority.audit.log", "authority.carry.bundle"),
    *("authority.people.expiry", "authority.people.rotation", "authority.carry.signature_file"),
    *("authority.carry.carried_proposal", "authority.carry.pin"),
    *("enrolment.admittance", "enrolment.device_code", "enrolment.introduction", "enrolment.passage"),
    *("enrolment.renewal_times", "enrolment.token"),
    *("gossip.beacon", "gossip.clones", "gossip.exposure", "gossip.membership", "gossip.peer", "gossip.spread"),
    *("gossip.targets",),
    *("swarm.announcements", "swarm.claims", "swarm.conduct", "swarm.events", "swarm.exchange", "swarm.holdings"),
    *("swarm.keepers", "swarm.keeping", "swarm.rebuilding"),
    *(
        "swarm.fetching",
        "swarm.lending",
        "swarm.mirrors",
        "swarm.ownership",
        "swarm.picker",
        "swarm.prices",
        "swarm.rendezvous",
    ),
    *("swarm.agenda", "swarm.settling", "swarm.troubles", "swarm.turns"),
    *("apply.dialogue", "apply.judgement", "apply.plan", "apply.receipt", "apply.step"),
    *("compliance.assessment", "compliance.courier", "compliance.finding", "compliance.handover", "compliance.report"),
    *("compliance.acknowledgement", "compliance.carriage", "compliance.parcel", "compliance.record"),
    *("compliance.version_order", "compliance.facts.observation"),
    *("collector.changes", "collector.console.access", "collector.console.presentation"),
    *("lab.result", "lab.scenario"),
}
"""Modules that decide: no I/O, no trio, no clock, no randomness of their own."""

OF_THE_WORLD = {
    # What a core does not import, and what it does instead.
    **dict.fromkeys(
        ("trio", "anyio", "asyncio", "threading", "multiprocessing", "queue"), "return effects; a shell waits"
    ),
    **dict.fromkeys(("time", "sched"), "take the time as an argument"),
    **dict.fromkeys(("secrets", "uuid"), "take an rng as an argument"),
    **dict.fromkeys(("os", "shutil", "tempfile", "glob", "fcntl", "mmap"), "take the bytes as an argument"),
    **dict.fromkeys(
        ("socket", "ssl", "httpx2", "zeroconf", "http", "urllib.request"), "return effects; a shell speaks"
    ),
    **dict.fromkeys(("sqlite3", "aiosqlite", "subprocess", "signal"), "return effects; a shell performs them"),
    "logging": "return what happened; a shell says it",
}
ALLOWED_ALL_THE_SAME = {
    ("content.chunk", "threading"): "one compressor for each thread; nothing waits there",
}
READS_A_CLOCK = {"now", "utcnow", "today"}
TOUCHES_FILES = {
    "read_bytes",
    "read_text",
    "write_bytes",
    "write_text",
    "unlink",
    "mkdir",
    "iterdir",
    "exists",
    "is_file",
}
DUMPING_GROUNDS = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "stuff", "lib", "tools"}
UNFINISHED = re.compile(
    "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK", "for n" + "ow", "simpli" + "fied"))
)


@dataclass(frozen=True)
class Module:
    path: Path

    @cached_property
    def name(self) -> str:
        """Below the package: ``swarm.picker``; a room's own page is ``swarm``; the package's is empty."""
        parts = self.path.relative_to(PACKAGE).with_suffix("").parts
        return ".".join(parts).removesuffix("__init__").removesuffix(".")

    @cached_property
    def room(self) -> str:
        """The room, or the module itself where it stands beside the rooms."""
        return self.name.split(".")[0]

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def at(self, node: ast.stmt | ast.expr) -> str:
        return f"{self.path.relative_to(TOP)}:{node.lineno}"

    def imports(self) -> Iterator[tuple[ast.stmt, str]]:
        """Each imported module by its full name; ``from room import module`` counts as the module."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.at(node)}: write the full name of the module, not a relative one"
                assert node.module is not None
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    yield node, full if full in MODULE_NAMES else node.module

    def own_imports(self) -> Iterator[tuple[ast.stmt, str]]:
        """Imports of this package, named from below it."""
        for node, name in self.imports():
            if name == "pcm_p2p" or name.startswith("pcm_p2p."):
                yield node, name.removeprefix("pcm_p2p").removeprefix(".")


MODULES = [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]
MODULE_NAMES = {f"pcm_p2p.{module.name}" for module in MODULES if module.name}
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
named = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name or "pcm_p2p")
cores = pytest.mark.parametrize("name", sorted(CORES))


def module(name: str) -> Module:
    return next(each for each in MODULES if each.name == name)


def refuse(faults: list[str]) -> None:
    assert not faults, "\n" + "\n".join(faults)


def test_every_room_has_its_place() -> None:
    assert {*KNOWS, *ABOVE} == set(ROOMS), "a room is missing in KNOWS (what may it know?), or is listed and gone"
    loose = {each.name for each in MODULES if "." not in each.name and each.path.name != "__init__.py"}
    assert loose == NOUNS | PLATFORM | {ENTRY}, (
        "a module beside the rooms is a noun for everyone or part of the platform; say which"
    )


@named
def test_imports_point_downwards(module: Module) -> None:
    if module.name == ENTRY:
        assert [name for _, name in module.own_imports()] == ["cli.main"]
        return
    if module.room in ABOVE:
        allowed_above = {"cli": ABOVE, "daemon": {"daemon"}}[module.room]
        refuse(
            [
                f"{module.at(node)}: {module.name} imports {name}, which is above it; turn the dependency round"
                for node, name in module.own_imports()
                if name.split(".")[0] in ABOVE - allowed_above
                or (module.room == "daemon" and name.split(".")[0] == "lab")
            ]
        )
        return
    faults = []
    for node, name in module.own_imports():
        room = name.split(".")[0]
        where = f"{module.at(node)}: {module.name or 'pcm_p2p'} imports {name or 'pcm_p2p'}"
        if room in ABOVE:
            faults.append(f"{where}; nobody imports {room}: define a small Protocol here and let {room} hand it in")
        elif module.room in NOUNS and room not in NOUNS | {""}:
            faults.append(f"{where}; a noun for everyone knows other nouns only")
        elif module.room in PLATFORM and room not in NOUNS | PLATFORM:
            faults.append(f"{where}; the platform knows nouns only")
        elif room in ROOMS and room != module.room:
            if room not in KNOWS[module.room]:
                faults.append(f"{where}; the room {module.room} does not know {room}: define a small Protocol instead")
            elif name not in CORES and name not in SHELLS_OF_OTHERS:
                faults.append(
                    f"{where}, a shell of another room; define a Protocol here, and let the daemon hand it in"
                )
    refuse(faults)


@cores
def test_a_core_exists_and_is_listed_right(name: str) -> None:
    assert f"pcm_p2p.{name}" in MODULE_NAMES, f"{name} is listed as a core and is gone; correct CORES"


@cores
def test_a_core_does_not_touch_the_world(name: str) -> None:
    core, faults = module(name), []
    for node, imported in core.imports():
        for banned, instead in OF_THE_WORLD.items():
            if (imported == banned or imported.startswith(f"{banned}.")) and (
                name,
                imported,
            ) not in ALLOWED_ALL_THE_SAME:
                faults.append(f"{core.at(node)}: the core {name} imports {imported}; {instead}")
    for node, imported in core.own_imports():
        if imported.split(".")[0] in PLATFORM or (imported.split(".")[0] in ROOMS and imported not in CORES):
            faults.append(f"{core.at(node)}: the core {name} imports {imported}, a shell; cores know cores and nouns")
    for each in ast.walk(core.tree):
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id == "open":
            faults.append(f"{core.at(each)}: the core {name} opens a file; take the bytes as an argument")
        if isinstance(each, ast.Attribute):
            faults += _forbidden_attribute(core, each)
    refuse(faults)


def _forbidden_attribute(core: Module, node: ast.Attribute) -> list[str]:
    where = f"{core.at(node)}: the core {core.name}"
    owner = node.value.id if isinstance(node.value, ast.Name) else ""
    if owner == "random" and node.attr != "Random":
        return [f"{where} draws from random.{node.attr}; take an rng as an argument"]
    if owner in ("datetime", "date") and node.attr in READS_A_CLOCK:
        return [f"{where} reads the clock with {owner}.{node.attr}; take the time as an argument"]
    if node.attr in TOUCHES_FILES:
        return [f"{where} touches a file with .{node.attr}; take the bytes as an argument"]
    return []


@cores
def test_a_core_makes_no_rng_of_its_own(name: str) -> None:
    core = module(name)
    refuse(
        [
            f"{core.at(node)}: the core {name} makes an rng without a seed; take one as an argument"
            for node in ast.walk(core.tree)
            if isinstance(node, ast.Call) and not node.args and ast.unparse(node.func) in ("random.Random", "Random")
        ]
    )


@pytest.mark.parametrize(
    "page", [each for each in MODULES if each.path.name == "__init__.py"], ids=lambda page: page.name
)
def test_the_page_of_a_room_holds_prose_only(page: Module) -> None:
    assert ast.get_docstring(page.tree), f"{page.path}: the room needs a page: participants, goals, non-goals, modules"
    rest = [node for node in page.tree.body[1:] if not (page.name == "" and "__version__" in ast.unparse(node))]
    assert not rest, f"{page.at(rest[0])}: a room's page holds no code; import from the module that owns the name"


@pytest.mark.parametrize("room", ROOMS)
def test_the_page_of_a_room_names_its_modules(room: str) -> None:
    prose = ast.get_docstring(module(room).tree) or ""
    missing = [
        each.path.stem
        for each in MODULES
        if each.path.parent == PACKAGE / room and not each.path.stem.startswith("__")
        if not re.search(rf"\b{each.path.stem}\b", prose)
    ]
    assert not missing, f"pcm_p2p/{room}/__init__.py: its table of modules lacks {', '.join(missing)}"


@named
def test_a_file_holds_one_noun(module: Module) -> None:
    lines = module.text.count("\n")
    assert lines <= LINES_MAX, f"{module.path}: {lines} lines; find the second noun in it and give it a file"
    assert module.path.stem not in DUMPING_GROUNDS, f"{module.path}: name the file after what it holds"
    assert ast.get_docstring(module.tree), f"{module.path}: say in a docstring what the file is for"


@named
def test_nothing_is_left_unfinished(module: Module) -> None:
    refuse(
        [
            f"{module.path.relative_to(TOP)}:{number}: {line.strip()[:80]}; finish it, or say what stands in its place"
            for number, line in enumerate(module.text.splitlines(), start=1)
            if UNFINISHED.search(line) or re.search(r"raise NotImplementedError", line)
        ]
    )


@named
def test_decoders_of_hostile_bytes_raise_one_error(module: Module) -> None:
    faults = []
    for function in ast.walk(module.tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name.endswith("_untrusted"):
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Raise)
                    and node.exc is not None
                    and "UntrustedBytes" not in ast.unparse(node.exc)
                ):
                    what = ast.unparse(node.exc)[:60]
                    faults.append(
                        f"{module.at(node)}: {function.name} raises {what}; such decoders raise UntrustedBytes only"
                    )
    refuse(faults)


@named
def test_names_come_from_the_module_that_owns_them(module: Module) -> None:
    refuse(
        [
            f"{module.at(node)}: import from the module that owns the name, not from the room {name}"
            for node, name in module.own_imports()
            if name in ROOMS
        ]
    )


def test_names_of_test_files_are_unique() -> None:
    counted = Counter(path.name for path in (TOP / "tests").rglob("*.py") if path.name != "conftest.py")
    twice = [name for name, count in counted.items() if count > 1]
    assert not twice, f"pytest imports tests by their file name; rename {', '.join(twice)}"


def test_the_commands_of_a_newcomer_can_be_run() -> None:
    for name in ("bootstrap/venv", "bootstrap/up", "bootstrap/test", ".ci/run"):
        assert (TOP / name).stat().st_mode & 0o111, f"{name} has no run bit: chmod +x {name}"


@named
def test_patterns_of_schemas_end_where_the_text_ends(module: Module) -> None:
    """``$`` also matches before a line break at the end: an id with one would pass, and be another key in every table."""
    refuse(
        [
            f"{module.at(node.value)}: the pattern {node.value.value!r} ends with '$'; end it with '\\Z'"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.keyword) and node.arg == "pattern"
            if isinstance(node.value, ast.Constant) and str(node.value.value).endswith("$")
        ]
    )
