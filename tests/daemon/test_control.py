"""The control socket: asked by people and the lab, opened by nobody else."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from pcm_p2p.daemon import control
from pcm_p2p.errors import DaemonUnreachable, InputError


async def _echo(request: Mapping[str, Any]) -> object:
    return {"said": request.get("text")}


async def _refuse(_request: Mapping[str, Any]) -> object:
    raise InputError("there is no such release", remedy="See 'pcm-p2p status'.")


COMMANDS = {"echo": _echo, "refuse": _refuse}


async def test_a_question_is_answered_and_the_socket_is_only_its_owners(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve_control, tmp_path, COMMANDS)
        path = control.socket_path(tmp_path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        answer = await trio.to_thread.run_sync(lambda: control.ask(tmp_path, "echo", text="hello"))
        assert answer == {"said": "hello"}
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_an_error_of_the_daemon_arrives_with_message_and_remedy(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve_control, tmp_path, COMMANDS)
        with pytest.raises(InputError, match="no such release") as caught:
            await trio.to_thread.run_sync(lambda: control.ask(tmp_path, "refuse"))
        assert caught.value.remedy == "See 'pcm-p2p status'."
        nursery.cancel_scope.cancel()


async def test_a_folder_path_longer_than_a_socket_address_still_works(tmp_path: Path) -> None:
    state = tmp_path / ("long" * 40)
    state.mkdir()
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve_control, state, COMMANDS)
        assert await trio.to_thread.run_sync(lambda: control.ask(state, "echo", text="x")) == {"said": "x"}
        nursery.cancel_scope.cancel()


def test_no_daemon_is_said_with_the_way_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match=r"control\.sock") as caught:
        control.ask(tmp_path, "status")
    assert "pcm-p2p daemon" in caught.value.remedy


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"not json\n", "one JSON object per line"),
        (b"[1]\n", "one JSON object per line"),
        (b'{"command": "dance"}\n', "unknown command 'dance'"),
        (b"[" * 30_000 + b"\n", "one JSON object per line"),
    ],
)
async def test_a_malformed_request_is_answered_and_the_connection_lives(
    tmp_path: Path, line: bytes, error: str
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve_control, tmp_path, COMMANDS)
        stream = await trio.open_unix_socket(str(control.socket_path(tmp_path)))
        async with stream:
            await stream.send_all(line)
            answer = json.loads(await stream.receive_some(65_536))
            assert error in answer["error"]
            await stream.send_all(b'{"command": "echo", "text": 1}\n')
            assert json.loads(await stream.receive_some(65_536))["result"] == {"said": 1}
        nursery.cancel_scope.cancel()


async def test_a_request_without_end_is_cut_off(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve_control, tmp_path, COMMANDS)
        stream = await trio.open_unix_socket(str(control.socket_path(tmp_path)))
        async with stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x" * (64 << 20))
        nursery.cancel_scope.cancel()
