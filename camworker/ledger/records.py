"""Records of a ledger: a planned generation, its committed parts, and the run that completed it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from camworker.inputs import ReadPolicy
from camworker.ledger.recipe import json_digest


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A Parquet file of planned items, one row group for each shard.

    Attributes:
        key: Key of the file.
        sha256: SHA-256 of its content, as hex digits.
        first_shard: Number of the shard in its first row group.
        rows: Number of items of each shard.
    """

    key: str
    sha256: str
    first_shard: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A generation: a batch of planned items, cut into shards.

    Attributes:
        recipe: Id of the recipe.
        generation: Number of the generation, from 1.
        files: The files of planned items, in the order of their shards.
        policy: How the files of the items are read. Its roots are not recorded: they were enforced when the
            items were listed.
    """

    recipe: str
    generation: int
    files: tuple[PlanFile, ...]
    policy: ReadPolicy

    @property
    def items(self) -> int:
        """The number of planned items."""
        return sum(self.shard_rows)

    @property
    def shards(self) -> int:
        """The number of shards."""
        return sum(len(file.rows) for file in self.files)

    @property
    def shard_rows(self) -> list[int]:
        """The number of items of each shard."""
        return [rows for file in self.files for rows in file.rows]

    @property
    def hash(self) -> str:
        """SHA-256 over the recipe, the generation and the hashes of the files, as hex digits."""
        return json_digest([self.recipe, self.generation, [file.sha256 for file in self.files]])

    def to_json(self) -> dict[str, object]:
        """Return the content of plan-GGGG.json."""
        return {
            "recipe": self.recipe,
            "generation": self.generation,
            "files": [asdict(file) for file in self.files],
            "verify": self.policy.check_identity,
            "tables": dict(self.policy.tables),
            "items": self.items,
            "shards": self.shards,
            "hash": self.hash,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the plan that plan-GGGG.json describes.

        Raises:
            KeyError: A field is missing.
            TypeError: A field has another type.
        """
        files = (PlanFile(**{**file, "rows": tuple(file["rows"])}) for file in content["files"])
        policy = ReadPolicy(content["verify"], tables=content["tables"])
        return cls(content["recipe"], content["generation"], tuple(files), policy)


@dataclass(frozen=True, slots=True)
class Part:
    """A committed part, as its run record describes it.

    Attributes:
        shard: Number of the shard.
        key: Key of the part.
        rows: Number of rows.
        bytes: Size in bytes.
        sha256: SHA-256 of its content, as hex digits.
        images: Number of rows by status.
    """

    shard: int
    key: str
    rows: int
    bytes: int
    sha256: str
    images: dict[str, int]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """How a generation was completed.

    What the run took (seconds, stages, read_bytes, failed_attempts, restarts) is that of the last run alone:
    parts that an earlier run had committed cost it nothing.

    Attributes:
        recipe: Id of the recipe.
        generation: Number of the generation.
        plan_hash: `Plan.hash` of its plan.
        items: Number of planned items.
        images: Number of rows by status.
        parts: The committed parts, in the order of their shards.
        seconds: Duration of the run.
        images_per_second: Speed of the run without its start; None if it was too short to tell.
        stages: Seconds by stage, summed over threads and workers.
        read_bytes: Bytes of images that were read.
        failed_attempts: Attempts at a shard that failed.
        restarts: Workers that were started again.
        resolved: Settings that were chosen on the workers, such as the device.
        versions: Versions of the packages that decide the rows.
        finished: When the generation was completed, UTC, ISO 8601.
    """

    recipe: str
    generation: int
    plan_hash: str
    items: int
    images: Mapping[str, int]
    parts: tuple[Part, ...]
    seconds: float = 0.0
    images_per_second: float | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    read_bytes: int = 0
    failed_attempts: int = 0
    restarts: int = 0
    resolved: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    finished: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the content of run-GGGG.json."""
        return {
            "recipe": self.recipe,
            "generation": self.generation,
            "plan_hash": self.plan_hash,
            "items": self.items,
            "images": dict(self.images),
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "stages": dict(self.stages),
            "read_bytes": self.read_bytes,
            "failed_attempts": self.failed_attempts,
            "restarts": self.restarts,
            "resolved": dict(self.resolved),
            "versions": dict(self.versions),
            "finished": self.finished,
            "parts": [asdict(part) for part in self.parts],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the record that run-GGGG.json describes. Fields that are not known are ignored.

        Raises:
            KeyError: A field is missing.
            TypeError: A field has another type.
        """
        known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        return cls(**{**known, "parts": tuple(Part(**part) for part in content["parts"])})
