"""The command line of the foreign conformance suite, over a repository of strangers on a real web server."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from pcm_p2p.trust import tufcli

EXPIRES = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
CONTENT = b"not of this product"
PATH = "a b/ünique.txt"
"""A name that no fleet of this product could have: foreign repositories are not linted."""


class Repository:
    """Static files, signed by one key that holds every role."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = CryptoSigner.generate_ed25519()
        self.version = 0
        self.root = Root(expires=EXPIRES, consistent_snapshot=True)
        for role in ("root", "timestamp", "snapshot", "targets"):
            self.root.add_key(self.key.public_key, role)
        self.put("metadata/1.root.json", self.signed(self.root))
        self.publish(CONTENT)

    def publish(self, content: bytes) -> None:
        self.version += 1
        targets = Targets(version=self.version, expires=EXPIRES)
        targets.targets[PATH] = TargetFile.from_data(PATH, content, ["sha256"])
        snapshot = Snapshot(version=self.version, expires=EXPIRES, meta={"targets.json": MetaFile(self.version)})
        timestamp = Timestamp(version=self.version, expires=EXPIRES, snapshot_meta=MetaFile(self.version))
        self.put(f"metadata/{self.version}.targets.json", self.signed(targets))
        self.put(f"metadata/{self.version}.snapshot.json", self.signed(snapshot))
        self.put("metadata/timestamp.json", self.signed(timestamp))
        folder, _, name = PATH.rpartition("/")
        self.put(f"targets/{folder}/{hashlib.sha256(content).hexdigest()}.{name}", content)

    def signed(self, document: Root | Timestamp | Snapshot | Targets) -> bytes:
        metadata = Metadata(document)
        metadata.sign(self.key)
        return metadata.to_bytes()

    def put(self, path: str, data: bytes) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_bytes(data)


class Client:
    """The command as the suite calls it; ``requests`` lists what the server was asked for."""

    def __init__(self, folder: Path, url: str, requests: list[str]) -> None:
        self.metadata, self.targets, self.url, self.requests = folder / "metadata", folder / "targets", url, requests
        self.metadata.mkdir(parents=True)
        self.targets.mkdir()

    def init(self, root: Path) -> int:
        return tufcli.main(["--metadata-dir", str(self.metadata), "init", str(root)])

    def refresh(self) -> int:
        return tufcli.main([*self._metadata(), "refresh"])

    def download(self, *names: str) -> int:
        chosen = [part for name in names for part in ("--target-name", name)]
        place = ["--target-dir", str(self.targets), "--target-base-url", f"{self.url}/targets"]
        return tufcli.main([*self._metadata(), *chosen, *place, "download"])

    def _metadata(self) -> list[str]:
        return ["--metadata-dir", str(self.metadata), "--metadata-url", f"{self.url}/metadata"]

    def version(self, role: str) -> int:
        return int(Metadata.from_file(str(self.metadata / f"{role}.json")).signed.version)

    def downloaded(self) -> list[bytes]:
        return [file.read_bytes() for file in self.targets.rglob("*") if file.is_file()]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "tree")


@pytest.fixture
def client(repository: Repository, tmp_path: Path) -> Iterator[Client]:
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(repository.folder))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        client = Client(tmp_path / "client", f"http://127.0.0.1:{server.server_port}", requests)
        assert client.init(repository.folder / "metadata/1.root.json") == 0
        yield client
        server.shutdown()
        thread.join()


def test_init_pins_and_asks_nobody(client: Client) -> None:
    assert client.version("root") == 1
    assert client.requests == []


def test_a_refresh_keeps_what_it_verified_under_the_names_of_the_roles(client: Client, repository: Repository) -> None:
    assert client.refresh() == 0
    assert {role: client.version(role) for role in ("root", "timestamp", "snapshot", "targets")} == dict.fromkeys(
        ("root", "timestamp", "snapshot", "targets"), 1
    )
    repository.publish(b"second")
    assert client.refresh() == 0
    assert client.version("targets") == 2


def test_a_refusal_keeps_the_verified_part_and_says_who_is_to_blame(
    client: Client, repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    assert client.refresh() == 0
    repository.publish(b"second")
    (repository.folder / "metadata/2.snapshot.json").unlink()
    assert client.refresh() == 1
    assert capsys.readouterr().err.startswith("incomplete: ")
    assert (client.version("timestamp"), client.version("snapshot")) == (2, 1), "nothing is staged here"
    repository.put("metadata/timestamp.json", (repository.folder / "metadata/1.targets.json").read_bytes())
    assert client.refresh() == 1
    assert capsys.readouterr().err.startswith("bad: ")
    repository.put("metadata/timestamp.json", b"x" * 20_000)
    assert client.refresh() == 1
    assert "longer than 16384 bytes" in capsys.readouterr().err, "the limits are those of devices"


def test_a_target_is_downloaded_once_and_again_when_it_changed(client: Client, repository: Repository) -> None:
    assert client.download(PATH) == 0
    assert client.downloaded() == [CONTENT]
    asked = sum("/targets/" in path for path in client.requests)
    assert client.download(PATH) == 0
    assert sum("/targets/" in path for path in client.requests) == asked, "fetched twice"
    repository.publish(b"changed")
    assert client.download(PATH) == 0
    assert client.downloaded() == [b"changed"], "under the same name"


def test_several_targets_stop_at_the_first_that_is_missing(client: Client) -> None:
    assert client.download("no such target", PATH) == 1
    assert client.downloaded() == []


def test_a_repository_that_is_gone(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.url = "http://127.0.0.1:1"
    assert client.refresh() == 1
    assert capsys.readouterr().err.startswith("incomplete: ")
    assert client.version("root") == 1


def test_usage_errors_are_no_verdicts(client: Client) -> None:
    with pytest.raises(SystemExit, match="2"):
        tufcli.main(["--metadata-dir", str(client.metadata), "refresh"])
    with pytest.raises(SystemExit, match="2"):
        tufcli.main(["--metadata-dir", str(client.metadata), "--metadata-url", client.url, "download"])


def test_nothing_in_the_product_can_reach_a_verifier_without_lint() -> None:
    importing = re.compile(r"^\s*(from|import)\b.*\btufcli\b", re.MULTILINE)
    package = Path(tufcli.__file__).parents[1]
    assert [path for path in package.rglob("*.py") if importing.search(path.read_text(encoding="utf-8"))] == []
