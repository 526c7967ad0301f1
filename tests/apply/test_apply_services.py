"""Services: what is said to systemctl, and how a failing unit is taken back. The real one is asked once."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import pytest
from apply_kit import FakeSystemctl, SystemRoot

from pcm_p2p.apply.command import Completed, run
from pcm_p2p.apply.plan import plan
from pcm_p2p.apply.providers.service import ServiceProvider
from pcm_p2p.apply.root import Root
from pcm_p2p.apply.step import ServiceObserved, SetService
from pcm_p2p.errors import ApplyError
from pcm_p2p.policy.desired import Change
from pcm_p2p.policy.resource import ServiceResource


def step_for(provider: ServiceProvider, resource: ServiceResource) -> SetService:
    (step,) = plan(Change("a", "1", (resource,)), (provider.observe(resource),)).steps
    assert isinstance(step, SetService)
    return step


def test_a_unit_is_enabled_and_started_and_taken_back(tmp_path: Path) -> None:
    systemctl = FakeSystemctl(ssh=False)
    provider = ServiceProvider(SystemRoot(tmp_path), systemctl)
    step = step_for(provider, ServiceResource(name="ssh.service", enabled=True, active=True))
    assert step.title == "enable and start ssh.service"
    provider.change(step)
    assert systemctl.said == ["enable ssh.service", "start ssh.service"]
    provider.undo(step)
    assert systemctl.said[2:] == ["disable ssh.service", "stop ssh.service"]
    assert provider.observe(ServiceResource(name="ssh.service", active=True)) == ServiceObserved(True, False, False)


def test_a_unit_that_does_not_start_says_why(tmp_path: Path) -> None:
    systemctl = FakeSystemctl(ssh=False)
    systemctl.broken.add("ssh.service")
    provider = ServiceProvider(SystemRoot(tmp_path), systemctl)
    step = step_for(provider, ServiceResource(name="ssh.service", active=True))
    with pytest.raises(ApplyError, match=r"systemctl start ssh\.service failed: Job for ssh\.service failed") as caught:
        provider.change(step)
    assert "journalctl -u ssh.service" in caught.value.remedy


def test_a_private_root_has_no_services(tmp_path: Path) -> None:
    with pytest.raises(ApplyError, match="not to a private root"):
        ServiceProvider(Root(tmp_path), FakeSystemctl()).observe(ServiceResource(name="ssh.service", active=True))


def test_a_machine_without_systemd_says_so(tmp_path: Path) -> None:
    provider = ServiceProvider(
        SystemRoot(tmp_path), lambda _argv, _timeout_s: Completed(1, b"", "not been booted with systemd")
    )
    with pytest.raises(ApplyError, match="systemd does not answer: not been booted"):
        provider.observe(ServiceResource(name="ssh.service", active=True))


def test_a_command_that_passes_its_deadline_is_ended_with_its_children(tmp_path: Path) -> None:
    held = tmp_path / "held"
    with pytest.raises(ApplyError, match="did not end within 0 s"):
        run(("sh", "-c", f"exec 9>{held}; flock 9; sleep 600 & wait"), 0.3)
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # free only when the last child that inherited it is gone


def test_a_daemon_that_keeps_the_output_open_does_not_hold_the_command_up() -> None:
    assert run(("sh", "-c", "sleep 5 & echo started"), 4.0).text == "started\n"


def test_a_command_sees_no_environment_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://evil")
    answer = run(("env",), 5.0)
    assert "evil" not in answer.text
    assert "DEBIAN_FRONTEND=noninteractive" in answer.text


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(ApplyError, match="no-such-program cannot be started"):
        run(("no-such-program",), 1.0)


@pytest.mark.systemd
@pytest.mark.skipif(
    shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir(), reason="systemd does not run here"
)
def test_the_real_systemd_answers() -> None:
    provider = ServiceProvider(Root(Path("/")))
    assert provider.observe(ServiceResource(name="systemd-journald.service", active=True)).active
    assert not provider.observe(ServiceResource(name="no-such-unit.service", active=True)).present
