"""Whether a worker compiles its network, and where this node keeps what is compiled."""

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
    """Compile the network where that is asked for, or (auto) repaid by images; what came of it, in words.

    images: about how many this worker will see. streams: batches at a time. Of the workers of a node one
    compiles, the others wait and load it.
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
        with _alone(folder / "lock"):
            why = localizer.compile_into(file, streams=streams)
    except OSError as error:
        why = str(error)
    return f"off: {why}" if why else f"on: {compiler(localizer.device.type)}"


def _cache_folder() -> Path:
    """Per user, and none that others can write to: what lies there is run."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "camworker" / "compiled"


def _key(localizer: Localizer) -> str:
    """A name for all that what is compiled depends on; homes are shared by nodes of several kinds."""
    gpu = localizer.device.type == "cuda"
    package = localizer.package
    what = (
        camworker.__version__,
        torch.__version__,
        compiler(localizer.device.type),
        torch.cuda.get_device_name(localizer.device) if gpu else _processor(),
        str(localizer.dtype),
        localizer.batch_size,
        localizer.input_size,
        torch.get_num_threads(),
        localizer.map_size,
        package.name,
        package.network.pooling,
        package.preprocessing,
        package.fingerprint,
    )
    return hashlib.sha256(repr(what).encode()).hexdigest()[:24]


def _processor() -> str:
    """What it is and can do, where Linux says so."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go of when the file is closed, or its process dies
        yield
