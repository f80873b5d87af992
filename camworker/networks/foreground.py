"""The foreground head of a network: fitted to its own maps, from images without boxes, by sums that merge.

The formulas: camworker/README.md, Refined maps.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray

from camworker.cam import upsample
from camworker.errors import UsageError
from camworker.refinement import ForegroundHead

MIN_FOREGROUND_IMAGES: Final = 100
# Of `effective_classes`. 200 images of one kind of object give a head that is worse than none, because its
# background never holds other objects.
MANY_CLASSES: Final = 30

_FOREGROUND: Final = 1.5  # a map of more than this, relative to its mean, is the object
_BACKGROUND: Final = 0.4
_PENALTY: Final = 0.01
_BIAS_PENALTY: Final = 1e-6
_SMALLEST_DEVIATION: Final = 1e-3  # is added to each channel's


@dataclass(frozen=True, eq=False)
class ForegroundSums:
    """The sums over images from which a foreground head is fitted.

    They merge with `+` in any order, and are kept in a package so that later images can be added. The
    channels are those of the fine map, and after them those of the deep map. All sums are of raw features in
    float64. D is the number of channels and one more, for the constant.

    Attributes:
        fine: Number of channels of the fine map.
        positions: Number of positions of the fine maps of all images.
        sum_C: The sum of each channel over all positions.
        squares_C: The sum of the squares of each channel over all positions.
        gram_DD: The sum of the outer products of [channels, 1] over the positions that are foreground or
            background; its last entry is their number.
        moments_D: The sum of [channels, 1] over the foreground, minus that over the background.
        images: Number of images.
        class_counts: Number of images by the name of their class.
    """

    fine: int
    positions: int
    sum_C: NDArray[np.float64]
    squares_C: NDArray[np.float64]
    gram_DD: NDArray[np.float64]
    moments_D: NDArray[np.float64]
    images: int
    class_counts: Mapping[str, int]

    @classmethod
    def zero(cls, fine: int, deep: int) -> Self:
        """Return the sums over no image, for these numbers of channels."""
        count = fine + deep
        square = (count + 1, count + 1)
        return cls(fine, 0, np.zeros(count), np.zeros(count), np.zeros(square), np.zeros(count + 1), 0, {})

    @classmethod
    def of_image(
        cls,
        fine_CHW: NDArray[np.float32],
        deep_CHW: NDArray[np.float32] | None,
        ridge_HW: NDArray[np.float32],
        class_names: Sequence[str],
    ) -> Self:
        """Return the sums over one image.

        A position is foreground where the map is more than 1.5 times its mean, and background where it is
        less than 0.4 times its mean. Other positions are left out of the products.

        Args:
            fine_CHW: The feature map at stride 8.
            deep_CHW: The feature map at stride 16, which is upsampled to the fine grid; None if the network
                has no such map.
            ridge_HW: The image's map by the refinement "ridge", of its known or else its predicted class,
                with a positive mean; of several classes the maximum.
            class_names: The classes of the map.
        """
        channels_CP = fine_CHW.reshape(len(fine_CHW), -1).astype(np.float64)
        if deep_CHW is not None:
            deep_CP = upsample(torch.from_numpy(deep_CHW.astype(np.float64)), ridge_HW.shape)
            channels_CP = np.concatenate([channels_CP, deep_CP.numpy().reshape(len(deep_CHW), -1)])
        relative_P = ridge_HW.astype(np.float64).ravel()
        relative_P /= relative_P.mean()
        target_P = np.where(relative_P > _FOREGROUND, 1.0, np.where(relative_P < _BACKGROUND, -1.0, 0.0))
        kept_P = target_P != 0
        rows_DN = np.concatenate([channels_CP[:, kept_P], np.ones((1, kept_P.sum()))])
        return cls(
            len(fine_CHW),
            channels_CP.shape[1],
            channels_CP.sum(1),
            np.square(channels_CP).sum(1),
            rows_DN @ rows_DN.T,
            rows_DN @ target_P[kept_P],
            1,
            dict.fromkeys(class_names, 1),
        )

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.fine,
            self.positions + other.positions,
            self.sum_C + other.sum_C,
            self.squares_C + other.squares_C,
            self.gram_DD + other.gram_DD,
            self.moments_D + other.moments_D,
            self.images + other.images,
            dict(sorted((Counter(self.class_counts) + Counter(other.class_counts)).items())),
        )

    @property
    def deep(self) -> int:
        """Number of channels of the deep map."""
        return len(self.sum_C) - self.fine


def effective_classes(counts: Collection[int]) -> float:
    """Return the number of equally frequent classes among which a class is repeated as often as among these.

    It is the inverse of the sum of the squared shares: 100 classes of one image each count 100, two classes
    of 100 images and of one image count 1.02. The classes that a network predicts for images of one kind are
    few by this number: 64 classes of 200 raccoons count 17.

    Args:
        counts: Number of images of each class.
    """
    return sum(counts) ** 2 / sum(count**2 for count in counts) if counts else 0.0


def fit_head(sums: ForegroundSums) -> ForegroundHead:
    """Fit a foreground head by least squares: +1 on the foreground of the images, -1 on their background.

    Channels are standardized over all positions and divided by the square root of the number of channels of
    their map. The normal equations are divided by the number of all positions and have a penalty of 0.01 on
    each weight and 1e-6 on the constant.

    Raises:
        UsageError: There are fewer than `MIN_FOREGROUND_IMAGES` images.
    """
    if sums.images < MIN_FOREGROUND_IMAGES:
        raise UsageError(
            f"{sums.images} images could be used, and a foreground head needs at least "
            f"{MIN_FOREGROUND_IMAGES}, of many classes"
        )
    mean_C = sums.sum_C / sums.positions
    deviation_C = np.sqrt(np.maximum(sums.squares_C / sums.positions - np.square(mean_C), 0))
    counts_C = np.repeat([sums.fine, sums.deep], [sums.fine, sums.deep])
    scale_C = 1 / ((deviation_C + _SMALLEST_DEVIATION) * np.sqrt(counts_C))
    # The standardized channels and the constant are this matrix times [channels, 1].
    standardize_DD = np.diag(np.append(scale_C, 1.0))
    standardize_DD[:-1, -1] = -mean_C * scale_C
    penalty_D = np.append(np.full(len(scale_C), _PENALTY), _BIAS_PENALTY)
    gram_DD = standardize_DD @ sums.gram_DD @ standardize_DD.T / sums.positions
    solution_D = np.linalg.solve(
        gram_DD + np.diag(penalty_D), standardize_DD @ sums.moments_D / sums.positions
    )
    weights_D = standardize_DD.T @ solution_D
    return ForegroundHead(weights_D[: sums.fine], weights_D[sums.fine : -1], float(weights_D[-1]))
