"""Files of targets and blobs in the fleet folder: named by their hash, so that keeping one changes nothing that is published."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]

from pcm_p2p.authority.immutable_file import place_immutable
from pcm_p2p.content.manifest import Segment
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError, StorageError
from pcm_p2p.ids import SegmentId
from pcm_p2p.trust.index import target_file


def is_intact(blob: Path) -> bool:
    """Whether a blob is there with the bytes that its name stands for."""
    try:
        return SegmentId.of(blob.read_bytes()) == SegmentId.parse(blob.name)
    except OSError:
        return False


class TargetFiles:
    """``path`` is the fleet folder."""

    def __init__(self, path: Path) -> None:
        self._repository = path / "repository"
        self._segments = path / "segments"

    def file_of(self, path: str, info: TargetFile) -> Path:
        return self._repository / target_file(path, info.hashes["sha256"])

    def read(self, path: str, info: TargetFile) -> bytes:
        """The bytes that ``info`` names. Raises ``InputError`` if the file is gone, ``StorageError`` if it holds others."""
        file = self.file_of(path, info)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror}", path=file, remedy="Check the path, and who may read it."
            ) from None
        if hashlib.sha256(data).hexdigest() != info.hashes["sha256"]:
            raise StorageError(f"{file} is damaged, or was altered", remedy="Stage it again, or restore the folder.")
        return data

    def store(self, path: str, data: bytes, custom: dict[str, Any] | None = None) -> TargetFile:
        """Keep the bytes of a target; what a targets document says of them."""
        info = TargetFile.from_data(path, data, ["sha256"])
        if custom:
            info.unrecognized_fields["custom"] = custom
        file = self.file_of(path, info)
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_bytes() != data:
            write_atomic(file, data)
        return info

    def bring_segment(self, segment: Segment, segments: Path) -> None:
        """Keep a blob that lies below ``segments``, or is kept already. Raises ``InputError`` if it is absent or damaged."""
        name = segment.segment_id.hex()
        source, kept = segments / name[:2] / name, self._segments / name[:2] / name
        if not source.exists() and kept.exists():
            source = kept
        elif source != kept and kept.exists() and not is_intact(kept):
            kept.unlink()  # it rotted, or was altered: what comes takes its place
        try:
            data = source.read_bytes()
        except OSError as error:
            raise InputError(f"segment {name[:8]} cannot be read: {error.strerror}", path=source) from None
        if len(data) != segment.size or SegmentId.of(data) != segment.segment_id:
            raise InputError(
                f"segment {name[:8]} is damaged", path=source, remedy="Remove it and add the release again."
            )
        if source != kept and not kept.exists():
            place_immutable(source, kept)
