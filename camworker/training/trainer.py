"""Fine-tuning from image labels alone: one epoch of steps, one validation. Where it runs is not its business.

True boxes are looked at in validation, to tell how well the maps localize; nothing learns from them.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from camworker.boxes.iou import iou
from camworker.boxes.rules import boxes_from_cam
from camworker.cam import class_activation_maps
from camworker.networks.gap import GapNetwork, Preprocessing
from camworker.training.data import Batch

# Boxes of one image: label -> float32 N x 4, half-open, in pixels of the original image.
TrueBoxes = dict[int, NDArray[np.float32]]
OnStep = Callable[[int, float], None]

_WARM_UP: Final = 0.1  # share of all steps
_IOU: Final = 0.5


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """How to learn. Learning rates are those after warm-up, of AdamW; weight decay is its own.

    frozen_statistics: batch normalization keeps the means and variances that it came with: its backbone was
    trained with them, on far more images than are here, and small batches of crops would blur its maps.
    """

    epochs: int
    batch_size: int
    lr_backbone: float
    lr_head: float
    weight_decay: float
    multi_label: bool
    seed: int
    frozen_statistics: bool = False


@dataclass
class Validation:
    """Sums over held-back images; they merge by addition. units: (image, label) with true boxes."""

    images: float = 0
    loss: float = 0
    right: float = 0
    units: float = 0
    localized: float = 0
    failed: float = 0

    def merged(self) -> "Validation":
        """The sums over all processes that train together."""
        if not (dist.is_available() and dist.is_initialized()):
            return self
        names = ("images", "loss", "right", "units", "localized", "failed")
        sums = torch.tensor([getattr(self, name) for name in names], dtype=torch.float64)
        if dist.get_backend() == "nccl":
            sums = sums.cuda()
        dist.all_reduce(sums)
        return Validation(*sums.tolist())

    def figures(self) -> dict[str, float | None]:
        """validation_loss and accuracy, and gt_known_localization_accuracy where there are true boxes."""
        return {
            "validation_loss": self.loss / self.images if self.images else None,
            "validation_accuracy": self.right / self.images if self.images else None,
            "gt_known_localization_accuracy": self.localized / self.units if self.units else None,
        }


class Trainer:
    """A network, its optimizer and its schedule on one device.

    AdamW with two groups (backbone and head); per step a linear warm-up, then a cosine to zero. The
    features run in low precision on a GPU (bfloat16 where it has it, else float16 with a scaled loss).
    """

    def __init__(
        self,
        network: GapNetwork,
        preprocessing: Preprocessing,
        how: Hyperparameters,
        *,
        steps_per_epoch: int,
        device: torch.device,
        parallel: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> None:
        """parallel: wraps the network for training in several processes."""
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._model = parallel(self.network)
        self._how, self._device = how, device
        head = {id(parameter) for parameter in network.head_parameters()}
        backbone = [parameter for parameter in network.parameters() if id(parameter) not in head]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": backbone, "lr": how.lr_backbone},
                {"params": network.head_parameters(), "lr": how.lr_head},
            ],
            weight_decay=how.weight_decay,
        )
        steps = max(1, how.epochs * steps_per_epoch)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: learning_rate(step, steps)
        )
        on_gpu = device.type == "cuda"
        self._dtype = torch.bfloat16 if not on_gpu or torch.cuda.is_bf16_supported() else torch.float16
        self._autocast = on_gpu
        self._scaler = torch.amp.GradScaler("cuda", enabled=on_gpu and self._dtype == torch.float16)
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1) * 255
            for values in (preprocessing.mean, preprocessing.std)
        )

    def train(self, batches: Iterable[Batch], epoch: int, on_step: OnStep) -> tuple[float, int]:
        """One epoch. Returns the mean loss of its images, and how many could not be read."""
        # Dropout draws by the epoch, so that a resumed training is the training that was interrupted.
        torch.manual_seed(hash((self._how.seed, epoch)) & 0x7FFF_FFFF_FFFF_FFFF)
        self._model.train()
        if self._how.frozen_statistics:
            for module in self._model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        total, images, failed = 0.0, 0, 0
        for step, batch in enumerate(batches):
            failed += batch.failed
            with torch.autocast(self._device.type, self._dtype, enabled=self._autocast):
                _, logits_BK = self._model(self._images(batch))
            loss = self._loss(logits_BK.float(), batch.targets_BK.to(self._device))
            self._optimizer.zero_grad(set_to_none=True)
            self._scaler.scale(loss / max(1, len(batch.rows))).backward()
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._schedule.step()
            total, images = total + loss.item(), images + len(batch.rows)
            on_step(step, total / max(1, images))
        return total / max(1, images), failed

    @torch.inference_mode()
    def validate(self, batches: Iterable[Batch], boxes: list[TrueBoxes]) -> Validation:
        """The sums over batches. An image is right when its best class is among its labels.

        boxes: for each item its true boxes; a label's own map is localized when the first cam20 box has
        IoU >= 0.5 with one of them (GT-known). In float32.
        """
        self.network.eval()
        sums = Validation()
        for batch in batches:
            features_BCHW, logits_BK = self.network(self._images(batch))
            targets_BK = batch.targets_BK.to(self._device)
            sums.images += len(batch.rows)
            sums.failed += batch.failed
            sums.loss += self._loss(logits_BK, targets_BK).item()
            if len(batch.rows):
                sums.right += targets_BK.gather(1, logits_BK.argmax(1, keepdim=True)).sum().item()
            for place, row in enumerate(batch.rows):
                if boxes[row]:
                    self._localize(features_BCHW[place : place + 1], boxes[row], batch.frames[place], sums)
        return sums

    def state(self) -> dict[str, Any]:
        """All that training goes on from."""
        return {
            "network": self.network.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what state() gave."""
        self.network.model.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])

    def _localize(self, features_1CHW: torch.Tensor, boxes: TrueBoxes, frame: Any, sums: Validation) -> None:
        labels = sorted(boxes)
        maps_1KHW = class_activation_maps(features_1CHW, self.network.weights_KC[labels][None])
        for label, cam_hw in zip(labels, maps_1KHW[0].half().cpu().numpy(), strict=True):
            sums.units += 1
            first = boxes_from_cam(cam_hw, frame)[:1]
            sums.localized += float((iou(first, boxes[label]) >= _IOU).any())

    def _images(self, batch: Batch) -> torch.Tensor:
        pixels_BCHW = batch.pixels_BCHW.to(self._device, non_blocking=True)
        images_BCHW = (pixels_BCHW.float() - self._mean) / self._std
        return images_BCHW.contiguous(memory_format=torch.channels_last)

    def _loss(self, logits_BK: torch.Tensor, targets_BK: torch.Tensor) -> torch.Tensor:
        """Summed over images: cross-entropy, or binary cross-entropy averaged over the classes."""
        if self._how.multi_label:
            losses_BK = F.binary_cross_entropy_with_logits(logits_BK, targets_BK, reduction="none")
            return losses_BK.mean(1).sum()
        return F.cross_entropy(logits_BK, targets_BK, reduction="sum")


def learning_rate(step: int, steps: int) -> float:
    """The share of the full learning rate at a step: a linear warm-up, then half a cosine down to zero."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def score(epoch: dict[str, Any]) -> float:
    """What makes an epoch the best: the lowest loss, on held-back images where there are some."""
    loss = epoch["validation_loss"]
    return -(loss if loss is not None else epoch["loss"])


def is_enough(history: list[dict[str, Any]], patience: int | None) -> bool:
    """Whether the last patience epochs brought nothing better than those before them."""
    if patience is None or len(history) <= patience:
        return False
    scores = [score(epoch) for epoch in history]
    return max(scores[-patience:]) <= max(scores[:-patience])
