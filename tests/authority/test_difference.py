"""What a person is shown before signing: everything that changes, and nothing that could paint the screen."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repository_simulator import START, small_manifest
from tuf.api.metadata import (  # type: ignore[attr-defined]
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    Role,
    Root,
    Signed,
    TargetFile,
    Targets,
)

from pcm_p2p.authority.audit.log import SigningAct, line_of
from pcm_p2p.authority.difference import Difference, difference
from pcm_p2p.authority.document_difference import log_lines, text_lines
from pcm_p2p.authority.keys.fingerprint import public_tuf_key
from pcm_p2p.shown_text import cut, shown

ALICE, BOB, CAROL = (
    public_tuf_key(bytes([number]) * 32, name) for number, name in ((1, "alice"), (2, "bob"), (3, "carol"))
)
POLICY = b'schema = "pcm.policy/1"\nid = "base"\nmode = "observe"\nversion = 1\n'


def a_root() -> Root:
    keys = {key.keyid: key for key in (ALICE, BOB)}
    roles = {role: Role(sorted(keys), 1) for role in ("root", "targets", "snapshot", "timestamp")}
    return Root(3, expires=START, keys=keys, roles=roles, unrecognized_fields={"x-pcm-fleet": "f" * 32})


def a_targets(**files: bytes) -> Targets:
    found = Targets(3, expires=START)
    for path, data in {"policies/base.toml": POLICY, **files}.items():
        found.targets[path] = TargetFile.from_data(path, data, ["sha256"])
    keys = {key.keyid: key for key in (ALICE, BOB)}
    roles = {
        name: DelegatedRole(name, sorted(keys), 1, True, paths=[path])
        for name, path in (("team-web", "releases/web/*"), ("site-hq", "policies/hq/*"))
    }
    found.delegations = Delegations(keys, roles)
    return found


def with_contents(*files: bytes) -> Callable[[str, str], bytes | None]:
    import hashlib

    held = {hashlib.sha256(data).hexdigest(): data for data in files}
    return lambda path, sha256: held.get(sha256)


def said(found: Difference, *, full: bool = False) -> list[str]:
    return list(found.lines(full=full))


# Empty if and only if the signed bytes are equal

TEXT = st.text(max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
EXTRA = st.dictionaries(TEXT.filter(bool).map(lambda text: f"x-{text}"), VALUES, max_size=2)
OWNERS = st.sampled_from(["alice", "bob", "\x1b[2Jmallory", ""])


@st.composite
def keys(draw: st.DrawFn) -> dict[str, Key]:
    found = {}
    for number in draw(st.sets(st.integers(1, 4), max_size=3)):
        key = public_tuf_key(bytes([number]) * 32, draw(OWNERS))
        key.unrecognized_fields.update(draw(EXTRA))
        found[key.keyid] = key
    return found


@st.composite
def roots(draw: st.DrawFn) -> Root:
    held = draw(keys())
    keyids = st.permutations(sorted(held)) if held else st.just([])
    roles = {
        name: Role(list(draw(keyids)), draw(st.integers(1, 2)), draw(EXTRA))
        for name in ("root", "targets", "snapshot", "timestamp")
    }
    return Root(
        draw(st.integers(1, 3)),
        expires=START + timedelta(days=draw(st.integers(0, 2))),
        keys=held,
        roles=roles,
        consistent_snapshot=draw(st.booleans()),
        unrecognized_fields=draw(EXTRA),
    )


@st.composite
def target_documents(draw: st.DrawFn) -> Targets:
    found = Targets(draw(st.integers(1, 3)), expires=START, unrecognized_fields=draw(EXTRA))
    for path in draw(st.sets(st.sampled_from(["policies/a.toml", "releases/main/t@1.manifest", "identity/deny.json"]))):
        info = TargetFile(draw(st.integers(0, 2)), {"sha256": draw(st.sampled_from(["a" * 64, "b" * 64]))}, path)
        info.unrecognized_fields = draw(EXTRA)
        if draw(st.booleans()):
            info.unrecognized_fields["custom"] = draw(VALUES.filter(lambda value: isinstance(value, dict)))
        found.targets[path] = info
    if draw(st.booleans()):
        held = draw(keys())
        names = draw(st.permutations(["team-web", "site-hq"]))
        roles = {
            name: DelegatedRole(
                name, sorted(held), draw(st.integers(1, 2)), draw(st.booleans()), paths=draw(st.lists(TEXT, max_size=2))
            )
            for name in names[: draw(st.integers(0, 2))]
        }
        found.delegations = Delegations(held, roles, unrecognized_fields=draw(EXTRA))
    return found


def signed_bytes(document: Signed) -> bytes:
    return Metadata(document).signed_bytes


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.tuples(roots(), roots()), st.tuples(target_documents(), target_documents())))
def test_the_difference_is_empty_if_and_only_if_the_signed_bytes_are_equal(pair: tuple[Signed, Signed]) -> None:
    before, after = pair
    assert bool(difference(before, after).changes) == (signed_bytes(before) != signed_bytes(after))
    assert not difference(before, copy.deepcopy(before)).changes


def leaves(tree: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(tree, dict | list) and tree:
        steps = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [leaf for step, inner in steps for leaf in leaves(inner, (*place, step))]
    return [place]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_one_leaf_that_changes_is_shown_whichever_it_is(data: st.DataObject) -> None:
    before: Signed = data.draw(st.one_of(roots(), target_documents()))
    tree = before.to_dict()
    place = data.draw(st.sampled_from(leaves(tree)))
    inner = tree
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = data.draw(VALUES)
    try:
        after = type(before).from_dict(copy.deepcopy(tree))
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # no such document can be proposed
    assert bool(difference(before, after).changes) == (signed_bytes(before) != signed_bytes(after))


@pytest.mark.parametrize("value", [None, 1.5, "x", {"a": None}], ids=repr)
@pytest.mark.parametrize("place", [("version",), ("roles", "root", "keyids"), ("x",)], ids=str)
def test_a_root_of_a_site_is_shown_whatever_it_holds(place: tuple[str, ...], value: object) -> None:
    """To the documents around it, it is a file: nobody has judged it before it is shown."""
    document = json.loads(Metadata(Root(1, expires=START)).to_bytes())
    *outer, last = place
    inner = document["signed"]
    for step in outer:
        inner = inner[step]
    inner[last] = [value, "a"] if last == "keyids" else value
    info = TargetFile.from_data("sites/berlin/root.json", data := json.dumps(document).encode(), ["sha256"])
    after = Targets(1, expires=START)
    after.targets["sites/berlin/root.json"] = info
    lines = said(difference(None, after, lambda path, sha256: data), full=True)
    assert len(lines) > 3
    assert all(line.isprintable() for line in lines)


@settings(max_examples=50, deadline=None)
@given(
    st.one_of(st.tuples(roots(), roots()), st.tuples(target_documents(), target_documents())), st.binary(max_size=60)
)
def test_nothing_that_is_shown_can_paint_the_screen(pair: tuple[Signed, Signed], document: bytes) -> None:
    lines = said(difference(*pair), full=True) + list(text_lines(b"x\n", document)) + list(text_lines(document, None))
    assert all(line.isprintable() for line in lines)


@given(st.text(), st.text())
@settings(max_examples=200, deadline=None)
def test_the_lines_of_a_text_give_both_sides_back(before: str, after: str) -> None:
    """Applying what is shown to the old text gives the new one: no line is lost, not even one that looks like a header."""
    old, new = before.encode("utf-8", "replace"), after.encode("utf-8", "replace")
    lines = list(text_lines(old, new))
    if old == new:
        return
    gone = [line[1:] for line in lines if line.startswith("-")]
    come = [line[1:] for line in lines if line.startswith("+")]
    left, right = ([shown(line) for line in side.decode().split("\n")] for side in (old, new))
    if left[-1] == right[-1] == "":
        left.pop(), right.pop()
    for line in gone:
        left.remove(line)
    for line in come:
        right.remove(line)
    assert left == right


# Root


def test_people_who_come_and_go_are_named_with_fingerprint_and_threshold() -> None:
    after = a_root()
    after.add_key(CAROL, "root")
    after.revoke_key(BOB.keyid, "targets")
    after.roles["root"].threshold = 2
    after.expires = datetime(2028, 1, 1, tzinfo=UTC)
    after.version = 4
    fingerprint = " ".join(CAROL.keyid[at : at + 4] for at in range(0, 32, 4))
    assert said(difference(a_root(), after)) == [
        "version 3 → 4",
        "expires 2026-03-01T12:00:00Z → 2028-01-01",
        f"+ key of carol  {fingerprint}  ed25519",
        f"+ root: carol may sign  {fingerprint}",
        "~ threshold of root 1 of 2 → 2 of 3",
        "- targets: bob signs no more  " + " ".join(BOB.keyid[at : at + 4] for at in range(0, 32, 4)),
    ]


def test_a_key_that_changes_its_name_is_shown() -> None:
    after = a_root()
    after.keys[BOB.keyid] = public_tuf_key(bytes([2]) * 32, "alice")
    (line,) = said(difference(a_root(), after))
    assert line.endswith("is said to be of bob → alice")


def test_what_has_no_sentence_is_shown_raw() -> None:
    after = a_root()
    after.unrecognized_fields["x-pcm-fleet"] = "e" * 32
    after.consistent_snapshot = False
    after.roles["root"].keyids.reverse()
    lines = said(difference(a_root(), after))
    assert lines[0].startswith("roles.root.keyids: [")
    assert lines[1:] == ["consistent_snapshot: true → false", f'x-pcm-fleet: "{"f" * 32}" → "{"e" * 32}"']


# Targets


def test_a_policy_is_shown_by_its_lines() -> None:
    changed = POLICY.replace(b"observe", b"enforce")
    after = a_targets(**{"policies/base.toml": changed})
    (headline, *details) = said(difference(a_targets(), after, with_contents(POLICY, changed)))
    assert headline.startswith("~ policies/base.toml  65 → 65 bytes  sha256 ")
    assert details == [
        "    @@ line 1 → 1",
        '     schema = "pcm.policy/1"',
        '     id = "base"',
        '    -mode = "observe"',
        '    +mode = "enforce"',
        "     version = 1",
    ]


def test_a_release_is_shown_by_what_is_in_it() -> None:
    manifest, _ = small_manifest()
    path = "releases/main/tool@1.0.manifest"
    after = a_targets(**{path: manifest.encoded})
    after.targets[path].unrecognized_fields["custom"] = {"counter": 1}
    lines = said(difference(a_targets(), after, with_contents(manifest.encoded)))
    assert lines[0].startswith(f"+ {path}  {len(manifest.encoded)} bytes  sha256 ")
    assert lines[1:] == [
        "    + tool 1.0, counter 1",
        f"    + artifact tool.bin  100 bytes  sha256 {manifest.artifacts[0].delivered_sha256.hex()[:16]}  (exact)",
        "    1 full segment, 12 bytes",
        '    custom: {"counter":1}',
    ]


def test_content_that_is_not_what_is_signed_is_never_shown_in_its_place() -> None:
    after = a_targets(**{"policies/base.toml": b"mode = 'enforce'\n"})
    lines = said(difference(a_targets(), after, lambda path, sha256: POLICY))
    digest = after.targets["policies/base.toml"].hashes["sha256"]
    assert lines[1:] == [f"    ! what comes is not at hand here; its SHA-256 is {digest}"]


def test_delegations_say_who_may_sign_which_paths() -> None:
    after = a_targets()
    assert after.delegations is not None
    assert after.delegations.roles is not None
    after.delegations.roles["site-lab"] = DelegatedRole("site-lab", [BOB.keyid], 1, True, paths=["policies/lab/*"])
    after.delegations.roles["team-web"].paths = ["releases/*/*"]
    after.delegations.roles["site-hq"].terminating = False
    lines = said(difference(a_targets(), after))
    assert lines[0] == "delegations.site-hq.terminating: true → false"
    assert lines[1] == "+ role site-lab: 1 of 1 must sign, for policies/lab/*"
    assert lines[2].startswith("+ site-lab: bob may sign  ")
    assert lines[3] == 'delegations.team-web.paths: ["releases/web/*"] → ["releases/*/*"]'


def test_the_root_of_a_site_is_shown_by_its_people() -> None:
    before, after = a_root(), a_root()
    after.revoke_key(ALICE.keyid, "root")
    path, files = "sites/hq/root.json", [Metadata(one).to_bytes() for one in (before, after)]
    documents = [a_targets(**{path: data}) for data in files]
    lines = said(difference(*documents, with_contents(*files)))
    assert any(line.startswith("    - root: alice signs no more") for line in lines)


# Bounds


def test_long_documents_are_cut_with_a_count_and_shown_in_full_on_request() -> None:
    long = b"".join(b"line = %d\n" % number for number in range(1_000))
    found = difference(a_targets(), a_targets(**{"policies/long.toml": long}), with_contents(long))
    lines = said(found)
    assert lines[-1] == "    … 940 lines more; --full shows them"
    assert len(said(found, full=True)) == 1_001
    assert cut("x" * 300) == "x" * 200 + " … 100 characters more"


def test_a_hundred_thousand_lines_that_differ_are_compared_quickly() -> None:
    before, after = (b"\n".join(b"%d" % (number * step) for number in range(100_000)) for step in (7, 11))
    assert sum(1 for line in text_lines(before, after) if line.startswith("+")) > 99_000


def test_a_json_document_on_one_line_is_laid_out_first() -> None:
    before = b'{"devices":[' + b",".join(b'{"id":"%032d"}' % number for number in range(50)) + b"]}"
    after = before.replace(b"%032d" % 7, b"%032d" % 1_007)
    lines = list(text_lines(before, after, json=True))
    assert [line for line in lines if line[0] in "-+"] == [f'-   "id": "{7:032d}"', f'+   "id": "{1_007:032d}"']


def entries(*owners: str) -> bytes:
    """A log with a signature by each."""
    lines: list[bytes] = []
    for owner in owners:
        act = SigningAct("sign", "targets", 1, 1, b"{}", "a" * 64, owner, "00")
        lines.append(line_of(act, after=lines[-1][:-1] if lines else None, time=START, tool="test"))
    return b"".join(lines)


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (entries("a", "b"), entries("a", "b", "c"), "+ 1 entries, after 2 that stay"),
        (entries("a", "b"), entries("a", "c"), "! 2 entries before, 2 after, and not as a continuation"),
        (None, entries("a"), "+ 1 entries, after 0 that stay"),
        (entries("a"), None, "- 1 entries"),
    ],
)
def test_a_log_is_shown_by_how_it_grows(before: bytes | None, after: bytes | None, line: str) -> None:
    assert list(log_lines(before, after)) == [line]


def test_lines_that_look_like_a_header_of_the_difference_are_shown() -> None:
    assert "--- " in list(text_lines(b"-- \nx\n", b"x\n"))


@pytest.mark.parametrize(
    ("text", "as_shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("a\u202eb", "a\\u202eb"),
        ("\t", "    "),
        ("é\u00a0", "é\\xa0"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_not_printable_is_written_out(text: str, as_shown: str) -> None:
    assert shown(text) == as_shown


@pytest.mark.parametrize("planted", [b"whatever\n", entries("a") + b"whatever\n", entries("a")[:-1], b"\n", b""])
def test_what_is_no_log_is_shown_whole_under_the_name_of_one(planted: bytes) -> None:
    assert not any(line.startswith("+ 1 entries") for line in log_lines(None, planted))
    assert ("whatever" in "\n".join(log_lines(None, planted))) == (b"whatever" in planted)
