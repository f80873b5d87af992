"""ReadPolicy: which files may be read for a list of items, and how their identities are checked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class ReadPolicy:
    """Which files may be read for a list of items, and how their identities are checked.

    Attributes:
        check_identity: Whether the identity of an item is the identity of its file, so that a reader can tell
            that the file was replaced. False where a manifest names the identities.
        roots: Local folders, besides the folder of the input, in which a manifest may name files. They are
            enforced when the input is listed.
        tables: Identities of the Parquet files that hold images, by URI. The identity of the file stands for
            the identities of its rows.
    """

    check_identity: bool = True
    roots: tuple[str, ...] = ()
    tables: Mapping[str, str] = field(default_factory=dict)

    def for_uris(self, uris: Iterable[str]) -> Self:
        """Return the policy with only those tables that occur in `uris`."""
        return replace(self, tables={uri: self.tables[uri] for uri in uris if uri in self.tables})
