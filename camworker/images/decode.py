"""Decode image files to upright RGB pixels and resize them to the network's input.

torchvision decodes ordinary JPEGs, which is fast; Pillow reads all headers and decodes everything else. Both
follow one rule: EXIF orientation is applied and alpha is composited over white. Pixels are not normalised
here, because that depends on the network.
"""

import io
import re
import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_jpeg

from camworker.errors import Failure, first_line
from camworker.frame import Frame
from camworker.images.formats import IMAGE_FORMATS, detect_format

MAX_PIXELS: Final = 100_000_000
MAX_ASPECT: Final = 200

_PILLOW_FORMATS: Final = tuple(image_format.name.upper() for image_format in IMAGE_FORMATS)

# EXIF orientation (Exif 2.32, section 4.6.4, tag 0x0112). Orientations 5 to 8 exchange rows and columns; then
# the listed dimensions of [channels, height, width] are flipped.
_ORIENTATION_TAG: Final = 0x0112
_UPRIGHT: Final = 1
_TRANSPOSED: Final = frozenset({5, 6, 7, 8})
_FLIPPED_DIMENSIONS: Final = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}


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

    Args:
        data: The bytes of the file, in a format of `camworker.images.formats`.

    Returns:
        Upright RGB pixels, uint8 [3, height, width]; of an animation, those of the first frame. Or a Failure:
        "unsupported" (not an image, or samples without an agreed 8-bit reading), "too_large" (more than
        MAX_PIXELS, or one side more than MAX_ASPECT times the other; refused by the header, before memory for
        the pixels is allocated), or "decode_error" (truncated or corrupt).
    """
    if not data:
        return Failure("decode_error", "the file is empty")
    image_format = detect_format(data)
    if image_format is None:
        return Failure("unsupported", "the bytes are not an image in a supported format")
    # The parsers of Pillow and libjpeg raise almost any exception on hostile bytes. All of them mean that the
    # bytes cannot be decoded, except that the memory ran out.
    try:
        with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
            if failure := _refuse_size(*image.size):
                return failure
            if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
                orientation = _orientation(image)
                buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                pixels_CHW = decode_jpeg(buffer, mode=ImageReadMode.RGB)
            else:
                image.load()
                # Pillow applies the orientation of a TIFF when it loads the image and then drops the tag, so
                # the tag is read afterwards.
                orientation = _orientation(image)
                if image.mode in ("I", "F"):
                    return Failure("unsupported", "32-bit samples have no agreed black and white")
                pixels_CHW = torch.from_numpy(_rgb(image)).permute(2, 0, 1)
    except Image.DecompressionBombError:  # Pillow's limit is higher than MAX_PIXELS.
        return Failure("too_large", f"its header claims over {MAX_PIXELS // 10**6} megapixels")
    except UnidentifiedImageError:
        return Failure(
            "decode_error", f"it starts like a {image_format.name} file but its header does not parse"
        )
    except MemoryError:
        raise
    except Exception as error:
        return Failure("decode_error", f"{image_format.name}: {_reason(error)}")
    return apply_exif_orientation(pixels_CHW, orientation)


def read_jpeg_orientation(data: bytes) -> int | None:
    """Return the EXIF orientation of a grayscale or RGB JPEG, read from its header, or None for other files.

    The result is also None for a JPEG that `decode` refuses by its header.
    """
    image_format = detect_format(data)
    if image_format is None or image_format.name != "JPEG":
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.mode not in ("L", "RGB") or _refuse_size(*image.size):
                return None
            return _orientation(image)
    except MemoryError:
        raise
    except Exception:  # `decode` reports what is wrong with the file.
        return None


def network_input(pixels_CHW: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Resize an image and cut out the square of its frame (bilinear, antialiased, half-pixel centres).

    Args:
        pixels_CHW: RGB pixels, uint8 [3, frame.height, frame.width].
        frame: How the image lies in the network's input.

    Returns:
        uint8 [3, S, S], S = frame.input_size.
    """
    (width, height), (x, y), size = frame.resized, frame.offset, frame.input_size
    resized = F.interpolate(
        pixels_CHW[None], (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0, :, y : y + size, x : x + size]


def apply_exif_orientation(pixels_CHW: torch.Tensor, orientation: int) -> torch.Tensor:
    """Return pixels [3, height, width] turned upright according to their EXIF orientation, 1 to 8."""
    if orientation in _TRANSPOSED:
        pixels_CHW = pixels_CHW.transpose(1, 2)
    dimensions = _FLIPPED_DIMENSIONS.get(orientation)
    return pixels_CHW.flip(dimensions) if dimensions else pixels_CHW


def _refuse_size(width: int, height: int) -> Failure | None:
    if width * height > MAX_PIXELS:
        return Failure("too_large", f"{width}x{height} is over {MAX_PIXELS // 10**6} megapixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        return Failure("too_large", f"{width}x{height}: one side is over {MAX_ASPECT} times the other")
    return None


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image; 1 (upright) if it has none or its EXIF block is broken."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, _UPRIGHT)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OSError, struct.error):
        return _UPRIGHT
    return int(value) if value in range(1, 9) else _UPRIGHT


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of a loaded Pillow image of any mode as uint8 [height, width, 3]."""
    if image.mode.startswith("I;16"):
        # Pillow's conversion clips at 255, so a 16-bit image would become white.
        samples = np.asarray(image).astype(np.uint32)
        gray = ((samples + 128) // 257).astype(np.uint8)
        if isinstance(transparent := image.info.get("transparency"), int):
            gray[samples == transparent] = 255
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    pixels: NDArray[Any] = np.array(image.convert("RGB"))
    return pixels


def _reason(error: Exception) -> str:
    """Return the first line of an error without the location in torchvision's source that it starts with."""
    return re.sub(r"^\w+, \S+:\d+, ", "", first_line(error)) or type(error).__name__
