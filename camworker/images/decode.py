"""Encoded bytes -> upright RGB pixels -> the network's input. No normalisation: that is the network's.

torchvision decodes ordinary JPEGs (the fast path); Pillow reads every header and decodes the rest.
Orientation and alpha follow one rule whichever decodes: EXIF orientation is applied, alpha is
composited over white.
"""

import io
import re
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_jpeg

from camworker.errors import Failure, first_line
from camworker.frame import Frame
from camworker.images.formats import IMAGE_FORMATS, detect_format

MAX_PIXELS: Final = 100_000_000
MAX_ASPECT: Final = 200

_PILLOW_FORMATS: Final = tuple(kind.name.upper() for kind in IMAGE_FORMATS)
_ORIENTATION_TAG: Final = 0x0112


@dataclass(frozen=True, slots=True)
class PreprocessedImage:
    """A decoded image at the size of the network's input.

    Attributes:
        pixels_CHW: RGB pixels, uint8 [3, S, S], S = frame.input_size.
        frame: Maps coordinates of the input to the original image.
    """

    pixels_CHW: torch.Tensor
    frame: Frame


def decode(data: bytes) -> torch.Tensor | Failure:
    """Decode an image file.

    Returns uint8 RGB pixels [3, height, width], upright; the first frame of an animation. Or a
    Failure: "unsupported" (not an image, or a kind without an agreed 8-bit reading), "too_large"
    (over MAX_PIXELS, or one side over MAX_ASPECT times the other: refused from the header, before
    pixels are allocated), "decode_error" (truncated or corrupt).
    """
    kind = detect_format(data)
    if not data:
        return Failure("decode_error", "the file is empty")
    if kind is None:
        return Failure("unsupported", "the bytes are not an image in a supported format")
    # Pillow's and libjpeg's parsers raise nearly anything on hostile bytes; all of it means that
    # these bytes do not decode. Running out of memory does not.
    try:
        with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
            if failure := _refuse_size(*image.size):
                return failure
            if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
                orientation = _orientation(image)
                buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                pixels = decode_jpeg(buffer, mode=ImageReadMode.RGB)
            else:
                image.load()
                # Read after loading: Pillow turns TIFFs itself and then drops the tag.
                orientation = _orientation(image)
                if image.mode in ("I", "F"):
                    return Failure("unsupported", "32-bit samples have no agreed black and white")
                pixels = torch.from_numpy(_rgb(image)).permute(2, 0, 1)
    except Image.DecompressionBombError:  # Pillow's own limit, which is above ours
        return Failure("too_large", f"its header claims over {MAX_PIXELS // 10**6} megapixels")
    except UnidentifiedImageError:
        return Failure("decode_error", f"it starts like a {kind.name} file but its header does not parse")
    except MemoryError:
        raise
    except Exception as error:
        return Failure("decode_error", f"{kind.name}: {_reason(error)}")
    return apply_exif_orientation(pixels, orientation)


def plain_orientation(data: bytes) -> int | None:
    """The EXIF orientation of a JPEG in gray or RGB within the limits, by its header; None: it is no such."""
    if (kind := detect_format(data)) is None or kind.name != "JPEG":
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.mode not in ("L", "RGB") or _refuse_size(*image.size):
                return None
            return _orientation(image)
    except MemoryError:
        raise
    except Exception:  # decode says what is wrong with it
        return None


def network_input(pixels_CHW: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Resize (bilinear, antialiased, half-pixel centres) and cut pixels to frame's square.

    pixels_CHW: uint8 [3, frame.height, frame.width]. Returns uint8 [3, S, S], S = frame.input_size.
    """
    (width, height), (x, y), size = frame.resized, frame.offset, frame.input_size
    resized = F.interpolate(
        pixels_CHW[None], (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0, :, y : y + size, x : x + size]


def _refuse_size(width: int, height: int) -> Failure | None:
    if width * height > MAX_PIXELS:
        return Failure("too_large", f"{width}x{height} is over {MAX_PIXELS // 10**6} megapixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        return Failure("too_large", f"{width}x{height}: one side is over {MAX_ASPECT} times the other")
    return None


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OSError, struct.error):
        return 1  # a broken EXIF block does not make the pixels unreadable
    return value if value in range(1, 9) else 1


def apply_exif_orientation(pixels_CHW: torch.Tensor, orientation: int) -> torch.Tensor:
    """Undo an EXIF orientation (Exif 2.32, tag 0x0112)."""
    if orientation >= 5:  # 5 to 8 are 1, 6, 3 and 8's mirror images: rows and columns change places
        pixels_CHW = pixels_CHW.transpose(1, 2)
    flips = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation)
    return pixels_CHW.flip(flips) if flips else pixels_CHW


def _rgb(image: Image.Image) -> np.ndarray:
    """A loaded Pillow image of any mode -> uint8 [height, width, 3]."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255: a 16-bit picture would come out white.
        samples = np.asarray(image).astype(np.uint32)
        gray = ((samples + 128) // 257).astype(np.uint8)
        if isinstance(transparent := image.info.get("transparency"), int):
            gray[samples == transparent] = 255
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image.convert("RGB"))


def _reason(error: Exception) -> str:
    """The first line of an error, without the place in torchvision's source that it starts with."""
    text = first_line(error)
    return re.sub(r"^\w+, \S+:\d+, ", "", text) or type(error).__name__
