"""Several hosts on one Linux machine: a network namespace each, joined by a bridge, behind a rate-limited link.

Needs root, iproute2 and the kernel's token bucket filter. Everything that is made is taken down again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SUBNET = "10.77.0"


@dataclass(frozen=True)
class EmulatedHosts:
    """A way to start MPI programs on ``count`` hosts; count 1 is this machine as it is."""

    count: int
    agent: Path | None

    def mpirun(self, arguments: Sequence[str], *, ranks_per_host: int = 1) -> list[str]:
        """Return the command that runs a Python program with ``ranks_per_host`` ranks on each host."""
        mpirun = Path(sys.executable).with_name("mpirun")
        command = [str(mpirun) if mpirun.exists() else "mpirun", "-np", str(self.count * ranks_per_host)]
        if self.agent is None:
            return [*command, "--oversubscribe", "--bind-to", "none", sys.executable, *arguments]
        hosts = ",".join(f"{SUBNET}.{index + 1}:{ranks_per_host}" for index in range(self.count))
        options = ["--host", hosts, "--map-by", "node", "--bind-to", "none", "--prtemca", "plm_ssh_agent"]
        options += [str(self.agent), "--mca", "pml", "ob1", "--mca", "btl", "tcp,self"]
        options += ["--mca", "btl_tcp_if_include", f"{SUBNET}.0/24"]
        for name in ("OMP_NUM_THREADS", "PYTHONPATH", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME"):
            options += ["-x", name] if name in self.environment else []
        return [str(self.agent), f"{SUBNET}.1", *command, *options, sys.executable, *arguments]

    @property
    def environment(self) -> dict[str, str]:
        environment = {
            **os.environ,
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMP_NUM_THREADS": "1",
            "MASTER_PORT": "29555",
            "MASTER_ADDR": "127.0.0.1" if self.agent is None else f"{SUBNET}.1",
        }
        return environment if self.agent is None else {**environment, "GLOO_SOCKET_IFNAME": "e0"}


def possible() -> str | None:
    """Return None, or why hosts cannot be emulated here."""
    if os.geteuid() != 0:
        return "emulating hosts needs root (network namespaces)"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "emulating hosts needs ip and tc (Debian: apt-get install iproute2)"
    return None


@contextlib.contextmanager
def emulated_hosts(count: int, rate: str) -> Iterator[EmulatedHosts]:
    """Make ``count`` hosts whose links send at most ``rate`` (as tc writes it, such as 1gbit)."""
    _take_down(count)
    try:
        _run("ip link add psbr0 type bridge")
        _run(f"ip addr add {SUBNET}.254/24 dev psbr0")
        _run("ip link set psbr0 up")
        for index in range(count):
            _run(f"ip netns add psn{index}")
            _run(f"ip link add psv{index} type veth peer name e0 netns psn{index}")
            _run(f"ip link set psv{index} master psbr0 up")
            _run(f"ip -n psn{index} addr add {SUBNET}.{index + 1}/24 dev e0")
            _run(f"ip -n psn{index} link set e0 up")
            _run(f"ip -n psn{index} link set lo up")
            _run(f"tc -n psn{index} qdisc add dev e0 root tbf rate {rate} burst 256kb limit 8mb")
        with tempfile.TemporaryDirectory() as folder:
            yield EmulatedHosts(count, _agent(Path(folder)))
    finally:
        _take_down(count)


def _agent(folder: Path) -> Path:
    """Write what takes the place of ssh: ``agent ADDRESS command ...`` runs a command on an emulated host."""
    agent = folder / "agent"
    agent.write_text(
        "#!/bin/bash\n"
        'host=$(( ${1##*.} - 1 )); shift; command="$*"\n'
        'exec ip netns exec psn$host unshare --uts bash -c "hostname node$host; $command"\n'
    )
    agent.chmod(agent.stat().st_mode | stat.S_IXUSR)
    return agent


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")


def _take_down(count: int) -> None:
    for index in range(max(count, 16)):
        subprocess.run(["ip", "netns", "del", f"psn{index}"], capture_output=True)
    subprocess.run(["ip", "link", "del", "psbr0"], capture_output=True)
