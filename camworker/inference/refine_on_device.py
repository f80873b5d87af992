"""Refined maps with tensors, for a GPU: the formulas of `camworker.boxes.refine`, for a batch at a time."""

import torch
import torch.nn.functional as F

from camworker.boxes.refine import HEAD_SLOPE, check_head
from camworker.cam import upsample
from camworker.refinement import ForegroundHead, Refinement


def refined_maps_on_device(
    cams_Mhw: torch.Tensor,
    images_M: torch.Tensor,
    fine_BCHW: torch.Tensor,
    deep_BCHW: torch.Tensor | None,
    refinement: Refinement,
    head: ForegroundHead | None,
) -> torch.Tensor:
    """Return refined maps as they are stored, see `camworker.boxes.refine.refined_maps`.

    Returns:
        uint8 [M, H8, W8] on the device of the features.
    """
    maps_MHW = refined_values_on_device(cams_Mhw, images_M, fine_BCHW, deep_BCHW, refinement, head)
    peaks_M = maps_MHW.amax((1, 2), keepdim=True) if len(maps_MHW) else maps_MHW
    roots_MHW = torch.where(peaks_M > 0, maps_MHW / peaks_M, 0).sqrt()
    return (255 * roots_MHW).round().to(torch.uint8)


def refined_values_on_device(
    cams_Mhw: torch.Tensor,
    images_M: torch.Tensor,
    fine_BCHW: torch.Tensor,
    deep_BCHW: torch.Tensor | None,
    refinement: Refinement,
    head: ForegroundHead | None,
) -> torch.Tensor:
    """Return refined maps before they are rounded, see `camworker.boxes.refine.refined_values`.

    Everything is computed in float32, whatever the type of the arguments is.

    Args:
        cams_Mhw: Class activation maps of M labels, [M, h, w].
        images_M: The index of each map's image, in any order, int64 [M]. On the CPU, nothing has to wait for
            the device.
        fine_BCHW: Features of the images at stride 8.
        deep_BCHW: Features of the images at stride 16.
        refinement: The kind and its constants.
        head: The foreground head, which only "foreground" uses.

    Returns:
        float32 [M, H8, W8], in 0..1.

    Raises:
        ValueError: The head is missing or is for another number of channels.
    """
    fine_BCHW, cams_Mhw = fine_BCHW.float(), cams_Mhw.float()
    grid = (fine_BCHW.shape[2], fine_BCHW.shape[3])
    if not len(cams_Mhw):
        return fine_BCHW.new_empty(0, *grid)
    peaks_M = cams_Mhw.amax((1, 2), keepdim=True)
    usable_M = (peaks_M > 0) & cams_Mhw.isfinite().all(2, keepdim=True).all(1, keepdim=True)
    u_MP = upsample(torch.where(usable_M, cams_Mhw.clamp(min=0) / peaks_M, 0), grid).flatten(1)
    slots_M = _slots(images_M)
    most = int(slots_M.max()) + 1
    images_M, slots_M = images_M.to(fine_BCHW.device), slots_M.to(fine_BCHW.device)

    factor_MP = u_MP**refinement.cam_exponent
    if refinement.kind == "ridge":
        q_MP = u_MP
    else:
        probability_BP = _foreground_probability(fine_BCHW, deep_BCHW, head).flatten(1)
        q_MP = factor_MP * probability_BP[images_M]
        q_MP = q_MP / q_MP.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        factor_MP = factor_MP * (probability_BP**refinement.head_exponent)[images_M]
    q_BNP = q_MP.new_zeros(len(fine_BCHW), most, q_MP.shape[1])
    q_BNP[images_M, slots_M] = q_MP
    scores_MP = _ridge_scores(fine_BCHW.flatten(2), q_BNP)[images_M, slots_M]
    return (factor_MP * torch.sigmoid(refinement.slope * scores_MP)).view(-1, *grid)


def _slots(images_M: torch.Tensor) -> torch.Tensor:
    """Return the place of each map among the maps of its image, [M]."""
    order_M = images_M.argsort(stable=True)
    sorted_M = images_M[order_M]
    places_M = torch.arange(len(images_M), device=images_M.device)
    slots_M = torch.empty_like(places_M)
    slots_M[order_M] = places_M - torch.searchsorted(sorted_M, sorted_M)
    return slots_M


def _ridge_scores(fine_BCP: torch.Tensor, q_BNP: torch.Tensor) -> torch.Tensor:
    """Return X w for N maps of each image, see `camworker.boxes.refine_kernels.ridge_scores`, [B, N, P]."""
    channels, positions = fine_BCP.shape[1:]
    centred_BCP = fine_BCP - fine_BCP.mean(2, keepdim=True)
    deviation_BC1 = centred_BCP.square().mean(2, keepdim=True).sqrt()
    x_BCP = centred_BCP / ((deviation_BC1 + 1e-3) * channels**0.5)
    mean_BN1 = q_BNP.mean(2, keepdim=True)
    gram_BCC = x_BCP @ x_BCP.mT / positions + 0.01 * torch.eye(channels, device=x_BCP.device)
    factor_BCC, _ = torch.linalg.cholesky_ex(gram_BCC)  # does not wait for the device to check the result
    right_BCN = 2 * (x_BCP @ (q_BNP - mean_BN1).mT) / positions
    weights_BCN = torch.cholesky_solve(right_BCN, factor_BCC)
    scores_BNP: torch.Tensor = (2 * mean_BN1 - 1) / (1 + 1e-6) + weights_BCN.mT @ x_BCP
    return scores_BNP


def _foreground_probability(
    fine_BCHW: torch.Tensor, deep_BCHW: torch.Tensor | None, head: ForegroundHead | None
) -> torch.Tensor:
    head = check_head(head, fine_BCHW.shape[1], 0 if deep_BCHW is None else deep_BCHW.shape[1])
    fine_C, deep_C = (
        torch.from_numpy(weights_C).to(fine_BCHW.device, torch.float32)
        for weights_C in (head.fine_C, head.deep_C)
    )
    z_B1HW = F.conv2d(fine_BCHW, fine_C[None, :, None, None]) + head.bias
    if deep_BCHW is not None and len(deep_C):
        deep_B1hw = F.conv2d(deep_BCHW.float(), deep_C[None, :, None, None])
        z_B1HW = z_B1HW + upsample(deep_B1hw, (z_B1HW.shape[2], z_B1HW.shape[3]))
    return torch.sigmoid(HEAD_SLOPE * z_B1HW[:, 0])
