"""What several test modules plan, write, run and read: small items, tables and shards."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import TINY_CLASSES

from camworker.classes import Classes
from camworker.plan import write_generation
from camworker.records import ITEMS
from camworker.shard import run_shard
from camworker.sources import open_source

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
    return write_generation(ledger, 1, photographs_of(folder), size, verify=True)


def run(ledger, plan, localizer, shard=0, *, about=None, on_batch=lambda statuses: None, decoders=3):
    return run_shard(ledger, plan, shard, localizer, decoders=decoders, about=about or {}, on_batch=on_batch)


def read(ledger, shard=0):
    return pq.read_table(io.BytesIO(ledger.store.read(ledger.part_key(1, shard))))
