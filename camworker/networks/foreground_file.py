"""foreground.safetensors: the foreground head of a network with its sums and where it comes from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from camworker.errors import NetworkError
from camworker.networks.foreground import ForegroundSums
from camworker.networks.taps import Tap, Taps
from camworker.refinement import MAX_DEEP_CHANNELS, MAX_TAP_CHANNELS, ForegroundHead
from camworker.storage.atomic import write_then_rename
from camworker.storage.uris import Connections, is_s3, local_path, open_store, read_uri

FOREGROUND_FILE: Final = "foreground.safetensors"

_PUBLISHED: Final = "efficientnet_lite0.foreground.safetensors"
# One entry, because safetensors writes several in an order that changes from run to run.
_METADATA: Final = "camworker"
_LENGTH_BYTES: Final = 8  # of the length of the header, at the start of the file


@dataclass(frozen=True, eq=False)
class FittedForeground:
    """A foreground head, the sums that it was fitted from, and where it comes from.

    Attributes:
        head: The head.
        sums: The sums, to which those of later images can be added.
        taps: The feature maps that it reads.
        weights: Fingerprint of the weights with which it was fitted.
        fits: Where its images come from, for people: JSON of each run that added some.
    """

    head: ForegroundHead
    sums: ForegroundSums
    taps: Taps
    weights: str
    fits: tuple[Mapping[str, object], ...]

    def to_bytes(self) -> bytes:
        """Return the content of foreground.safetensors; equal heads give equal bytes."""
        head, sums = self.head, self.sums
        tensors = {
            "head.fine": head.fine_C,
            "head.deep": head.deep_C,
            "head.bias": np.array([head.bias]),
            "sums.counts": np.array([sums.images, sums.positions]),
            "sums.sum": sums.sum_C,
            "sums.squares": sums.squares_C,
            "sums.gram": sums.gram_DD,
            "sums.moments": sums.moments_D,
        }
        described = {
            "taps": asdict(self.taps),
            "weights": self.weights,
            "class_counts": dict(sums.class_counts),
            "fits": [dict(fit) for fit in self.fits],
        }
        return safetensors.numpy.save(tensors, {_METADATA: json.dumps(described)})

    def check_fits(self, taps: Taps | None, name: str, source: str) -> None:
        """Check that the head reads the feature maps that a network has.

        Args:
            taps: The network's.
            name: The network, for the message.
            source: Where the head comes from, for the message.

        Raises:
            NetworkError: It reads others.
        """
        if self.taps != taps:
            raise NetworkError(
                f"{source}: the foreground head reads {describe_taps(self.taps)}, "
                f"and {name} has {describe_taps(taps)}"
            )


def describe_taps(taps: Taps | None) -> str:
    """Return names, channels and strides of taps in one line."""
    if taps is None:
        return "no map at stride 8"
    both = (taps.fine, taps.deep) if taps.deep else (taps.fine,)
    return " and ".join(f"{tap.node} ({tap.channels} channels, stride {tap.stride})" for tap in both)


def read_foreground(file: str, connections: Connections | None = None) -> FittedForeground:
    """Read a foreground head from a file, local or s3://.

    Raises:
        NetworkError: The file cannot be read, is not a foreground head, or holds numbers that are not finite.
    """
    try:
        data = read_uri(file, connections=connections)
    except OSError as error:
        raise NetworkError(f"the foreground head cannot be read: {error}") from error
    return parse_foreground(data, file)


def parse_foreground(data: bytes, source: str) -> FittedForeground:
    """Return what `FittedForeground.to_bytes` wrote.

    Args:
        data: The content of the file.
        source: The file, for messages.

    Raises:
        NetworkError: It is not a foreground head, or holds numbers that are not finite.
    """
    try:
        tensors = {name: values.astype(np.float64) for name, values in safetensors.numpy.load(data).items()}
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
        # `Any`, because the content is checked by what fails here.
        described: dict[str, Any] = json.loads(header["__metadata__"][_METADATA])
        deep = described["taps"]["deep"]
        taps = Taps(Tap(**described["taps"]["fine"]), Tap(**deep) if deep else None)
        head = ForegroundHead(tensors["head.fine"], tensors["head.deep"], float(tensors["head.bias"].item()))
        images, positions = (int(count) for count in tensors["sums.counts"])
        sums = ForegroundSums(
            fine=len(head.fine_C),
            positions=positions,
            sum_C=tensors["sums.sum"],
            squares_C=tensors["sums.squares"],
            gram_DD=tensors["sums.gram"],
            moments_D=tensors["sums.moments"],
            images=images,
            class_counts={str(name): int(count) for name, count in described["class_counts"].items()},
        )
        _check_shapes(head, sums, taps)
        return FittedForeground(
            head, sums, taps, str(described["weights"]), tuple(dict(fit) for fit in described["fits"])
        )
    except Exception as error:  # Parsers of foreign files raise any type of error.
        raise NetworkError(f"{source} is not a foreground head: {error!r}") from error


def write_foreground(fitted: FittedForeground, file: str, *, replace: bool) -> None:
    """Write a foreground head to a file, complete or not at all.

    Args:
        fitted: The head.
        file: The file, local or s3://.
        replace: Replace the file if it exists; objects in S3 are never replaced.

    Raises:
        NetworkError: The file exists and may not be replaced.
    """
    taken = NetworkError(f"{file} exists already: name another file")
    if is_s3(file):
        folder, _, name = file.rpartition("/")
        if not open_store(folder).create(name, fitted.to_bytes()):
            raise taken
        return
    target = Path(local_path(file))
    with write_then_rename(target, durable=True) as draft:
        draft.write_bytes(fitted.to_bytes())
        if not replace and target.exists():
            raise taken


def _check_shapes(head: ForegroundHead, sums: ForegroundSums, taps: Taps) -> None:
    channels = len(head.fine_C) + len(head.deep_C)
    parts: list[tuple[str, NDArray[np.float64], tuple[int, ...]]] = [
        ("head.fine", head.fine_C, (min(taps.fine.channels, MAX_TAP_CHANNELS),)),
        ("head.deep", head.deep_C, (min(taps.deep.channels, MAX_DEEP_CHANNELS) if taps.deep else 0,)),
        ("sums.sum", sums.sum_C, (channels,)),
        ("sums.squares", sums.squares_C, (channels,)),
        ("sums.gram", sums.gram_DD, (channels + 1, channels + 1)),
        ("sums.moments", sums.moments_D, (channels + 1,)),
    ]
    for name, values, shape in parts:
        if values.shape != shape:
            raise ValueError(f"{name} is {values.shape} and not {shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has numbers that are not finite")


def published_foreground() -> FittedForeground:
    """Return the head of the default network's published weights, which is part of the installation."""
    file = files("camworker.networks").joinpath(_PUBLISHED)
    return parse_foreground(file.read_bytes(), _PUBLISHED)
