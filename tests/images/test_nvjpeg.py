"""JPEGs are decoded on the device, other files on the CPU. A stand-in replaces the decoder of the device."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from camworker.errors import Failure
from camworker.images import nvjpeg
from camworker.images.decode import decode
from camworker.images.nvjpeg import DeviceJpeg, as_device_jpeg, decode_together, nvjpeg_decoder
from camworker.inference.localizer import Localizer
from support.factories import encode, tiny_package

PIXELS = np.random.default_rng(1).integers(0, 256, (24, 40, 3), np.uint8)


def jpeg(orientation: int = 1, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(PIXELS, "JPEG", exif=exif, **options)


def converted(mode: str, kind: str) -> bytes:
    buffer = BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", [1, 6])
def test_plain_jpegs_are_decoded_on_the_device(orientation):
    data = jpeg(orientation)
    assert as_device_jpeg(data) == DeviceJpeg(data, orientation)
    assert as_device_jpeg(converted("L", "JPEG")) is not None
    assert as_device_jpeg(data + b"\0\0") is not None


@pytest.mark.parametrize(
    "data",
    [b"", converted("CMYK", "JPEG"), converted("RGB", "PNG"), jpeg()[:-30], jpeg()[:40], b"\xff\xd8\xff\xd9"],
    ids=["empty", "CMYK", "PNG", "truncated", "header only", "no header"],
)
def test_other_files_are_not_decoded_on_the_device(data):
    assert as_device_jpeg(data) is None


def test_cpu_decodes_what_the_device_refuses():
    images = [jpeg(1), jpeg(6), jpeg(8, quality=30)]
    calls = []

    def on_device(data):
        calls.append(list(data))
        return [decode(converted("RGB", "PNG")), None, torch.zeros(3, 24, 40, dtype=torch.uint8)]

    first, second, third = decode_together([as_device_jpeg(data) for data in images], on_device)
    assert calls == [images]
    assert torch.equal(first, torch.from_numpy(PIXELS).permute(2, 0, 1))
    assert torch.equal(second, decode(images[1]))
    assert second.shape == (3, 40, 24)
    assert third.shape == (3, 40, 24)  # Turned according to its EXIF orientation.


def test_image_that_neither_decoder_decodes_is_a_failure():
    truncated = jpeg()[:200]
    (failed,) = decode_together([DeviceJpeg(truncated, 1)], lambda data: [None])
    assert isinstance(failed, Failure)
    assert failed.status == "decode_error"


def test_error_of_the_device_affects_one_image_only(monkeypatch):
    calls = []

    def decode_jpeg(buffers, mode, device):
        calls.append(len(buffers))
        if any(len(buffer) == 3 for buffer in buffers):
            raise RuntimeError("Error while decoding JPEG images")
        return [buffer.clone() for buffer in buffers]

    monkeypatch.setattr(nvjpeg, "decode_jpeg", decode_jpeg)
    on_device = nvjpeg_decoder(torch.device("cpu"))
    first, second, third = on_device([b"1", b"333", b"22"])
    assert (first.tolist(), second, third.tolist()) == ([49], None, [50, 50])
    assert calls == [3, 1, 1, 1]
    assert on_device([]) == []


def test_both_decoders_give_the_same_preprocessed_images():
    localizer = Localizer(tiny_package(), device="cpu", precision="float32")
    images = [jpeg(), b"", converted("RGB", "PNG"), jpeg(6), jpeg()[:-30]]
    expected = [localizer.preprocess(data) for data in images]
    # torchvision's decoder runs on the CPU here.
    localizer._preprocessor._device_decoder = nvjpeg_decoder(torch.device("cpu"))
    received = [localizer.preprocess(data) for data in images]
    assert [isinstance(image, DeviceJpeg) for image in received] == [True, False, False, True, False]
    for image, other in zip(localizer.preprocess_on_device(received), expected, strict=True):
        if isinstance(other, Failure):
            assert image == other
        else:
            assert torch.equal(image.pixels_CHW, other.pixels_CHW)
            assert image.frame == other.frame
