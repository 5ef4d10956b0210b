"""Stands for a program that a warm Python runs: python start.py SOCKET {SCRIPT | -c CODE} [its arguments].

It hands all that makes up a process to the server (server.py) and lives as long as the program does. It imports little,
because every rank of every test starts it.
"""

import contextlib
import json
import os
import signal
import socket
import sys


def is_open(file):
    with contextlib.suppress(OSError):
        os.fstat(file)
        return True
    return False


files = [file for file in map(int, os.listdir("/proc/self/fd")) if is_open(file)]
request = {
    "arguments": sys.argv[2:],
    "environment": {**os.environ, "WARM_PARENT": str(os.getppid())},
    "process": os.getpid(),
    "folder": os.getcwd(),
    "files": files,
}
server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv[1])
text = json.dumps(request).encode()
socket.send_fds(server, [len(text).to_bytes(4, "big")], files)
server.sendall(text)
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):
    signal.signal(number, lambda number, _: server.send(bytes([number])))
code = int(server.recv(16) or b"1")
if code < 0:  # a signal ended the program: end in the same way
    with contextlib.suppress(OSError):  # SIGKILL has no handler
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
