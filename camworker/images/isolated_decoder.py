"""Decode images in a child process, so that an image that crashes its decoder harms nothing else.

The child (`python -m camworker.images.isolated_decoder`) loads no network and decodes one image at a time. It
is replaced when it crashes or hangs. This is slower than decoding in the worker, and is used for shards that
have crashed a worker.
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

# A message is its length, then its bytes. A reply is a line of JSON, then the pixels if there are any.
# Nothing is pickled, because a decoder that an image has taken over must not take over the parent.
_LENGTH: Final = struct.Struct("<Q")
_TIMEOUT_SECONDS: Final = 60.0
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_CHILD: Final = (sys.executable, "-m", "camworker.images.isolated_decoder")


class IsolatedDecoder:
    """Preprocesses images in a child process, in place of `Localizer.preprocess`.

    An image that crashes or hangs the child results in a Failure "poison". Use as a context manager, from one
    thread at a time.

    Args:
        input_size: Side of the network's square input, in pixels.
        resize: How an image is fitted into the square, see `Frame`.
        seconds: How long one image may take.
        child: Command line of the child.
    """

    def __init__(
        self,
        input_size: int,
        resize: Resize,
        *,
        seconds: float = _TIMEOUT_SECONDS,
        child: Sequence[str] = _CHILD,
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

    def preprocess(self, data: bytes) -> PreprocessedImage | Failure:
        """Decode one image and resize it to the network's input.

        Args:
            data: The bytes of the image file.

        Returns:
            The image, or a Failure: "poison" if it crashed or hung the child, else see `decode`.

        Raises:
            EOFError: The child does not start.
            BrokenPipeError: The child does not start.
        """
        if self._child is None:
            pipe = subprocess.PIPE
            self._child = subprocess.Popen(self._command, stdin=pipe, stdout=pipe)
            # The time of the start does not count for the image, and a child that does not start raises: no
            # image is to blame.
            _send(self._child.stdin, json.dumps([self._input_size, self._resize]).encode())
            self._receive(self._child, seconds=None)
        try:
            _send(self._child.stdin, data)
            reply = self._receive(self._child, self._seconds)
        except (BrokenPipeError, EOFError):
            code = self._end()
            cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            return Failure("poison", f"decoding it ended its process ({cause})")
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
        """End the child and return its exit code, negative for a signal."""
        if self._child is None:
            return 0
        child, self._child = self._child, None
        if child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # The child may have ended already.
                child.stdin.close()
        try:
            return child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Decode every image that comes in until the requests end; the loop of the child.

    Args:
        requests: The input size and the resizing as JSON, then images.
        replies: Receives "ready", then a reply for each image.
    """
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


def run_child() -> None:
    """Serve requests from stdin to stdout; the child process."""
    _end_with_parent()
    # Send what a decoder prints to stderr, so that it does not mix with the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(1)
    serve(sys.stdin.buffer, replies)


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends.

    A worker that hangs is killed and cannot end its child, and a decoder that hangs does not notice that its
    input was closed. Linux only; on other systems such a child remains.
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
    run_child()
