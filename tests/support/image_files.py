"""Image files for tests of the decoders."""

import struct
import zlib
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from camworker.images.decode import decode
from support.factories import encode

# Smooth, so that lossy formats come close, and without any symmetry, so that a wrong orientation shows.
_Y, _X = np.mgrid[0:32, 0:48]
PHOTO: Final = np.stack([5 * _X, 8 * _Y, 255 - 3 * _X - 3 * _Y], axis=2).astype(np.uint8)
LOSSLESS: Final[dict[str, dict[str, Any]]] = {"WEBP": {"lossless": True}}


def pixels(data: bytes) -> NDArray[np.uint8]:
    """Return the decoded pixels of a file that decodes, [height, width, 3]."""
    decoded = decode(data)
    assert isinstance(decoded, torch.Tensor), decoded
    assert decoded.dtype == torch.uint8
    assert decoded.shape[0] == 3
    return decoded.permute(1, 2, 0).numpy()


def with_orientation(kind: str, orientation: int) -> bytes:
    """Return PHOTO as a file of a format with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(PHOTO, kind, exif=exif, **LOSSLESS.get(kind, {}))


def png(width: int, height: int, depth: int = 8, color: int = 0, body: bytes = b"") -> bytes:
    """Return a PNG with a header and a body (filtered rows) that need not agree."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")
