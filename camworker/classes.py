"""`Classes`: the classes of a network, and the meaning of the labels in a user's file."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.errors import UsageError

Labels: TypeAlias = "pa.Array[Any] | pa.ChunkedArray[Any]"


@dataclass(frozen=True)
class Classes:
    """The classes of a network, in the order of its outputs.

    Attributes:
        names: Name of each class. Two classes may share a name.
        ids: WordNet id of each class, for networks that were trained on ImageNet; else None.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise UsageError("a network needs at least one class name")
        if self.ids is not None and len(self.ids) != len(self.names):
            raise UsageError(f"{len(self.ids)} class ids for {len(self.names)} class names")

    def __len__(self) -> int:
        return len(self.names)

    def resolve(self, labels: Labels, where: str) -> NDArray[np.int32]:
        """Return the class index of each label.

        Args:
            labels: Class indices, class names or WordNet ids.
            where: The file and column of the labels, for messages.

        Returns:
            Class indices, int32 [N]; -1 for null.

        Raises:
            UsageError: A label is not a class of the network, or it is a name that two classes share.
        """
        indices, unknown = self.lookup(labels, where)
        if unknown:
            raise UsageError(
                f"{where}: {len(unknown)} labels are not among the network's {len(self)} classes "
                f"({_examples(list(unknown))}): use an index from 0 to {len(self) - 1}, a class name or "
                "a WordNet id"
            )
        return indices

    def lookup(self, labels: Labels, where: str) -> tuple[NDArray[np.int32], dict[str, int]]:
        """Return the class index of each label, like `resolve`, and count the unknown labels.

        Returns:
            Class indices, int32 [N], -1 for null and for unknown labels; and how often each unknown label
            occurs.

        Raises:
            UsageError: The labels are neither integers nor text, or one is a name that two classes share.
        """
        if isinstance(labels, pa.ChunkedArray):
            labels = labels.combine_chunks()
        if isinstance(labels, pa.DictionaryArray):
            labels = labels.dictionary_decode()
        if pa.types.is_null(labels.type):
            return np.full(len(labels), -1, np.int32), {}
        if pa.types.is_floating(labels.type) or pa.types.is_uint64(labels.type):
            # pandas writes a column of integers with nulls as floats.
            try:
                labels = labels.cast(pa.int64())
            except pa.ArrowInvalid as error:
                raise UsageError(f"{where}: labels are class indices or names, not fractions") from error
        if pa.types.is_integer(labels.type):
            numbers = labels.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
            unknown = (numbers < 0) | (numbers >= len(self))
            indices = np.where(unknown, -1, numbers).astype(np.int32)
            unknown &= labels.is_valid().to_numpy(zero_copy_only=False)
            return indices, _count(pa.array(numbers[unknown]).cast(pa.string()))
        if pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type):
            return self._lookup_text(labels, where)
        raise UsageError(f"{where}: labels are class indices or names, not {labels.type}")

    def _lookup_text(self, labels: "pa.Array[Any]", where: str) -> tuple[NDArray[np.int32], dict[str, int]]:
        encoded = labels.dictionary_encode()
        distinct = cast(list[str], encoded.dictionary.to_pylist())
        if shared := [label for label in distinct if label in self._ambiguous]:
            raise UsageError(
                f"{where}: {len(shared)} names belong to two classes each ({_examples(shared)}): use indices"
            )
        index_of = np.array([self._by_text.get(label, -1) for label in distinct] + [-1], np.int32)
        indices = index_of[encoded.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False)]
        return indices, _count(labels.filter(pa.array(indices < 0)).drop_null())

    @cached_property
    def _ambiguous(self) -> frozenset[str]:
        return frozenset(name for name, count in Counter(self.names).items() if count > 1)

    @cached_property
    def _by_text(self) -> dict[str, int]:
        # A name wins over an id, and both win over digits: a class may be called "7".
        return {
            **{str(index): index for index in range(len(self))},
            **{label: index for index, label in enumerate(self.ids or ())},
            **{name: index for index, name in enumerate(self.names)},
        }


def _examples(labels: list[str]) -> str:
    """Return the first labels of a list, for messages."""
    text = ", ".join(repr(label) for label in labels[:3])
    return text + (", ..." if len(labels) > 3 else "")


def _count(labels: "pa.Array[Any]") -> dict[str, int]:
    """Return how often each label occurs."""
    counts = pc.value_counts(labels)
    names, numbers = counts.field("values").to_pylist(), counts.field("counts").to_pylist()
    return dict(zip(cast(list[str], names), cast(list[int], numbers), strict=True))
