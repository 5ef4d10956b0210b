"""What packing and merging a message costs a processor, for each wire_dtype: nanoseconds per parameter.

    python examples/benchmarks/wire_passes.py                  # ResNet-50's 161 tensors, some seconds
    python examples/benchmarks/wire_passes.py --tensors 1000 --size 1000

Passes run on this thread alone, on host memory, one message after the other: no messages travel. "int8, by torch" is
what "int8" is without numba. The last column counts in passes of lerp_ over the same parameters, which is what merging
float32 is. Seconds are processor time, the median of all repetitions, the wires in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pushsum_opt.memory.host import HostMemory

sys.path.insert(0, str(Path(__file__).parent))
from shapes import resnet50_shapes


class ByTorch(HostMemory):
    """Without compiled passes."""

    def _compiled(self, chunk: object) -> None:
        return None


WIRES = {
    "float32": (HostMemory, None),
    "bfloat16": (HostMemory, "bfloat16"),
    "int8": (HostMemory, "int8"),
    "int8, by torch": (ByTorch, "int8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", type=int, help="so many of --size elements, in place of ResNet-50's")
    parser.add_argument("--size", type=int, default=1000, help="(default 1000)")
    parser.add_argument("--repeat", type=int, default=15, help="(default 15)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shapes = [(arguments.size,)] * arguments.tensors if arguments.tensors else resnet50_shapes()
    found = measure([torch.randn(shape) * 1e-2 for shape in shapes], arguments.repeat)
    lerp = found.pop("lerp_")[0]
    count = sum(torch.Size(shape).numel() for shape in shapes)
    print(
        f"{len(shapes)} tensors, {count / 1e6:.3g} M parameters; a pass of lerp_: {lerp / count:.2f} ns per parameter"
    )
    print("wire dtype        pack ns  merge ns  pack / lerp_  merge / lerp_")
    for name, (pack, merge) in found.items():
        print(f"{name:16}{pack / count:9.2f}{merge / count:10.2f}{pack / lerp:14.1f}{merge / lerp:15.1f}")


def measure(tensors: list[torch.Tensor], repeat: int) -> dict[str, tuple[float, float]]:
    """Return the nanoseconds of packing a message and of merging it, for each wire; and of a pass of lerp_."""
    programs = {name: message(kind, wire, tensors) for name, (kind, wire) in WIRES.items()}
    others = [tensor.clone() for tensor in tensors]
    programs["lerp_"] = (lambda: torch._foreach_lerp_(tensors, others, 0.5), lambda: None)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for turn in range(repeat + 1):  # the first turn is not counted
        for name, (pack, merge) in programs.items():
            both = nanoseconds(pack), nanoseconds(merge)
            times[name] += [both] if turn else []
    return {name: (*map(statistics.median, zip(*seen, strict=True)),) for name, seen in times.items()}


def message(kind: type[HostMemory], wire: str | None, tensors: list[torch.Tensor]) -> tuple[Callable, Callable]:
    """Return what packs one message of copies of these tensors, and what merges it into them."""
    memory = kind([tensor.clone() for tensor in tensors], [str(i) for i in range(len(tensors))], wire, 1 << 22)
    memory.prepare_passes()
    memory._whole_left = 0  # as after the first rounds
    memory.begin_round()
    for bounds in memory._bounds.values():
        bounds[:] = 1e-4
    slabs = {chunk.index: memory.new_slab(chunk.nbytes) for chunk in memory.exchanged}

    def pack() -> None:
        for chunk in memory.exchanged:
            if chunk.packed:
                memory.pack(chunk, slabs[chunk.index], 0.5, 0.5)
            else:  # sent from where it lies, and received into a slab
                slabs[chunk.index][: chunk.nbytes] = torch.from_numpy(memory.in_place(chunk))

    def merge() -> None:
        for chunk in memory.exchanged:
            assert memory.merge_if_finite(chunk, slabs[chunk.index], 0.5, 0.5).outcome().missed == 0

    return pack, merge


def nanoseconds(program: Callable[[], None]) -> float:
    begin = time.thread_time_ns()
    program()
    return float(time.thread_time_ns() - begin)


if __name__ == "__main__":
    main()
