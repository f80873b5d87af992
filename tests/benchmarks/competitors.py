"""Other programs for the speed benchmark: torchcam, pytorch-grad-cam, and a plain Ray Data pipeline.

Each gives the five best classes of an image, their maps and their boxes, in float32 and as its documentation
suggests, with the weights, the input and the box rule of camworker.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from camworker.networks.package import load

BATCH = 16
SIDE = 224
Rate = Callable[[], float]


def network() -> torch.nn.Module:
    return load().network.model


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def normalised(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def box(cam: np.ndarray) -> list[int]:
    """Return the box of the largest component above a fifth of the maximum, implemented plainly."""
    large = cv2.resize(cam.astype(np.float32), (SIDE, SIDE))
    _, _, stats, _ = cv2.connectedComponentsWithStats((large > 0.2 * large.max()).astype(np.uint8))
    x, y, width, height, _ = stats[1 + stats[1:, 4].argmax()] if len(stats) > 1 else (0, 0, SIDE, SIDE, 0)
    return [int(x), int(y), int(x + width), int(y + height)]


def batches(files: list[Path], count: int) -> list[list[Path]]:
    return [files[start : start + BATCH] for start in range(0, min(count, len(files)), BATCH)]


def torchcam_loop(files: list[Path], count: int) -> Rate:
    from torchcam.methods import CAM

    torch.set_grad_enabled(True)
    model = network()

    def run() -> float:
        file_batches = batches(files, count)
        started = time.perf_counter()
        with CAM(model, "bn2", "classifier") as extractor, torch.no_grad():
            for batch in file_batches:
                logits = model(normalised([pixels(Image.open(path)) for path in batch]))
                best = logits.topk(5).indices
                for rank in range(5):
                    for cam in extractor(best[:, rank].tolist(), normalized=False)[0]:
                        box(cam.numpy())
        return sum(map(len, file_batches)) / (time.perf_counter() - started)

    return run


def grad_cam_loop(files: list[Path], count: int) -> Rate:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model: Any = network()

    def run() -> float:
        file_batches = batches(files, count)
        started = time.perf_counter()
        with GradCAM(model=model, target_layers=[model.bn2]) as extractor:
            for batch in file_batches:
                images_BCHW = normalised([pixels(Image.open(path)) for path in batch])
                with torch.no_grad():
                    best = model(images_BCHW).topk(5).indices
                for rank in range(5):
                    targets = [ClassifierOutputTarget(label) for label in best[:, rank].tolist()]
                    for cam in extractor(input_tensor=images_BCHW, targets=targets):
                        box(cam)
        return sum(map(len, file_batches)) / (time.perf_counter() - started)

    return run


class RayDataNetwork:
    """The actor of the Ray Data pipeline."""

    def __init__(self, cores: int) -> None:
        torch.set_num_threads(cores)
        model: Any = network()
        self._model = model

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            features = self._model.forward_features(normalised(list(batch["pixels"])))
            best = self._model.forward_head(features).topk(5).indices
            cams = torch.einsum("bkc,bchw->bkhw", self._model.classifier.weight[best], features).numpy()
        boxes = [[box(cam) for cam in image_cams] for image_cams in cams]
        return {
            "path": batch["path"],
            "labels": best.numpy(),
            "cams": cams,
            "boxes": np.array(boxes),
            "at": np.full(len(cams), time.time()),
        }


def ray_data_pipeline(files: list[Path], count: int, cores: int) -> Rate:
    """Return a function that measures the rate after the first batch; the start of Ray is not counted."""
    import ray
    from pyarrow import parquet

    def decode(row: dict[str, Any]) -> dict[str, Any]:
        import io

        return {"path": row["path"], "pixels": pixels(Image.open(io.BytesIO(row["bytes"])))}

    def run() -> float:
        ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            with tempfile.TemporaryDirectory() as out:
                rows = ray.data.read_binary_files([str(f) for f in files[:count]], include_paths=True)
                network = rows.map(decode).map_batches(
                    RayDataNetwork,
                    fn_constructor_args=(cores,),
                    batch_size=BATCH,
                    compute=ray.data.ActorPoolStrategy(size=1),
                    num_cpus=1,
                )
                network.write_parquet(out)
                tables = [parquet.read_table(path, columns=["at"]) for path in Path(out).rglob("*.parquet")]
        finally:
            ray.shutdown()
        at = np.sort(np.concatenate([table["at"].to_numpy() for table in tables]))
        return float((at > at[0]).sum() / (at[-1] - at[0]))

    return run
