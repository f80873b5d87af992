"""Fine-tuning without Ray: batches and their seeds, the schedule, learning, resuming and validation."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from camworker.boxes.iou import iou
from camworker.boxes.rules import boxes_from_cam
from camworker.cam import class_activation_maps
from camworker.inputs.sources import open_source
from camworker.networks.gap import Preprocessing
from camworker.training.data import EpochSampler, ImageDataset, training_batches, unpack
from camworker.training.trainer import Hyperparameters, Trainer, learning_rate, should_stop
from support.factories import TINY_CLASSES, encode, make_items, photograph, photographs_of, tiny_package

HALF = Preprocessing(32, (0.5,) * 3, (0.5,) * 3)


def hyperparameters(**changed):
    values = {"epochs": 3, "batch_size": 4, "lr_backbone": 1e-3, "lr_head": 1e-2, "weight_decay": 0.01}
    return Hyperparameters(**{**values, "multi_label": False, "seed": 0, **changed})


def trainer(**changed):
    return Trainer(
        tiny_package().network,
        HALF,
        hyperparameters(**changed),
        steps_per_epoch=3,
        device=torch.device("cpu"),
    )


@pytest.fixture
def coloured(tmp_path):
    """Twelve images of three classes, one colour per class."""
    tables = []
    for n in range(12):
        pixels = np.zeros((40, 50, 3), np.uint8)
        pixels[..., n % 3] = 100 + 10 * n
        path = tmp_path / f"{n}.png"
        path.write_bytes(encode(pixels, "PNG"))
        item = make_items(f"{n}", labels=[n % 3])
        tables.append(item.set_column(1, "uri", pa.array([str(path)])))
    return pa.concat_tables(tables)


def load(items, **options):
    options = {"training": False, "seed": 0, "processes": 0, **options}
    return training_batches(items, 3, 32, 4, **options)


def test_batches_in_listed_order(coloured):
    loader, order = load(coloured)
    batches = list(loader)
    assert len(order) == len(batches) == 3
    assert [row for batch in batches for row in batch.rows] == list(range(12))
    assert batches[0].pixels_BCHW.shape == (4, 3, 32, 32)
    assert batches[0].pixels_BCHW.dtype == torch.uint8
    assert batches[0].targets_BK.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert (batches[0].frames[0].width, batches[0].frames[0].height) == (50, 40)


def test_training_batches_are_a_function_of_seed_and_epoch(folder):
    items = photographs_of(folder)
    items = items.set_column(4, items.schema.field(4), pa.array([[0]] * 11, pa.list_(pa.int32())))

    def epoch(number, seed=0, processes=0):
        loader, order = load(items, training=True, seed=seed, processes=processes)
        order.epoch = number
        return torch.cat([batch.pixels_BCHW for batch in loader])

    first = epoch(0)
    state = torch.get_rng_state()
    assert torch.equal(epoch(0), first)
    assert torch.equal(epoch(0, processes=2), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(epoch(1), first)
    assert not torch.equal(epoch(0, seed=1), first)


def test_every_epoch_yields_every_image_once():
    order = EpochSampler(10, 4, shuffle=True, seed=3)
    for epoch in range(3):
        order.epoch = epoch
        batches = list(order)
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(row for batch in batches for _, row in batch) == list(range(10))
        assert {number for batch in batches for number, _ in batch} == {epoch}


def test_broken_images_are_counted_and_left_out(coloured, tmp_path):
    (tmp_path / "1.png").write_bytes(b"no image")
    (tmp_path / "2.png").unlink()
    batch = next(iter(load(coloured)[0]))
    assert (batch.rows, batch.failed) == ((0, 3), 2)
    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(b"")
    batch = next(iter(load(coloured)[0]))
    assert batch.pixels_BCHW.shape == (0, 3, 32, 32)
    assert trainer().validate([batch], [{}] * 12).failed == 4


def test_images_inside_parquet_are_unpacked(tmp_path):
    photos = [photograph(n) for n in range(5)]
    table = pa.table({"id": list("abcde"), "image": photos, "label": [0, 1, 2, 0, 1]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    source = open_source(str(tmp_path / "t.parquet"), TINY_CLASSES)
    (tmp_path / "scratch").mkdir()
    shuffled = source.items.take([3, 0, 4, 1])
    items = unpack(shuffled, str(tmp_path / "scratch"), source.policy)
    assert [Path(uri).read_bytes() for uri in items["uri"].to_pylist()] == [photos[n] for n in (3, 0, 4, 1)]
    assert items["labels"].to_pylist() == [[0], [0], [1], [1]]


def test_files_are_not_copied(folder, tmp_path):
    items = photographs_of(folder)
    assert unpack(items, str(tmp_path), {}) is items


def test_augmented_images_keep_their_size(coloured):
    images = ImageDataset(coloured, 3, 48, augment=True, seed=0)
    _, pixels_CHW, _ = images[(0, 5)]
    assert (pixels_CHW.shape, pixels_CHW.dtype) == ((3, 48, 48), torch.uint8)


def test_the_schedule_warms_up_and_ends_at_zero():
    rates = [learning_rate(step, 100) for step in range(101)]
    assert rates[0] == 0.1
    assert rates[9] == rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(0, 1) == 1


def test_backbone_and_head_have_separate_learning_rates(coloured):
    tiny_trainer = trainer(lr_backbone=0.0, weight_decay=0.0)
    before = {k: v.clone() for k, v in tiny_trainer.network.model.state_dict().items()}
    tiny_trainer.train(load(coloured, training=True)[0], 0, lambda step, loss: None)
    changed = {k for k, v in tiny_trainer.network.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"head.weight", "head.bias"}


def test_frozen_statistics_stay_while_weights_change(coloured):
    """Batch normalization keeps its means and variances, while its scale is trained."""
    from torch import nn

    for frozen in (False, True):
        tiny_trainer = trainer(frozen_statistics=frozen)
        norm = nn.BatchNorm2d(3)
        tiny_trainer.network.model.add_module("norm", norm)
        tiny_trainer.network.register_forward_pre_hook(lambda _, images, norm=norm: (norm(images[0]),))
        tiny_trainer.train(load(coloured, training=True)[0], 0, lambda step, loss: None)
        assert bool((norm.running_mean == 0).all()) is frozen
        assert norm.weight.grad is not None


@pytest.mark.parametrize("multi_label", [False, True])
def test_training_reduces_the_loss(coloured, multi_label):
    tiny_trainer = trainer(multi_label=multi_label, epochs=10)
    loader, order = load(coloured, training=True)
    check, _ = load(coloured)
    before = tiny_trainer.validate(check, [{}] * 12)
    losses = []
    for epoch in range(10):
        order.epoch = epoch
        losses.append(tiny_trainer.train(loader, epoch, lambda step, loss: None)[0])
    after = tiny_trainer.validate(check, [{}] * 12)
    assert losses[-1] < 0.85 * losses[0]
    assert after.mean_loss < 0.85 * before.mean_loss
    assert after.accuracy > 0.9
    assert after.gt_known_localization_accuracy is None


def test_a_resumed_training_gives_the_same_weights(coloured):
    loader, order = load(coloured, training=True)

    def epochs(tiny_trainer, numbers):
        for epoch in numbers:
            order.epoch = epoch
            tiny_trainer.train(loader, epoch, lambda step, loss: None)
        return tiny_trainer

    uninterrupted = epochs(trainer(), [0, 1, 2])
    buffer = io.BytesIO()
    torch.save(epochs(trainer(), [0]).state(), buffer)
    resumed = trainer()
    resumed.restore(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    epochs(resumed, [1, 2])
    for key, tensor in uninterrupted.network.model.state_dict().items():
        assert torch.equal(resumed.network.model.state_dict()[key], tensor), key


def test_validation_evaluates_the_map_of_each_known_label(coloured):
    tiny_trainer = trainer()
    loader, _ = load(coloured)
    batch = next(iter(loader))
    with torch.no_grad():
        features_BCHW, logits_BK = tiny_trainer.network((batch.pixels_BCHW.float() / 255 - 0.5) / 0.5)
    maps = class_activation_maps(features_BCHW, tiny_trainer.network.weights_KC.expand(4, -1, -1))
    boxes = [boxes_from_cam(maps[row, 2].detach().half().numpy(), batch.frames[row]) for row in range(4)]
    small = np.array([[0, 0, 1, 1]], np.float32)
    truth = [{2: boxes[0]}, {2: small}, {}, {1: small, 2: np.concatenate([small, boxes[3]])}]
    assert all(iou(box, small) < 0.5 for box in boxes)
    sums = tiny_trainer.validate([batch], truth)
    assert (sums.instances, sums.localized) == (4, 2)
    assert sums.images == 4
    best = logits_BK.argmax(1)
    assert sums.correct == sum(int(best[row]) == row % 3 for row in range(4))
    expected = torch.nn.functional.cross_entropy(logits_BK, torch.tensor([0, 1, 2, 0])).item()
    assert sums.mean_loss == pytest.approx(expected, rel=1e-4)
    assert sums.gt_known_localization_accuracy == 0.5


def epochs(*losses, held_back=True):
    return [{"loss": 9.0 if held_back else x, "validation_loss": x if held_back else None} for x in losses]


def test_training_stops_without_improvement():
    assert not should_stop(epochs(3, 2, 2.5, 2.4), None)
    assert not should_stop(epochs(3, 2), 2)
    assert not should_stop(epochs(3, 2, 2.5), 2)
    assert should_stop(epochs(3, 2, 2.5, 2.4), 2)
    assert not should_stop(epochs(3, 2, 2.5, 1.9), 2)
    assert should_stop(epochs(3, 2, 2.5, 2.0), 2)  # an equal loss is no improvement
    assert should_stop(epochs(1, 2, held_back=False), 1)
