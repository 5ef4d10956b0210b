"""Several hosts on one Linux machine: a network namespace each, joined by a bridge, behind a rate-limited link.

    python examples/benchmarks/emulated_hosts.py --hosts 8 --rate 1gbit -- train.py --epochs 5     # as root
    python examples/benchmarks/emulated_hosts.py --hosts 4 --ranks-per-host 2 -- train.py
    python examples/benchmarks/emulated_hosts.py --take-down        # what a run that was killed has left behind

Each runs a Python program on every rank, one rank per host unless told otherwise. Ranks on the same host talk over
shared memory and have consecutive numbers. Needs root, iproute2 and the kernel's token bucket filter. Everything that
is made is taken down again; several runs at a time do not meet.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST = 250  # hosts of a set, and sets at a time
VARIABLES = (
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GLOO_SOCKET_IFNAME",
    "TORCH_CPP_LOG_LEVEL",
)


@dataclass(frozen=True)
class EmulatedHosts:
    """A way to start MPI programs on ``count`` hosts of ``ranks_per_host`` ranks each.

    Args:
        agent: what takes the place of ssh; None for one host, this machine as it is.
        subnet: the first three numbers of the hosts' addresses.
    """

    count: int
    agent: Path | None = None
    subnet: str = ""
    ranks_per_host: int = 1

    @property
    def ranks(self) -> int:
        return self.count * self.ranks_per_host

    def mpirun(self, arguments: Sequence[str]) -> list[str]:
        """Return the command that runs a Python program, given as a list of words, on every rank."""
        mpirun = Path(sys.executable).with_name("mpirun")
        command = [str(mpirun) if mpirun.exists() else "mpirun", "-np", str(self.ranks)]
        if self.agent is None:
            return [*command, "--oversubscribe", "--bind-to", "none", sys.executable, *arguments]
        hosts = ",".join(f"{self.subnet}.{index + 1}:{self.ranks_per_host}" for index in range(self.count))
        options = ["--host", hosts, "--map-by", f"ppr:{self.ranks_per_host}:node", "--bind-to", "none"]
        options += ["--prtemca", "plm_ssh_agent", str(self.agent), "--mca", "pml", "ob1"]
        options += ["--mca", "btl", "tcp,self" if self.ranks_per_host == 1 else "tcp,sm,self"]
        options += ["--mca", "btl_tcp_if_include", f"{self.subnet}.0/24"]
        for name in VARIABLES:
            options += ["-x", name] if name in self.environment else []
        words = map(shlex.quote, arguments)  # the agent passes its words through a shell
        return [str(self.agent), f"{self.subnet}.1", *command, *options, sys.executable, *words]

    @property
    def environment(self) -> dict[str, str]:
        environment = {
            **os.environ,
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMP_NUM_THREADS": "1",
            "MASTER_PORT": "29555",
            "MASTER_ADDR": "127.0.0.1" if self.agent is None else f"{self.subnet}.1",
        }
        # Addresses here have no names, which torch would say once per rank.
        here = {"GLOO_SOCKET_IFNAME": "e0", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        return environment if self.agent is None else {**environment, **here}


def possible() -> str | None:
    """Return None, or why hosts cannot be emulated here."""
    if os.geteuid() != 0:
        return "emulating hosts needs root (network namespaces)"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "emulating hosts needs ip and tc (Debian: apt-get install iproute2)"
    return None


def spoken(rate: str) -> str:
    """Write a rate as people do.

    >>> spoken("1gbit")
    '1 Gbit/s'
    """
    for short, long in (("gbit", " Gbit/s"), ("mbit", " Mbit/s"), ("kbit", " kbit/s")):
        rate = rate.replace(short, long)
    return rate


@contextlib.contextmanager
def emulated_hosts(count: int, rate: str, ranks_per_host: int = 1) -> Iterator[EmulatedHosts]:
    """Make ``count`` hosts whose links send at most ``rate`` (as tc writes it, such as 1gbit).

    Raises:
        RuntimeError: a command of ip or tc failed; it says which.
    """
    if not 1 <= count <= MOST:
        raise ValueError(f"{count} hosts: expected 1 to {MOST}")
    burst, queue = _bucket(rate)
    name = _new_bridge()
    subnet = f"10.77.{name}"
    try:
        _run(f"ip addr add {subnet}.254/24 dev psbr{name}")
        _run(f"ip link set psbr{name} up")
        for index in range(count):
            host, link = f"psn{name}-{index}", f"psv{name}-{index}"
            _run(f"ip netns add {host}")
            _run(f"ip link add {link} type veth peer name e0 netns {host}")
            _run(f"ip link set {link} master psbr{name} up")
            _run(f"ip -n {host} addr add {subnet}.{index + 1}/24 dev e0")
            _run(f"ip -n {host} link set e0 up")
            _run(f"ip -n {host} link set lo up")
            _run(f"tc -n {host} qdisc add dev e0 root tbf rate {rate} burst {burst} limit {queue}")
        with tempfile.TemporaryDirectory() as folder:
            yield EmulatedHosts(count, _agent(Path(folder), name), subnet, ranks_per_host)
    finally:
        take_down(name)


def take_down(name: int | None = None) -> None:
    """Remove one set of hosts, or all of them."""
    wanted = r"\d+" if name is None else str(name)
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for host in re.findall(rf"^psn{wanted}-\d+", spaces, re.MULTILINE):
        # The link by itself: with its namespace it would go some time after this returns.
        subprocess.run(["ip", "link", "del", host.replace("psn", "psv")], capture_output=True)
        subprocess.run(["ip", "netns", "del", host], capture_output=True)
    links = subprocess.run(["ip", "-brief", "link", "show", "type", "bridge"], capture_output=True, text=True).stdout
    for bridge in re.findall(rf"^psbr{wanted}\b", links, re.MULTILINE):
        subprocess.run(["ip", "link", "del", bridge], capture_output=True)


def _bucket(rate: str) -> tuple[int, int]:
    """Return the bytes that may pass at once, 2 ms of the rate, and the bytes that may queue, 64 ms of it.

    >>> _bucket("1gbit")
    (250000, 8000000)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg])bit", rate)
    if found is None:
        raise ValueError(f"rate {rate}: expected a number and kbit, mbit or gbit, such as 100mbit")
    per_second = float(found[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[found[2]] / 8
    return max(32_000, round(0.002 * per_second)), max(256_000, round(0.064 * per_second))


def _new_bridge() -> int:
    """Make a bridge with a number that nobody uses; the kernel refuses a name that exists."""
    for name in range(MOST):
        done = subprocess.run(f"ip link add psbr{name} type bridge".split(), capture_output=True, text=True)
        if done.returncode == 0:
            return name
        if "exists" not in done.stderr:
            raise RuntimeError(f"a bridge could not be made: {done.stderr.strip()}")
    raise RuntimeError(f"{MOST} sets of emulated hosts exist already; remove them with --take-down")


def _agent(folder: Path, name: int) -> Path:
    """Write what takes the place of ssh: ``agent ADDRESS command ...`` runs a command on an emulated host."""
    agent = folder / "agent"
    agent.write_text(
        "#!/bin/bash\n"
        'host=$(( ${1##*.} - 1 )); shift; command="$*"\n'
        f'exec ip netns exec psn{name}-$host unshare --uts bash -c "hostname node$host; $command"\n'
    )
    agent.chmod(agent.stat().st_mode | stat.S_IXUSR)
    return agent


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--ranks-per-host", type=int, default=1)
    parser.add_argument("--rate", default="1gbit", help="of each host's link (default 1gbit)")
    parser.add_argument("--take-down", action="store_true", help="remove all emulated hosts of this machine")
    parser.add_argument("program", nargs="*", help="a Python program and its arguments, after --")
    arguments = parser.parse_args()
    obstacle = possible()
    if obstacle:
        sys.exit(obstacle)
    if arguments.take_down:
        take_down()
        return 0
    if not arguments.program:
        parser.error("expected a Python program after --")
    with emulated_hosts(arguments.hosts, arguments.rate, arguments.ranks_per_host) as hosts:
        return subprocess.run(hosts.mpirun(arguments.program), env=hosts.environment).returncode


if __name__ == "__main__":
    sys.exit(main())
