"""Fine-tune a network from image labels: the steps of an epoch, validation, and the learning rate schedule.

True boxes are used only in validation, to measure how well the maps localize; nothing is learnt from them.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Final, TypedDict

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from camworker.boxes.iou import iou
from camworker.boxes.rules import boxes_from_cam
from camworker.cam import class_activation_maps
from camworker.frame import Frame
from camworker.networks.gap import GapNetwork, Preprocessing
from camworker.training.data import Batch

# The true boxes of one image by label: float32 [N, 4], half-open, in pixels of the original image.
TrueBoxes = dict[int, NDArray[np.float32]]
OnStep = Callable[[int, float], None]  # (index of the step, mean loss of the epoch so far)

_WARM_UP: Final = 0.1  # fraction of all steps
_IOU: Final = 0.5


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Hyperparameters of a fine-tuning run.

    Attributes:
        epochs: Number of epochs.
        batch_size: Number of images of a batch in each process.
        lr_backbone: Learning rate of the backbone after warm-up.
        lr_head: Learning rate of the head after warm-up.
        weight_decay: Weight decay of AdamW.
        multi_label: Whether an image may have several labels, or none.
        seed: Seed of shuffling, augmentation and dropout.
        frozen_statistics: Keep the means and variances of batch normalization. A pretrained backbone was
            trained with them on far more images, and statistics of small batches of crops would blur its
            maps.
    """

    epochs: int
    batch_size: int
    lr_backbone: float
    lr_head: float
    weight_decay: float
    multi_label: bool
    seed: int
    frozen_statistics: bool = False


class TrainerState(TypedDict):
    """The state dicts of everything that a training continues from."""

    network: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any]


class EpochRecord(TypedDict):
    """The results of one epoch; a result is None if it could not be measured.

    Attributes:
        epoch: Number of the epoch, from 1.
        loss: Mean training loss of an image.
        validation_loss: Mean loss of a held-back image.
        validation_accuracy: Fraction of held-back images whose best class is one of their labels.
        gt_known_localization_accuracy: Fraction of (image, label) pairs with true boxes that are localized.
        unreadable: Number of images that could not be read.
        seconds: Duration of the epoch.
    """

    epoch: int
    loss: float
    validation_loss: float | None
    validation_accuracy: float | None
    gt_known_localization_accuracy: float | None
    unreadable: int
    seconds: float


@dataclass
class Validation:
    """Sums over held-back images, which can be added up over processes.

    Attributes:
        images: Images that were read.
        loss: Sum of their losses.
        correct: Images whose best class is one of their labels.
        instances: (image, label) pairs with true boxes.
        localized: Pairs whose first box has an IoU of at least 0.5 with a true box.
        failed: Images that could not be read.
    """

    images: float = 0
    loss: float = 0
    correct: float = 0
    instances: float = 0
    localized: float = 0
    failed: float = 0

    def merged(self) -> "Validation":
        """Return the sums over all processes that train together."""
        if not (dist.is_available() and dist.is_initialized()):
            return self
        names = [field.name for field in fields(self)]
        sums = torch.tensor([getattr(self, name) for name in names], dtype=torch.float64)
        if dist.get_backend() == "nccl":
            sums = sums.cuda()
        dist.all_reduce(sums)
        return Validation(*sums.tolist())

    @property
    def mean_loss(self) -> float | None:
        """Mean loss of an image; None without images."""
        return self.loss / self.images if self.images else None

    @property
    def accuracy(self) -> float | None:
        """Fraction of images whose best class is one of their labels; None without images."""
        return self.correct / self.images if self.images else None

    @property
    def gt_known_localization_accuracy(self) -> float | None:
        """Fraction of (image, label) pairs that are localized; None without true boxes."""
        return self.localized / self.instances if self.instances else None


class Trainer:
    """A network, its optimizer and its learning rate schedule on one device.

    The optimizer is AdamW with separate learning rates for backbone and head. On a GPU the network runs in
    bfloat16, or in float16 with a scaled loss if the GPU does not support bfloat16.

    Args:
        network: The network to train.
        preprocessing: Mean and standard deviation of the network's input.
        hyperparameters: The hyperparameters.
        steps_per_epoch: Number of batches of an epoch.
        device: Where to train.
        parallel: Wraps the network for training in several processes.
    """

    def __init__(
        self,
        network: GapNetwork,
        preprocessing: Preprocessing,
        hyperparameters: Hyperparameters,
        *,
        steps_per_epoch: int,
        device: torch.device,
        parallel: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> None:
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._model = parallel(self.network)
        self._hyperparameters, self._device = hyperparameters, device
        head = {id(parameter) for parameter in network.head_parameters()}
        backbone = [parameter for parameter in network.parameters() if id(parameter) not in head]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": backbone, "lr": hyperparameters.lr_backbone},
                {"params": network.head_parameters(), "lr": hyperparameters.lr_head},
            ],
            weight_decay=hyperparameters.weight_decay,
        )
        steps = max(1, hyperparameters.epochs * steps_per_epoch)
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
        """Train for one epoch.

        Args:
            batches: The batches of the epoch.
            epoch: Index of the epoch.
            on_step: Called after each step.

        Returns:
            The mean loss of the images, and the number of images that could not be read.
        """
        # Seed dropout by the epoch, so that a resumed run gives the same result as an uninterrupted one.
        torch.manual_seed(hash((self._hyperparameters.seed, epoch)) & 0x7FFF_FFFF_FFFF_FFFF)
        self._model.train()
        if self._hyperparameters.frozen_statistics:
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
            scaled = self._scaler.scale(loss / max(1, len(batch.rows)))
            scaled.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._schedule.step()
            total, images = total + loss.item(), images + len(batch.rows)
            on_step(step, total / max(1, images))
        return total / max(1, images), failed

    @torch.inference_mode()
    def validate(self, batches: Iterable[Batch], boxes: list[TrueBoxes]) -> Validation:
        """Evaluate the network in float32.

        A label of an image is localized if the first cam20 box of the label's map has an IoU of at least 0.5
        with one of its true boxes (GT-known localization accuracy).

        Args:
            batches: The batches to evaluate, not augmented.
            boxes: The true boxes of each item.
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
                sums.correct += targets_BK.gather(1, logits_BK.argmax(1, keepdim=True)).sum().item()
            for index, row in enumerate(batch.rows):
                if boxes[row]:
                    self._localize(features_BCHW[index : index + 1], boxes[row], batch.frames[index], sums)
        return sums

    def state(self) -> TrainerState:
        """Return the state that `restore` continues from."""
        return {
            "network": self.network.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: TrainerState) -> None:
        """Continue from a state that `state` returned."""
        self.network.model.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])

    def _localize(
        self, features_1CHW: torch.Tensor, boxes: TrueBoxes, frame: Frame, sums: Validation
    ) -> None:
        labels = sorted(boxes)
        maps_1KHW = class_activation_maps(features_1CHW, self.network.weights_KC[labels][None])
        for label, cam_hw in zip(labels, maps_1KHW[0].half().cpu().numpy(), strict=True):
            sums.instances += 1
            first = boxes_from_cam(cam_hw, frame)[:1]
            sums.localized += float((iou(first, boxes[label]) >= _IOU).any())

    def _images(self, batch: Batch) -> torch.Tensor:
        pixels_BCHW = batch.pixels_BCHW.to(self._device, non_blocking=True)
        images_BCHW = (pixels_BCHW.float() - self._mean) / self._std
        return images_BCHW.contiguous(memory_format=torch.channels_last)

    def _loss(self, logits_BK: torch.Tensor, targets_BK: torch.Tensor) -> torch.Tensor:
        """Return the sum over images of cross-entropy, or of binary cross-entropy averaged over classes."""
        if self._hyperparameters.multi_label:
            losses_BK = F.binary_cross_entropy_with_logits(logits_BK, targets_BK, reduction="none")
            return losses_BK.mean(1).sum()
        return F.cross_entropy(logits_BK, targets_BK, reduction="sum")


def learning_rate(step: int, steps: int) -> float:
    """Return the factor of the learning rate at a step: linear warm-up, then half a cosine down to zero."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def score(epoch: EpochRecord) -> float:
    """Return the score of an epoch, higher is better: the negative validation loss, or else training loss."""
    loss = epoch["validation_loss"]
    return -(loss if loss is not None else epoch["loss"])


def should_stop(history: list[EpochRecord], patience: int | None) -> bool:
    """Return whether none of the last `patience` epochs was better than the best epoch before them."""
    if patience is None or len(history) <= patience:
        return False
    scores = [score(epoch) for epoch in history]
    return max(scores[-patience:]) <= max(scores[:-patience])
