"""Careful decoding: in a child process, so that the image that kills a decoder is known and alone.

`python -m camworker.images.isolated_decoder` is the child. It loads no network, decodes one image after
another, and is replaced only when it dies or hangs. For shards that have killed a worker: it is slower.
"""

import contextlib
import ctypes
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Final, Self

import numpy as np
import torch

from camworker.errors import Failure
from camworker.frame import Frame, Resize
from camworker.images.decode import PreprocessedImage, decode, network_input

# Messages both ways: a length, then that many bytes. A reply is a JSON line, then pixels if any.
# Nothing is pickled: a decoder that was taken over must not take over its parent.
_LENGTH: Final = struct.Struct("<Q")
_SECONDS: Final = 60.0
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_CHILD: Final = (sys.executable, "-m", "camworker.images.isolated_decoder")


class IsolatedDecoder:
    """Stands in for Localizer.prepare; an image that kills or hangs its child becomes "poison".

    seconds: how long one image may take. Not for several threads. Use as a context manager.
    """

    def __init__(
        self, input_size: int, resize: Resize, *, seconds: float = _SECONDS, child: Sequence[str] = _CHILD
    ) -> None:
        self._command = list(child)
        self._input_size, self._resize = input_size, resize
        self._seconds = seconds
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def prepare(self, data: bytes) -> PreprocessedImage | Failure:
        """Decode one image and resize it to the network's input, or say that it is poison."""
        if self._child is None:
            pipe = subprocess.PIPE
            self._child = subprocess.Popen(self._command, stdin=pipe, stdout=pipe)
            # Start-up is not the image's time; what keeps the child from starting is no image's fault.
            _send(self._child.stdin, json.dumps([self._input_size, self._resize]).encode())
            self._receive(self._child, seconds=None)
        try:
            _send(self._child.stdin, data)
            reply = self._receive(self._child, self._seconds)
        except (BrokenPipeError, EOFError):
            code = self._end()
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            return Failure("poison", f"decoding it ended its process ({how})")
        except TimeoutError:
            self._end()
            return Failure("poison", f"decoding it did not end within {self._seconds:g} s")
        return self._parse(reply)

    def _parse(self, reply: bytes) -> PreprocessedImage | Failure:
        line, _, pixels = reply.partition(b"\n")
        content = json.loads(line)
        if "status" in content:
            return Failure(content["status"], content["reason"])
        side = self._input_size
        pixels_CHW = np.frombuffer(bytearray(pixels), np.uint8).reshape(3, side, side)
        frame = Frame(content["width"], content["height"], side, self._resize)
        return PreprocessedImage(torch.from_numpy(pixels_CHW), frame)

    def _receive(self, child: "subprocess.Popen[bytes]", seconds: float | None) -> bytes:
        assert child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                raise TimeoutError
        return _read(child.stdout)

    def _end(self) -> int:
        """End the child; its exit code, negative for a signal."""
        if self._child is None:
            return 0
        child, self._child = self._child, None
        if child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it may be dead: that is what we ask next
                child.stdin.close()
        try:
            return child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """The child: told the frame, decode every image that comes in, until there are no more."""
    input_size, resize = json.loads(_read(requests))
    _send(replies, b"ready")
    while True:
        try:
            data = _read(requests)
        except EOFError:
            return
        try:
            pixels_CHW = decode(data)
        except MemoryError as error:
            pixels_CHW = Failure("too_large", f"there is not enough memory for it: {error}")
        if isinstance(pixels_CHW, Failure):
            _send(replies, json.dumps({"status": pixels_CHW.status, "reason": pixels_CHW.reason}).encode())
            continue
        height, width = pixels_CHW.shape[1:]
        square = network_input(pixels_CHW, Frame(width, height, input_size, resize))
        header = json.dumps({"width": width, "height": height}).encode()
        _send(replies, header + b"\n" + square.contiguous().numpy().tobytes())


def main() -> None:
    """The child's entry."""
    _end_with_parent()
    # What a decoder prints must not end up among the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(1)
    serve(sys.stdin.buffer, replies)


def _end_with_parent() -> None:
    """Have the kernel end this process with the worker, which is killed without a word where it hangs.

    A decoder that hangs does not see that its input was closed. Linux only; elsewhere it is left over.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _send(pipe: IO[bytes] | None, data: bytes) -> None:
    assert pipe is not None
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes:
    length = pipe.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        raise EOFError
    data = pipe.read(*_LENGTH.unpack(length))
    if len(data) < _LENGTH.unpack(length)[0]:
        raise EOFError
    return data


if __name__ == "__main__":
    main()
