"""Compute the tables of infra/SCALE.md from measurements: python tests/benchmarks/arithmetic.py.

tests/infra/test_scale.py compares the document with this output.
"""

from collections.abc import Iterator

IMAGES = 100_000_000
SHARD = 4096  # images per shard: the default for large inputs

# Measured, see "Where the figures come from" in SCALE.md.
ROW_BYTES = 1_317  # per row of a part: five maps of 7x7, a refined map of 28x28 and five boxes
PART_BYTES = 11_300  # per part, in addition to its rows
IMAGE_BYTES = 106_823  # per image file
PLAN_BYTES = 61.0  # per image, in plan files
RECORD_BYTES = 276  # per part, in the run record
PLAN_GETS, HEADS, PUTS = 3, 1, 1  # requests per shard
IMAGES_PER_SECOND = {
    "EfficientNet-Lite0, bfloat16": 295,
    "EfficientNet-Lite0, float32": 144,
    "ResNet-50, bfloat16": 47,
    "ResNet-50, float32": 23,
}

# Assumed: S3 Standard in us-east-1, USD, as published when this was written (November 2026).
USD_PER_1000_GETS, USD_PER_1000_PUTS, USD_PER_GB_MONTH = 0.0004, 0.005, 0.023
GETS_PER_PREFIX = 5_500  # per second
PAGE = 1_000  # keys in one response to a listing

WORKERS, WORKER_IMAGES_PER_SECOND = 1_000, 100


def main() -> None:
    for table in tables():
        print("\n".join(table), end="\n\n")


def tables() -> Iterator[list[str]]:
    """Yield the lines of each table of the document."""
    shards, files = -(-IMAGES // SHARD), -(-IMAGES // (1_000_000 // SHARD * SHARD))
    part = SHARD * ROW_BYTES + PART_BYTES
    total = IMAGES * ROW_BYTES + shards * PART_BYTES
    yield _table(
        ("what", "how much", "computed as"),
        ("parts", f"{shards:,}", "images / 4096"),
        ("a part", f"{part / 1e6:.1f} MB", "4096 rows of 1,317 bytes, plus 11.3 KB"),
        ("all parts", f"{total / 1e9:.0f} GB", f"{USD_PER_GB_MONTH * total / 1e9:.2f} USD per month"),
        ("plan files", f"{files}", "at most 244 shards each"),
        ("all plan files", f"{IMAGES * PLAN_BYTES / 1e9:.1f} GB", "61 bytes per image"),
        ("run record", f"{shards * RECORD_BYTES / 1e6:.1f} MB", "276 bytes per part"),
        ("images read", f"{IMAGES * IMAGE_BYTES / 1e12:.1f} TB", "106,823 bytes per image"),
    )

    pages = -(-IMAGES // PAGE)
    gets, heads, puts = IMAGES + PLAN_GETS * shards, HEADS * shards, PUTS * shards + files
    yield _table(
        ("requests", "number", "USD"),
        ("LIST of the images, 1,000 keys per page", *_priced(pages, USD_PER_1000_PUTS)),
        ("GET of the images, one each", *_priced(IMAGES, USD_PER_1000_GETS)),
        ("GET of the plan, three per shard", *_priced(gets - IMAGES, USD_PER_1000_GETS)),
        ("HEAD of a part before it is computed", *_priced(heads, USD_PER_1000_GETS)),
        ("PUT of parts and plan files", *_priced(puts, USD_PER_1000_PUTS)),
        ("a night without new images: LIST of images and parts", *_priced(pages + -(-shards // PAGE), 0.005)),
    )

    rate = WORKERS * WORKER_IMAGES_PER_SECOND
    yield _table(
        ("1,000 workers of 100 images/s", "need", "computed as"),
        ("a shard", f"{SHARD / WORKER_IMAGES_PER_SECOND:.0f} s", "4096 / 100"),
        ("shards", f"{rate / SHARD:.1f} /s", "the load of the driver"),
        ("all images", f"{IMAGES / rate / 60:.0f} min", "100,000,000 / 100,000"),
        ("read", f"{rate * IMAGE_BYTES / 1e9:.1f} GB/s", "100,000 GETs per second"),
        ("prefixes", f"{-(-rate // GETS_PER_PREFIX)}", "at 5,500 GETs per second each"),
        ("written", f"{rate * ROW_BYTES / 1e6:.0f} MB/s", "24.4 PUTs per second"),
    )

    yield _table(
        ("network alone", "images/s on two cores", "hours of two cores", "images/s on a GPU", "GPU hours"),
        *(
            (name, f"{rate}", f"{IMAGES / rate / 3600:,.0f}", "not measured", "27,778 / images/s")
            for name, rate in IMAGES_PER_SECOND.items()
        ),
    )


def _priced(number: int, usd_per_1000: float) -> tuple[str, str]:
    return f"{number:,}", f"{number / 1000 * usd_per_1000:.2f}"


def _table(head: tuple[str, ...], *rows: tuple[str, ...]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(cells).rstrip() + " |" for cells in lines]


if __name__ == "__main__":
    main()
