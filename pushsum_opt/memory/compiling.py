"""The error for kernels that do not compile or load: what failed, on which device, the likely cause, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..errors import ConfigurationError

__all__ = ["fact", "not_compiled"]

CAUSES = (
    (
        ("out of memory", "out_of_memory"),
        "the GPU has no memory left for them. Start fewer ranks on it, or wrap before torch's pool has all of it",
    ),
    (
        ("gpu-architecture", "invalid_option", "unsupported gpu architecture", "compute_"),
        "the NVRTC that cupy found is older than this GPU: it does not know its architecture. Install the cupy of a "
        "newer CUDA",
    ),
    (
        ("cannot open source file", "could not open source file", "cuda_path"),
        "NVRTC does not find the headers of CUDA. Install them with cupy (`pip install 'cupy-cuda13x[ctk]'`, or 12x), "
        "or set CUDA_PATH to a toolkit",
    ),
    (
        ("libnvrtc", "nvrtc64", "failed to load", "cannot open shared object", "no module named"),
        "the library NVRTC, which compiles, does not load. Install it with cupy (`pip install 'cupy-cuda13x[ctk]'`, "
        "or 12x), or load the CUDA module of your site",
    ),
    (
        ("no kernel image", "unsupported toolchain", "unsupported_ptx", "invalid_ptx", "driver version", "invalid ptx"),
        "the driver is older than the CUDA that cupy compiles for. Install the cupy of the driver's CUDA, or a newer "
        "driver",
    ),
    (
        ("permission denied", "no space left", "read-only file system", "disk quota"),
        "cupy cannot write what it compiled. Set CUPY_CACHE_DIR to a folder of this host that can be written to",
    ),
)
OTHERWISE = "cupy belongs to another CUDA than torch or the driver. Install the one that fits, and only one"


def not_compiled(
    who: str, device: str, kernels: tuple[str, ...], facts: Mapping[str, str], error: BaseException
) -> ConfigurationError:
    """Return the error.

    Args:
        facts: the versions that count, by name.
    """
    text = f"{type(error).__name__}: {error}"
    told = " / ".join(line.strip() for line in text.splitlines() if line.strip())
    shown = ", ".join(kernels[:3]) + (f", ... ({len(kernels)} in all)" if len(kernels) > 3 else "")
    lower = text.lower()
    cause = next((cause for signs, cause in CAUSES if any(sign in lower for sign in signs)), OTHERWISE)
    known = "; ".join(f"{name} {value}" for name, value in facts.items())
    return ConfigurationError(
        f"{who}: the kernels that pack and merge messages on {device} ({shown}) could not be compiled or loaded: "
        f"{told[:400]}. {known}. The likely cause: {cause}. `pushsum doctor` lists what is installed; with the model "
        "on the CPU no kernel is needed"
    )


def fact(ask: Callable[[], object]) -> str:
    """Return a fact as text; "unknown" where it cannot be had: asking must not hide the error that is told."""
    try:
        return str(ask())
    except Exception:
        return "unknown"
