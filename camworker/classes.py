"""A network's classes: their names, and what a label in a user's file means. No torch."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.errors import UsageError


@dataclass(frozen=True)
class Classes:
    """Class names by index and, for ImageNet, the WordNet id of each."""

    names: tuple[str, ...]
    ids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise UsageError("a network needs at least one class name")
        if self.ids is not None and len(self.ids) != len(self.names):
            raise UsageError(f"{len(self.ids)} class ids for {len(self.names)} class names")

    def __len__(self) -> int:
        return len(self.names)

    def indices(self, labels: pa.Array | pa.ChunkedArray, where: str) -> NDArray[np.int32]:
        """Class index of each label: an index, a class name or a WordNet id; -1 for null.

        where names the file and column in errors. Raises UsageError for a label that the network
        lacks, and for a name that two classes share.
        """
        found, unknown = self.find(labels, where)
        if unknown:
            raise UsageError(
                f"{where}: {len(unknown)} labels are not among the network's {len(self)} classes "
                f"({_some(list(unknown))}): use an index from 0 to {len(self) - 1}, a class name or "
                "a WordNet id"
            )
        return found

    def find(
        self, labels: pa.Array | pa.ChunkedArray, where: str
    ) -> tuple[NDArray[np.int32], dict[str, int]]:
        """As indices, but -1 too for a label that the network lacks; and how often each of these occurs."""
        if isinstance(labels, pa.ChunkedArray):
            labels = labels.combine_chunks()
        if pa.types.is_dictionary(labels.type):
            labels = labels.dictionary_decode()
        if pa.types.is_null(labels.type):
            return np.full(len(labels), -1, np.int32), {}
        if pa.types.is_floating(labels.type) or pa.types.is_uint64(labels.type):
            # pandas writes integers with gaps as floats
            try:
                labels = labels.cast(pa.int64())
            except pa.ArrowInvalid as error:
                raise UsageError(f"{where}: labels are class indices or names, not fractions") from error
        if pa.types.is_integer(labels.type):
            numbers = pc.fill_null(labels.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
            outside = (numbers < 0) | (numbers >= len(self))
            found = np.where(outside, -1, numbers).astype(np.int32)
            outside &= labels.is_valid().to_numpy(zero_copy_only=False)
            return found, _counts(pa.array(numbers[outside]).cast(pa.string()))
        if pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type):
            return self._find_text(labels, where)
        raise UsageError(f"{where}: labels are class indices or names, not {labels.type}")

    def _find_text(self, labels: pa.Array, where: str) -> tuple[NDArray[np.int32], dict[str, int]]:
        encoded = labels.dictionary_encode()
        distinct = encoded.dictionary.to_pylist()
        if shared := [label for label in distinct if label in self._ambiguous]:
            raise UsageError(
                f"{where}: {len(shared)} names belong to two classes each ({_some(shared)}): use indices"
            )
        lookup = np.array([self._by_text.get(label, -1) for label in distinct] + [-1], np.int32)
        found = lookup[pc.fill_null(encoded.indices, len(distinct)).to_numpy(zero_copy_only=False)]
        return found, _counts(labels.filter(pa.array(found < 0)).drop_null())

    @cached_property
    def _ambiguous(self) -> frozenset[str]:
        return frozenset(name for name, count in Counter(self.names).items() if count > 1)

    @cached_property
    def _by_text(self) -> dict[str, int]:
        # Names win over ids, and both over digits: a class may be called "7".
        return {
            **{str(index): index for index in range(len(self))},
            **{label: index for index, label in enumerate(self.ids or ())},
            **{name: index for index, name in enumerate(self.names)},
        }


def _some(labels: list[str]) -> str:
    text = ", ".join(repr(label) for label in labels[:3])
    return text + (", ..." if len(labels) > 3 else "")


def _counts(labels: pa.Array) -> dict[str, int]:
    return {pair["values"]: pair["counts"] for pair in labels.value_counts().to_pylist()}
