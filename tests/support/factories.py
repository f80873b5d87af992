"""Small networks, images, items, tables and parts that several test modules use."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

from camworker.classes import Classes
from camworker.inference.localizer import Localizer
from camworker.inference.shard import run_shard
from camworker.inputs import ReadPolicy
from camworker.inputs.sources import open_source
from camworker.ledger.ledger import Ledger
from camworker.ledger.plan import write_generation
from camworker.ledger.records import Plan
from camworker.networks.gap import GapNetwork
from camworker.networks.package import NetworkPackage, Preprocessing
from camworker.schemas import ITEMS
from support.recipes import make_recipe

TINY_CLASSES = Classes(("cat", "dog", "bird"))


def tiny_package() -> NetworkPackage:
    """Return a GAP network of two convolutions and three classes, with the same weights every time.

    Its map is 8 high and 4 wide, so that swapped rows and columns change the shape.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=(2, 4), padding=1),
            nn.ReLU(),
        )
        head = nn.Linear(16, len(TINY_CLASSES))
    network = GapNetwork(
        nn.ModuleDict({"body": body, "head": head}),
        features=body,
        logits=lambda features_BCHW: head(features_BCHW.mean((2, 3))),
        classifier=head,
        classes=len(TINY_CLASSES),
        pooling="avg",
    )
    half = (0.5, 0.5, 0.5)
    return NetworkPackage(
        "tiny", network.eval(), TINY_CLASSES, Preprocessing(32, half, half), "softmax", "tiny"
    )


def encode(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    """Return an image file in one of Pillow's formats; options are those of `Image.save`."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(seed: int, width: int = 30, height: int = 40, kind: str = "PNG") -> bytes:
    """Return an image file of coloured patches, different for each seed."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return encode(Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST), kind)


def run_generation(
    ledger: Ledger, localizer: Localizer, items: pa.Table, *, generation: int = 1, size: int = 100
) -> Plan:
    """Plan items as a generation and commit all of its parts."""
    ledger.write_recipe(make_recipe())
    plan = write_generation(ledger, generation, items, size, ReadPolicy())
    for shard in range(plan.shards):
        run_shard(
            ledger, plan, shard, localizer, decode_threads=2, runtime_info={}, on_batch=lambda statuses: None
        )
    return plan


# Two classes share a name, and every class has a WordNet id.
CLASSES = Classes(("cat", "dog", "bird", "bird"), ("n01", "n02", "n03", "n04"))


def make_items(*ids, identity="1", labels=()):
    rows = [
        {"image_id": i, "uri": f"/in/{i}", "identity": identity, "labels": list(labels), "size": 1}
        for i in ids
    ]
    return pa.Table.from_pylist(rows, ITEMS)


def ids(table):
    return table["image_id"].to_pylist()


def column(items, name):
    return items[name].to_pylist()


def write_table(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


def items_of(location, **options):
    return open_source(location, CLASSES, **options).items


def photographs_of(folder):
    return open_source(str(folder), TINY_CLASSES).items


def plan_of(ledger, folder, size=100):
    return write_generation(ledger, 1, photographs_of(folder), size, ReadPolicy())


def run(ledger, plan, localizer, shard=0, *, about=None, on_batch=lambda statuses: None, decoders=3):
    return run_shard(
        ledger, plan, shard, localizer, decode_threads=decoders, runtime_info=about or {}, on_batch=on_batch
    )


def read(ledger, shard=0):
    return pq.read_table(io.BytesIO(ledger.store.read(ledger.layout.part_key(1, shard))))
