"""What of the CUDA room can be tried without a GPU: its tables, the list of its kernels, and what it refuses."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gpu.device import WHY_NOT
from hypothesis import given
from hypothesis import strategies as st

from pushsum_opt import memory as memories
from pushsum_opt.errors import ConfigurationError
from pushsum_opt.memory import cuda, kernels
from pushsum_opt.memory.cuda import CudaDevice
from pushsum_opt.memory.host import DTYPES, HostMemory

ON_HOST = SimpleNamespace(name="cpu")


@given(st.lists(st.integers(1, 3 * kernels.TILE + 5), min_size=1, max_size=6), st.sampled_from([2, 4, 8]))
def test_tiles_cover_every_element_of_every_tensor_once_and_in_order(lengths, itemsize):
    dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[itemsize]
    views = [torch.empty(length, dtype=dtype) for length in lengths]
    expected = np.concatenate([view.data_ptr() + itemsize * np.arange(len(view)) for view in views])
    place = 0
    for address, offset, count in CudaDevice.table(ON_HOST, views).tolist():
        assert offset == place
        assert 0 < count <= kernels.TILE
        np.testing.assert_array_equal(expected[place : place + count], address + itemsize * np.arange(count))
        place += count
    assert place == sum(lengths)


def test_tables_count_in_64_bits():
    class Large:
        """Four times 2^31 elements, of which only the address and the length matter."""

        def numel(self):
            return 1 << 33

        def data_ptr(self):
            return 1 << 46

        def element_size(self):
            return 4

    last = CudaDevice.table(ON_HOST, [Large()])[-1]
    assert last.dtype == torch.int64
    assert last.tolist() == [(1 << 46) + 4 * ((1 << 33) - kernels.TILE), (1 << 33) - kernels.TILE, kernels.TILE]


@pytest.mark.parametrize("wire", [None, "float64", "float32", "float16", "bfloat16"])
def test_every_plan_finds_its_kernels(wire):
    memory = HostMemory([torch.zeros(3, dtype=DTYPES[name]) for name in kernels.TYPES], "abcd", wire, 1 << 20)
    known = kernels.names()
    for chunk in memory.chunks:
        half = chunk.dtype in ("float16", "bfloat16")
        merge = ("merge_half", chunk.dtype) if half else ("merge", chunk.dtype, chunk.wire.dtype)
        assert chunk.wire.dtype == chunk.dtype or not half
        kernel_names = [kernels.name_of(*k) for k in (("pack", chunk.dtype, chunk.wire.dtype), merge)]
        kernel_names.append(kernels.name_of("check", chunk.wire.dtype))
        assert kernels.needed(chunk.dtype, chunk.wire.dtype) == kernel_names
        assert {*kernel_names} <= {*known}


@pytest.mark.skipif(not WHY_NOT, reason="there is a GPU")
def test_without_cupy_or_a_gpu_the_error_says_what_to_install():
    with pytest.raises(ConfigurationError, match=r"parameters are on cuda:0.*cupy.*(pip install|Install)"):
        CudaDevice("cuda:0")


@pytest.mark.parametrize(
    "one", [1, True, 1.0, np.float32(1), np.int8(1), np.bool_(True), torch.tensor(1), torch.tensor(1.0)], ids=repr
)
def test_a_kernel_gets_the_types_that_it_declares_whatever_the_caller_has(one):
    name = kernels.name_of("merge_half", "bfloat16")
    given = (torch.zeros(1), 64, 1 << 47, one, one, torch.zeros(1, dtype=torch.int32), True, 64)
    *pointers, weight, mass, flag, heal, told = kernels.typed(name, given)
    assert [pointer.dtype for pointer in (*pointers, flag, told)] == [np.uint64] * 5
    assert (weight.dtype, weight, mass.dtype, mass) == (np.float64, 1.0, np.float64, 1.0)
    assert (heal.dtype, heal) == (np.int32, 1)


def test_every_parameter_of_every_kernel_has_a_type_that_is_known():
    assert {name.partition("<")[0] for name in kernels.names()} == kernels.PARAMETERS.keys()
    for name, kinds in kernels.PARAMETERS.items():
        assert len(kernels.typed(name, [1] * len(kinds))) == len(kinds)
    count = kernels.typed("check<float>", (64, np.int64(1 << 40), 64, 64))[1]
    assert (count.dtype, count) == (np.int64, 1 << 40)
    with pytest.raises(OverflowError, match="does not fit into int64"):
        kernels.typed("check<float>", (64, 1 << 63, 64, 64))
    with pytest.raises(TypeError):
        kernels.typed("check<float>", (64, 1.5, 64, 64))


def test_the_mode_of_captures_is_set_to_relaxed_by_the_driver():
    said = []
    driver = SimpleNamespace(cuThreadExchangeStreamCaptureMode=lambda mode: said.append(mode._obj.value))
    cuda._relax_captures(driver)
    cuda._relax_captures(None)
    assert said == [2]


def test_the_device_of_a_thread_is_given_back_by_torch_which_makes_no_context_for_it(monkeypatch):
    """torch.cuda.device() sets the old device again only where it has a context; torch.cuda.set_device() makes one."""
    said = []

    @contextmanager
    def device(index):
        said.append(f"enter {index}")
        yield
        said.append(f"leave {index}")

    calls = {"setDevice": lambda index: said.append(f"set {index}"), "free": lambda _: said.append("context")}
    runtime = SimpleNamespace(**calls)
    monkeypatch.setattr(cuda, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    monkeypatch.setattr(torch.cuda, "device", device)
    one = object.__new__(CudaDevice)
    one._index = 3
    with one.in_use():
        said.append("inside")
    assert said == ["enter 3", "set 3", "context", "inside", "leave 3"]


def test_a_torch_for_rocm_is_not_told_to_install_cupy(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    with pytest.raises(ConfigurationError, match=r"ROCm 6\.2.*for CUDA only") as refused:
        CudaDevice("cuda:0")
    assert "pip install" not in str(refused.value)


@pytest.mark.parametrize(
    ("elements", "dtype", "wire", "expected"),
    [
        (1000, torch.float32, None, 32 << 20),
        (1 << 30, torch.float32, None, 64 << 20),
        (1 << 30, torch.float64, "bfloat16", 32 << 20),
        (1 << 32, torch.float64, "bfloat16", 128 << 20),
        (1 << 31, torch.bfloat16, "float32", 64 << 20),
        (1 << 30, torch.complex64, None, 128 << 20),
    ],
)
def test_chunks_on_a_device_are_32_mib_or_a_64th_of_the_message(elements, dtype, wire, expected):
    """On the meta device, where nothing is allocated: only shapes and dtypes count, which are equal on all ranks."""
    tensors = [torch.empty(elements // 2, dtype=dtype, device="meta")] * 2
    assert memories._chunk_bytes_on_device(tensors, wire) == expected


FAILURES = {
    "nvrtc: error: invalid value for --gpu-architecture (-arch)": "older than this GPU",
    'k.cu(1): catastrophic error: cannot open source file "cuda_fp16.h"': "headers",
    "libnvrtc.so.13: cannot open shared object file: No such file or directory": "NVRTC, which compiles, does not load",
    "CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image is available": "driver is older",
    "the provided PTX was compiled with an unsupported toolchain": "driver is older",
    "[Errno 13] Permission denied: '/root/.cupy'": "CUPY_CACHE_DIR",
    "CUDA_ERROR_OUT_OF_MEMORY: out of memory": "no memory left",
    "something else": "another CUDA than torch or the driver",
}


@pytest.mark.parametrize("said", FAILURES)
@pytest.mark.parametrize("when", ["compile", "load"])
def test_kernels_that_do_not_compile_are_an_error_that_names_versions_cause_and_fix(monkeypatch, said, when):
    class CompileException(Exception):
        """As cupy raises it."""

    class Module:
        def __init__(self, **how):
            if when == "compile":
                raise CompileException(f"{how['name_expressions'][0]}\n{said}\n1 error detected")

        def get_function(self, name):
            raise CompileException(said)

    def refuses(index):
        raise RuntimeError("the driver does not answer")

    runtime = SimpleNamespace(driverGetVersion=lambda: 12080)
    nvrtc = SimpleNamespace(getVersion=lambda: (13, 1))
    cuda._module.cache_clear()
    monkeypatch.setattr(
        cuda,
        "cupy",
        SimpleNamespace(RawModule=Module, cuda=SimpleNamespace(runtime=runtime, nvrtc=nvrtc), __version__="14"),
    )
    one = object.__new__(CudaDevice)
    one._index, one._functions, one.name, one.who = 0, {}, "cuda:0", "rank 3"
    monkeypatch.setattr(CudaDevice, "_here", lambda self: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", refuses)
    with pytest.raises(ConfigurationError) as caught:
        one.prepare({("float32", "bfloat16")})
    cuda._module.cache_clear()
    text = str(caught.value)
    for part in (
        "rank 3: the kernels",
        "on cuda:0 (check<BFloat>, ",
        said[:40],
        "cupy 14",
        "NVRTC 13.1",
        FAILURES[said],
    ):
        assert part in text
    assert "CUDA of the driver 12.8" in text
    assert "compute capability unknown" in text, "what cannot be asked does not hide the error"
