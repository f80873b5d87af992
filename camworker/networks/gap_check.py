"""The check of a network when it is loaded: CAMs explain its logits, and its taps are as described."""

import copy
from collections.abc import Callable
from typing import Final

import torch

from camworker.cam import class_activation_maps
from camworker.errors import NetworkError, first_line
from camworker.networks.gap import GapNetwork
from camworker.networks.taps import Taps, at_stride
from camworker.refinement import MAX_DEEP_CHANNELS, MAX_TAP_CHANNELS

_LOGIT_TOLERANCE: Final = 1e-3  # in standard deviations of the logits
_SMALLEST_MAP: Final = 4  # cells per side
_FAINT: Final = 1e-4  # in standard deviations of the features
_SAME: Final = 1e-3  # in standard deviations of the features
_MOST_CHANNELS: Final = (MAX_TAP_CHANNELS, MAX_DEEP_CHANNELS)

_Maps = tuple[torch.Tensor, ...]
_MapsOf = Callable[[GapNetwork, torch.Tensor], _Maps]


@torch.inference_mode()
def check_gap_head(network: GapNetwork, input_size: int) -> tuple[int, int]:
    """Check on noise, in float32, that the logits of a network are its pooled maps plus bias.

    The difference may be 1e-3 of the standard deviation of the logits. The weights of the head must not all
    be zero, and the map must have at least 4x4 cells. A change in one corner of the input, off the
    diagonal, has to change the features most in that corner, which a transposed map fails.

    The taps of the network are checked as well: the features are the same with them, and their maps have the
    channels and the stride that they are said to have, and keep the corners too. Taps that fail are
    dropped, and `no_taps_reason` says why; the network is accepted without them.

    Args:
        network: The network, in eval mode.
        input_size: Side of the input, in pixels.

    Returns:
        Height and width of the map, in cells.

    Raises:
        NetworkError: The check failed; the message gives the reason.
    """
    noise = torch.Generator().manual_seed(0)
    images_BCHW = torch.randn(2, 3, input_size, input_size, generator=noise)
    try:
        features_BCHW, logits_BK = network(images_BCHW)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise NetworkError(
            f"refused: it does not run at input size {input_size}: {first_line(error)}"
        ) from error
    if features_BCHW.ndim != 4:
        raise NetworkError(f"refused: its features have {features_BCHW.ndim} dimensions, a map needs 4")
    height, width = features_BCHW.shape[2:]
    channels, wanted = features_BCHW.shape[1], network.weights_KC.shape[1]
    if channels != wanted:
        raise NetworkError(f"refused: its features have {channels} channels, its linear layer takes {wanted}")
    if min(height, width) < _SMALLEST_MAP:
        raise NetworkError(
            f"refused: its map is {height}x{width} at input size {input_size}, "
            f"and at least {_SMALLEST_MAP}x{_SMALLEST_MAP} is needed: use a larger input",
            parameter="input_size",
        )
    if not network.weights_KC.any():
        raise NetworkError("refused: all weights of its linear layer are zero")
    if logits_BK.shape != (len(images_BCHW), network.classes):
        raise NetworkError(
            f"refused: it gives {tuple(logits_BK.shape[1:])} logits for {network.classes} classes"
        )
    difference = (_logits_from_maps(network, features_BCHW) - logits_BK).abs().max()
    spread = logits_BK.std()
    if not spread > 0:
        raise NetworkError("refused: its logits are all the same, or not finite")
    if not difference <= _LOGIT_TOLERANCE * spread:
        raise NetworkError(
            "refused: its pooled maps plus bias differ from its logits by "
            f"{difference / spread:.2g} standard deviations: there is a layer between its pooling and its "
            "linear layer, or after the linear layer"
        )
    if not all(_keeps_corners(network, images_BCHW, (features_BCHW,), _features)):
        raise NetworkError("refused: its map is not oriented as its input is")
    if network.taps is not None and (
        reason := _wrong_taps(network, network.taps, images_BCHW, features_BCHW)
    ):
        network.drop_taps(reason)
    return height, width


def _logits_from_maps(network: GapNetwork, features_BCHW: torch.Tensor) -> torch.Tensor:
    if network.pooling == "max":
        return features_BCHW.amax((2, 3)) @ network.weights_KC.T + network.bias_K
    weights_BKC = network.weights_KC.expand(len(features_BCHW), -1, -1)
    return class_activation_maps(features_BCHW, weights_BKC).mean((2, 3)) + network.bias_K


def _wrong_taps(
    network: GapNetwork, taps: Taps, images_BCHW: torch.Tensor, features_BCHW: torch.Tensor
) -> str | None:
    """Return what is wrong with the taps of a network, None if nothing is."""
    size = images_BCHW.shape[-1]
    images_BCHW, features_BCHW = images_BCHW[:1], features_BCHW[:1]  # One is enough, at half the cost.
    # The code that was traced may depend on the input size. Any error means that the taps cannot be used.
    try:
        tapped_BCHW, *maps = tapped = _tapped(network, images_BCHW)
        corners = _keeps_corners(network, images_BCHW, tapped, _tapped)
    except Exception as error:
        return f"with taps it does not run at input size {size}: {first_line(error)}"
    if tapped_BCHW.shape != features_BCHW.shape or not (
        (tapped_BCHW - features_BCHW).abs().max() <= _SAME * features_BCHW.std()
    ):
        return "with taps its features are others"
    for tap, map_BCHW, kept, most in zip(taps.all, maps, corners[1:], _MOST_CHANNELS, strict=False):
        if map_BCHW.shape[1] != min(tap.channels, most):
            return f"{tap.node} has {map_BCHW.shape[1]} channels, not {tap.channels}"
        if not at_stride(map_BCHW.shape[2:], size, tap.stride):
            height, width = map_BCHW.shape[2:]
            return (
                f"{tap.node} has {height}x{width} cells at input size {size}, not one per {tap.stride} pixels"
            )
        if not kept:
            return f"{tap.node} is not oriented as the input is"
    return None


def _features(network: GapNetwork, images_BCHW: torch.Tensor) -> _Maps:
    return (network.features(images_BCHW),)


def _tapped(network: GapNetwork, images_BCHW: torch.Tensor) -> _Maps:
    return tuple(values for values in network.tapped_features(images_BCHW) if values is not None)


def _keeps_corners(
    network: GapNetwork, images_BCHW: torch.Tensor, before: _Maps, maps_of: _MapsOf
) -> list[bool]:
    """Return for each map of a network whether a change in one corner of the input changes it most there."""
    changed_BCHW = images_BCHW.clone()
    side = images_BCHW.shape[-1] // 4
    changed_BCHW[:, :, :side, -side:] = 3 * changed_BCHW[:, :, :side, -side:].flip(0)
    changes = _changes(before, maps_of(network, changed_BCHW))
    if any(
        change_HW.max() < _FAINT * map_BCHW.std() for change_HW, map_BCHW in zip(changes, before, strict=True)
    ):
        # The response of an untrained network to its input may be below the precision of float32.
        exact = copy.deepcopy(network).double()
        changes = _changes(maps_of(exact, images_BCHW.double()), maps_of(exact, changed_BCHW.double()))
    return [_largest_corner(change_HW) == 1 for change_HW in changes]


def _changes(before: _Maps, after: _Maps) -> list[torch.Tensor]:
    """Return how much each cell of each map changes, [h, w]."""
    return [(new - old).abs().mean((0, 1)) for old, new in zip(before, after, strict=True)]


def _largest_corner(change_HW: torch.Tensor) -> int:
    """Return the corner of most change: upper left 0, upper right 1, lower left 2, lower right 3."""
    h, w = (length // 2 for length in change_HW.shape)
    corners = [change_HW[:h, :w], change_HW[:h, -w:], change_HW[-h:, :w], change_HW[-h:, -w:]]
    return max(range(4), key=lambda index: float(corners[index].mean()))
