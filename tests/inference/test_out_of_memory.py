"""Out of memory: fewer images at a time, the same rows, down to one image."""

import json

import numpy as np
import pytest
import torch

from camworker.errors import Failure
from camworker.inference.out_of_memory import AdaptiveForward, is_out_of_memory
from camworker.inference.prefetch import preprocessed_batches
from camworker.inputs import ReadPolicy
from support.factories import photograph, photographs_of, plan_of, read, run

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ...")
CPU_FULL = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"


def little_memory(localizer, monkeypatch, most, error=FULL):
    """Let the network fail for batches larger than `most`; return the sizes of the batches it got."""
    forward, given = type(localizer).forward, []

    def limited(batch, labels):
        given.append(len(batch))
        if len(batch) > most:
            raise error
        return forward(localizer, batch, labels)

    monkeypatch.setattr(localizer, "forward", limited)
    return given


@pytest.fixture
def batch(tiny_localizer):
    images = [tiny_localizer.preprocess(photograph(seed)) for seed in range(4)]
    return [images[0], Failure("decode_error", "broken"), *images[1:3]]


@pytest.mark.parametrize("error", [FULL, MemoryError(), RuntimeError(CPU_FULL)])
@pytest.mark.parametrize(
    ("most", "given", "limit"), [(4, [4], 4), (3, [4, 2, 2], 2), (1, [4, 2, 1, 1, 1, 1], 1)]
)
def test_a_batch_is_halved_until_it_fits(tiny_localizer, monkeypatch, batch, error, most, given, limit):
    labels = [[0], [], [1, 2], []]
    expected = tiny_localizer.postprocess(tiny_localizer.forward(batch, labels), batch).rows()
    seen = little_memory(tiny_localizer, monkeypatch, most, error)
    forward = AdaptiveForward(tiny_localizer)
    pieces = forward(batch, labels)
    assert seen == given
    assert forward.limit == limit
    rows = [row for maps, images in pieces for row in tiny_localizer.postprocess(maps, images).rows()]
    assert [row.status for row in rows] == ["ok", "decode_error", "ok", "ok"]
    for ours, theirs in zip(rows, expected, strict=True):
        if theirs.status == "ok":
            assert ours.labels.tolist() == theirs.labels.tolist()
            assert [t.label for t in ours.targets] == [t.label for t in theirs.targets]
            np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-5)
            np.testing.assert_allclose(
                ours.cams.astype(float), theirs.cams.astype(float), rtol=2e-3, atol=1e-5
            )


def test_a_smaller_batch_is_kept_for_the_batches_after_it(tiny_localizer, monkeypatch, batch):
    seen = little_memory(tiny_localizer, monkeypatch, 2)
    forward = AdaptiveForward(tiny_localizer)
    forward(batch, [[]] * 4)
    forward(batch, [[]] * 4)
    assert seen == [4, 2, 2, 2, 2]


def test_a_last_batch_that_is_short_is_halved_too(tiny_localizer, monkeypatch, batch):
    seen = little_memory(tiny_localizer, monkeypatch, 1)
    AdaptiveForward(tiny_localizer)(batch[:3], [[]] * 3)
    assert seen == [3, 1, 1, 1]


def test_one_image_that_does_not_fit_is_an_error(tiny_localizer, monkeypatch, batch):
    little_memory(tiny_localizer, monkeypatch, 0)
    with pytest.raises(MemoryError, match=r"not enough memory for one image: CUDA .* 20.00 MiB.$"):
        AdaptiveForward(tiny_localizer)(batch, [[]] * 4)


def test_other_errors_are_not_tried_again(tiny_localizer, monkeypatch, batch):
    seen = little_memory(tiny_localizer, monkeypatch, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        AdaptiveForward(tiny_localizer)(batch, [[]] * 4)
    assert seen == [4]


def test_a_real_allocation_that_fails_is_out_of_memory():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**55, dtype=torch.uint8)
    assert not isinstance(failed.value, torch.OutOfMemoryError)
    assert is_out_of_memory(failed.value)
    with pytest.raises(MemoryError) as failed:
        np.empty(2**55, np.uint8)
    assert is_out_of_memory(failed.value)
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_the_part_records_the_batch_size_and_holds_every_row(ledger, folder, tiny_localizer, monkeypatch):
    little_memory(tiny_localizer, monkeypatch, 1)
    run(ledger, plan_of(ledger, folder), tiny_localizer, about={"device": "cpu"})
    table = read(ledger)
    assert table["status"].to_pylist() == ["ok"] * 11
    resolved = json.loads(table.schema.metadata[b"resolved"])
    assert resolved == {"device": "cpu", "batch_size_after_out_of_memory": 1}


def test_an_image_is_decoded_again_alone_after_memory_ran_out(folder, tiny_localizer, monkeypatch):
    """Image 05 fails once, while others are decoded; image 07 fails always."""
    prepare, failures = type(tiny_localizer).preprocess, []
    short = {photograph(5, width=25): 1, photograph(7, width=27): 99}

    def limited(data):
        if short.get(data, 0) > failures.count(data):
            failures.append(data)
            raise MemoryError("no room")
        return prepare(tiny_localizer, data)

    monkeypatch.setattr(tiny_localizer, "preprocess", limited)
    told = []
    batches = preprocessed_batches(
        photographs_of(folder),
        tiny_localizer,
        ReadPolicy(),
        decode_threads=3,
        on_image=lambda: told.append(None),
    )
    prepared = [image for _, images in batches for image in images]
    assert [n for n, image in enumerate(prepared) if isinstance(image, Failure)] == [7]
    assert prepared[7] == Failure("too_large", "there is not enough memory for it: no room")
    assert len(told) == 10
