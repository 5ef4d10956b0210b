"""A Python that has imported torch, and forks itself into every program that it is asked for.

python server.py SOCKET MODULE...: ends when its standard input does. A request comes from start.py, which stands for
the program: it is what mpirun started and what it waits for. The program is a grandchild of this process and has
start.py's arguments, environment, folder and open files, hence also its place among the ranks: whichever MPI it is, a
rank finds its launcher by these. The child between the two passes signals on and the program's end back.
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import types
import weakref


def serve(path, modules):
    """Answer requests; return, in a new process, what one of them asks for.

    A request for another server makes the new process one, with more modules.
    """
    for module in modules:
        with contextlib.suppress(ImportError):  # a program that needs it says so
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # so that no collection in a program copies the pages of what is imported
    leave_at_the_end()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen(256)
        os.rename(f"{path}.new", path)
        while True:
            ready, _, _ = select.select([listener, 0], [], [])
            if 0 in ready:
                os._exit(0)
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(connection, 4, 64)
    request = json.loads(connection.makefile("rb").read(int.from_bytes(head, "big")))
    if "serve" in request:
        connection.close()
        return serve(request["serve"], request["modules"])
    program = os.fork()
    if program != 0:
        os._exit(watch(connection, program, files))
    connection.close()
    return request, files


LIBC = ctypes.CDLL(None, use_errno=True)
LEFT = []


@atexit.register  # before anything is imported, so that it is called last
def forget():
    for name in LEFT:
        sys.modules.pop(name, None)


def leave_at_the_end():
    """Have programs end without taking down what is imported so far: that copies all its pages, in 0.5 s of a core.

    What they import themselves, MPI among it, is taken down as always.
    """
    for name, module in sys.modules.items():
        if name not in LEFT and "site-packages" in (getattr(module, "__file__", None) or ""):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(module))
            LEFT.append(name)
    for finalizer in list(weakref.finalize._registry):
        finalizer.atexit = False
    # What was loaded before this line has its destructors called after _exit, which is never.
    LIBC.on_exit(LIBC._exit, None)


def watch(connection, program, files):
    """Pass signals on until the program has ended, and its end back; end it where start.py was killed."""
    for file in files:
        os.close(file)
    ended = os.pidfd_open(program)
    while True:
        ready, _, _ = select.select([ended, connection], [], [])
        if ended in ready:
            code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
            with contextlib.suppress(OSError):
                connection.sendall(str(code).encode())
            return 0
        try:
            signals = connection.recv(64)
        except ConnectionError:
            signals = b""
        for number in signals or [signal.SIGKILL]:
            os.kill(program, number)


def enter_namespaces(process):
    """Be on the host of a process: a test makes a second one by namespaces, with a name of its own."""
    for name in ("user", "uts"):
        theirs = f"/proc/{process}/ns/{name}"
        if os.readlink(theirs) != os.readlink(f"/proc/self/ns/{name}"):
            with open(theirs) as namespace:
                if LIBC.setns(namespace.fileno(), 0) != 0:
                    raise OSError(ctypes.get_errno(), f"the {name} namespace of process {process}")


def become(request, files):
    """Take over what belongs to the process of start.py; return (code, name of its file, folder of its imports)."""
    enter_namespaces(request["process"])
    above = max([*files, *request["files"]]) + 1
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, above) for file in files]
    os.closerange(0, above)
    for file, number in zip(moved, request["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=unbuffered or stream.isatty() or stream is sys.stderr)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    first, *arguments = request["arguments"]
    added = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if first == "-c":
        text, *arguments = arguments
        name, folder, sys.argv = "<string>", "", ["-c", *arguments]
    else:
        with open(first, encoding="utf-8") as file:
            text = file.read()
        name, folder, sys.argv = first, os.path.dirname(os.path.abspath(first)), [first, *arguments]
    sys.path[:] = [folder, *added, *(entry for entry in sys.path[1:] if entry not in added)]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if first != "-c":
        main.__file__ = first
    main.__builtins__ = __builtins__
    return compile(text, name, "exec", dont_inherit=True), vars(main)


if __name__ == "__main__":
    # Here and in no function: what the program raises must reach the interpreter, its hooks and its exit code.
    exec(*become(*serve(sys.argv[1], sys.argv[2:])))
