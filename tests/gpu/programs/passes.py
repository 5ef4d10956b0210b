"""Every kernel once over odd sizes and places, in one process without MPI: for compute-sanitizer."""

import torch

from pushsum_opt.memory.cuda import CudaDevice
from pushsum_opt.memory.on_device import DeviceMemory

PAIRS = [
    (torch.float64, None),
    (torch.float64, "float32"),
    (torch.float64, "bfloat16"),
    (torch.float64, "float16"),
    (torch.float32, None),
    (torch.float32, "float16"),
    (torch.float32, "bfloat16"),
    (torch.float16, None),
    (torch.bfloat16, None),
    *((dtype, "int8") for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)),
]
for direct in (True, False):
    for dtype, wire in PAIRS:
        whole = torch.randn(30_000, device="cuda").to(dtype)
        tensors = [whole[1:2], whole[5:4101], whole[4102:8200], whole[8203:29_999]]
        names = [str(index) for index in range(len(tensors))]
        memory = DeviceMemory(tensors, names, wire, 1 << 14, device=CudaDevice("cuda:0"), direct=direct)
        for _ in range(17 if wire == "int8" else 0):  # the first 16 messages are whole
            memory.begin_round()
        for chunk in memory.chunks:
            slab = memory.new_slab(chunk.nbytes, chunk.device)
            memory.pack(chunk, slab, 0.5, 0.5)
            assert memory.received_is_finite(chunk, slab)
            for heal in (False, True):
                outcome = memory.merge_if_finite(chunk, slab, 0.5, 0.5, heal=heal).outcome()
                assert (outcome.finite, outcome.healed) == (True, False)
        tensors[2][17] = float("inf")
        for chunk in memory.chunks:
            slab = memory.new_slab(chunk.nbytes, chunk.device)
            memory.pack(chunk, slab)
            bad = any(piece.tensor == 2 and piece.start <= 17 < piece.stop for piece in chunk.pieces)
            assert memory.merge_if_finite(chunk, slab, 0.5, 0.5).outcome().finite != bad
        memory.close()
print("ok")
