"""Arguments and the run of `camworker finetune`."""

import argparse
import io
import json
import os
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from camworker.errors import UsageError
from camworker.storage.store import Store
from camworker.storage.uris import join_uri, local_path, open_store
from jobs.console import DONE, Console
from jobs.options import (
    DEFAULT_NETWORK,
    add_class_names_option,
    add_id_column_option,
    add_input_size_option,
    add_local_root_option,
    add_network_option,
    add_package_output_option,
    add_pooling_option,
    add_truth_boxes_option,
    add_worker_options,
    fraction,
    non_negative,
    whole_number,
)
from jobs.progress import TrainingProgress

if TYPE_CHECKING:
    import pyarrow as pa

    from jobs.finetune.config import FinetuneConfig
    from jobs.ray_cluster import Workers

HELP = "teach a network your classes from image labels alone"

_TRAINING: Final = "training"
_SETTINGS: Final = f"{_TRAINING}/settings.json"
_POLL_SECONDS: Final = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", metavar="INPUT", help="a folder with a folder for each class, or a table with column label"
    )
    add_package_output_option(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on after the last epoch that an earlier run finished"
    )
    what = parser.add_argument_group("what to learn from")
    what.add_argument("--image-labels", metavar="FILE", help="Parquet or CSV: image_id, label; a row a label")
    add_class_names_option(what)
    add_id_column_option(what)
    add_local_root_option(what)
    what.add_argument(
        "--multi-label", action="store_true", help="an image may have several labels, or none (sigmoid)"
    )
    what.add_argument(
        "--validation",
        type=fraction,
        default=0.2,
        metavar="SHARE",
        help="held back of each class (default 0.2)",
    )
    what.add_argument(
        "--truth", metavar="FILE", help="true boxes of held-back images, to report on; never learnt from"
    )
    add_truth_boxes_option(what)
    which = parser.add_argument_group("which network")
    add_network_option(which, default=DEFAULT_NETWORK)
    add_pooling_option(which)
    which.add_argument(
        "--backbone-weights",
        metavar="PATH",
        help="weights to start from: DEFAULT (those its library publishes, downloaded but for the default "
        "network's), a file or s3:// object, or 'random'; default: DEFAULT for efficientnet_lite0",
    )
    add_input_size_option(which)
    how = parser.add_argument_group("how to learn")
    how.add_argument("--epochs", type=whole_number(1), default=10, metavar="N", help="default 10")
    how.add_argument(
        "--batch-size", type=whole_number(1), default=32, metavar="N", help="of a worker (default 32)"
    )
    how.add_argument("--lr-backbone", type=non_negative, default=5e-5, metavar="LR", help="default 0.00005")
    how.add_argument("--lr-head", type=non_negative, default=5e-3, metavar="LR", help="default 0.005")
    how.add_argument("--weight-decay", type=non_negative, default=0.01, metavar="W", help="default 0.01")
    how.add_argument(
        "--patience", type=whole_number(1), metavar="N", help="stop after N epochs without a better one"
    )
    how.add_argument("--seed", type=int, default=0, help="of what is held back, shuffled and augmented")
    where = parser.add_argument_group("where")
    add_worker_options(where)


def run(args: argparse.Namespace, console: Console) -> int:
    started = time.monotonic()
    store = open_store(args.output)
    _refuse_overwriting(args, store)

    from camworker.inputs import ReadPolicy
    from camworker.training.labelled_images import held_back, manifest, read_examples

    examples = read_examples(
        args.input,
        class_names=args.class_names,
        image_labels=args.image_labels,
        id_column=args.id_column,
        multi_label=args.multi_label,
        policy=ReadPolicy(roots=tuple(args.local_root)),
    )

    from jobs.finetune.config import build_config  # torch comes with it

    held = held_back(examples.listing.items, args.validation, args.seed)
    course = build_config(args, examples, held)
    settings = _settings(args, course)
    _remember(store, settings, resume=args.resume)
    console.err(
        f"{course.training.num_rows} images to learn {course.classes} classes from, "
        f"{course.held_back.num_rows} held back"
        + (f", {examples.unlabelled} without a label left out" if examples.unlabelled else "")
    )
    state, best, history = _train(args, console, course)

    from camworker.networks import package as weights
    from camworker.reports.training_page import training_page

    package = weights.build_package(
        args.network,
        state,
        examples.classes,
        pooling=course.pooling,  # type: ignore[arg-type]
        preprocessing=course.preprocessing,
        scoring="sigmoid" if args.multi_label else "softmax",
        provenance={"command": "finetune", **settings, "epoch": best + 1, "history": history},
    )
    # Before the package, which is the end; after a resumption they may be there, and are the same.
    store.create("held_back.parquet", _parquet(manifest(course.held_back, examples.classes)))
    store.create("training.html", training_page(history, settings, best).encode())
    weights.save(package, args.output)
    for row in _figures(history[best]):
        console.out(row)
    console.out(
        f"the package is {args.output}: camworker localize INPUT --output OUT --weights {args.output}"
    )
    console.result(
        {
            "package": args.output,
            "network": package.name,
            "classes": list(examples.classes.names),
            "images": course.training.num_rows,
            "held_back": course.held_back.num_rows,
            "epochs": len(history),
            "best_epoch": best + 1,
            **{key: value for key, value in history[best].items() if key not in ("epoch", "seconds")},
            "history": history,
            "fingerprint": package.fingerprint,
            "seconds": round(time.monotonic() - started, 3),
        }
    )
    return DONE


def _refuse_overwriting(args: argparse.Namespace, store: Store) -> None:
    if store.exists("network.json"):
        raise UsageError(f"{args.output} holds a network package already: name another folder")
    if store.exists(_SETTINGS) and not args.resume:
        raise UsageError(f"{args.output} holds a training already: --resume goes on with it")
    if args.resume and not store.exists(_SETTINGS):
        raise UsageError(f"{args.output} holds no training to resume: leave --resume out")


def _settings(args: argparse.Namespace, course: "FinetuneConfig") -> dict[str, Any]:
    """What decides the training, as a package and its page tell it."""
    from jobs.finetune.config import RANDOM

    return {
        "input": args.input if "://" in args.input else os.path.abspath(args.input),
        "network": course.network,
        "pooling": course.pooling,
        "backbone_weights": course.backbone_weights or RANDOM,
        "input_size": course.preprocessing.input_size,
        **asdict(course.how),
        "patience": course.patience,
        "validation": args.validation,
        "images": course.training.num_rows,
        "held_back": course.held_back.num_rows,
        "classes": course.classes,
    }


def _remember(store: Store, settings: dict[str, Any], *, resume: bool) -> None:
    """Keep the settings beside the checkpoints; a resumption has to have the same."""
    if not resume:
        store.create(_SETTINGS, json.dumps(settings, indent=1).encode())
        return
    before = json.loads(store.read(_SETTINGS))
    changed = [name for name in settings if settings[name] != before.get(name)]
    if changed:
        name = changed[0]
        raise UsageError(
            f"--resume goes on with the training as it was: {name} was {before.get(name)!r}, "
            f"not {settings[name]!r}"
        )


def _train(
    args: argparse.Namespace, console: Console, course: "FinetuneConfig"
) -> tuple[dict[str, Any], int, list[dict[str, Any]]]:
    """Run Ray Train to its end. Returns the best epoch's weights, that epoch's index, and all epochs."""
    import ray
    import torch

    from jobs.finetune.train_loop import STATE, ProgressActor
    from jobs.ray_cluster import connected, plan_workers

    with connected(args.address, verbose=console.verbose):
        workers = plan_workers(args.workers, args.gpus_per_worker)
        board = ray.remote(num_cpus=0)(ProgressActor).remote()
        result: list[Any] = []
        thread = threading.Thread(
            target=lambda: result.append(_fit(args, course, workers, board)), daemon=True
        )
        with TrainingProgress() as progress:
            thread.start()
            while thread.is_alive():
                thread.join(_POLL_SECONDS)
                progress.update(ray.get(board.read.remote()))
        if isinstance(result[0], BaseException):
            raise result[0]
        checkpoint = result[0].get_best_checkpoint("score", "max")
        with checkpoint.as_directory() as folder:
            state = torch.load(os.path.join(folder, STATE), map_location="cpu", weights_only=True)
        return state["network"], len(state["history"]) - 1, result[0].metrics["history"]


def _fit(args: argparse.Namespace, course: "FinetuneConfig", workers: "Workers", board: Any) -> Any:
    """What TorchTrainer.fit returns, or the error that ended it."""
    import ray.train
    from ray.train.torch import TorchTrainer

    from jobs.finetune.train_loop import train_worker

    resources = {"CPU": workers.cores, **({"GPU": workers.gpus} if workers.gpus else {})}
    output = args.output if "://" in args.output else local_path(args.output)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"course": course, "board": board, "cores": workers.cores},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu=bool(workers.gpus), resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            storage_path=join_uri(output, _TRAINING),
            name="run",
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="score", checkpoint_score_order="max"
            ),
        ),
    )
    try:
        return trainer.fit()
    except Exception as error:  # handed to the main thread, which raises it
        return error


def _figures(epoch: dict[str, Any]) -> list[str]:
    rows = [f"best epoch {epoch['epoch']}: loss {epoch['loss']:.4f}"]
    if epoch["validation_loss"] is not None:
        rows.append(
            f"held-back images: loss {epoch['validation_loss']:.4f}, "
            f"accuracy {100 * epoch['validation_accuracy']:.2f}%"
        )
    if epoch["gt_known_localization_accuracy"] is not None:
        rows.append(f"GT-known localization accuracy {100 * epoch['gt_known_localization_accuracy']:.2f}%")
    if epoch["unreadable"]:
        rows.append(f"{epoch['unreadable']} images could not be read")
    return rows


def _parquet(table: "pa.Table") -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
