"""A checked request to localize the items of an input."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from camworker.inputs.duckdb_scratch import ItemsFile
from camworker.inputs.item_queries import ItemStats
from camworker.inputs.sources import ItemListing
from camworker.ledger.ledger import Ledger
from camworker.ledger.recipe import Recipe
from camworker.schemas import CamShape

if TYPE_CHECKING:
    from jobs.localize.worker import WorkerSettings


@dataclass(frozen=True, slots=True)
class LocalizeRequest:
    """What to localize and how.

    Attributes:
        recipe: The settings that decide the rows.
        settings: The settings of every worker.
        listing: The selected items of the input.
        cam_shape: The shape of a row's class activation maps.
        refined_shape: The shape of a row's refined maps; None without refinement.
        shard_size: Images per part; None for the default.
        retry_failed: Whether to plan failed images again.
        remove_missing: Whether to write rows with the status "removed" for images that are no longer listed.
    """

    recipe: Recipe
    settings: "WorkerSettings"
    listing: ItemListing[ItemsFile]
    cam_shape: CamShape
    refined_shape: CamShape | None
    shard_size: int | None
    retry_failed: bool
    remove_missing: bool

    def pending(
        self, ledger: Ledger, *, unfinished: list[tuple[int, int]] | None = None, include_retries: bool = True
    ) -> ItemsFile:
        """Return the items that no generation has planned as they are now.

        Args:
            ledger: The ledger of the recipe.
            unfinished: Shards of unfinished generations, (generation, shard), whose items are pending too.
            include_retries: Whether lost and failed images are pending.
        """
        from camworker.ledger.pending import find_pending

        return find_pending(
            self.listing.items,
            ledger,
            retry_failed=self.retry_failed,
            remove_missing=self.remove_missing,
            unfinished=unfinished or (),
            include_retries=include_retries,
        )

    def choose_shard_size(self, items: ItemStats, workers: int) -> int:
        """Return the number of images per part.

        Raises:
            UsageError: If parts of the requested size would be too large.
        """
        from camworker.ledger.plan import choose_shard_size, row_bytes

        size = row_bytes(items.max_labels, self.cam_shape, self.refined_shape)
        return choose_shard_size(items.count, workers, size, self.shard_size)

    def for_images_per_worker(self, images: int) -> "LocalizeRequest":
        """Return the request with the number of images that each worker will see."""
        return replace(self, settings=replace(self.settings, images=images))
