"""Whether a worker compiles its network, and the cache of compiled networks on its node."""

import fcntl
import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import camworker
from camworker.inference.compile import Compile, compiler, is_worthwhile
from camworker.inference.localizer import Localizer


def compile_if_worthwhile(localizer: Localizer, compile: Compile, images: int, streams: int) -> str:
    """Compile the network if that is requested ("on"), or saves more time than it takes ("auto").

    Of the workers on a node one compiles; the others wait and load the result.

    Args:
        localizer: The localizer whose network is compiled.
        compile: "on", "off" or "auto".
        images: The estimated number of images that this worker will see.
        streams: The number of batches that run at the same time.

    Returns:
        "off", "on: COMPILER", or "off: REASON" if compiling failed.
    """
    if compile == "off":
        return "off"
    folder = _cache_folder()
    file = folder / f"{_key(localizer)}.pt2"
    if compile == "auto":
        seconds_per_image, device = localizer.seconds_per_image() / streams, localizer.device.type
        if not is_worthwhile(images, seconds_per_image, device=device, compiled=file.exists()):
            return "off"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            reason = localizer.compile_into(file, streams=streams)
    except OSError as error:
        reason = str(error)
    return f"off: {reason}" if reason else f"on: {compiler(localizer.device.type)}"


def _cache_folder() -> Path:
    """Return a folder that only this user can write to, because its content is executed."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "camworker" / "compiled"


def _key(localizer: Localizer) -> str:
    """Return a hash of everything that a compiled network depends on.

    The processor is included because several kinds of nodes may share a home folder.
    """
    gpu = localizer.device.type == "cuda"
    package = localizer.package
    dependencies = (
        camworker.__version__,
        torch.__version__,
        compiler(localizer.device.type),
        torch.cuda.get_device_name(localizer.device) if gpu else _processor(),
        str(localizer.dtype),
        localizer.batch_size,
        localizer.frame_spec.input_size,
        torch.get_num_threads(),
        localizer.map_size,
        localizer.taps,
        package.name,
        package.network.pooling,
        package.preprocessing,
        package.fingerprint,
    )
    return hashlib.sha256(repr(dependencies).encode()).hexdigest()[:24]


def _processor() -> str:
    """Return the model and the instruction sets of the processor, as far as the system describes them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed or the process ends
        yield
