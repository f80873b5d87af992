"""Define the arguments of `camworker finetune` and run it."""

import argparse
import io
import json
import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

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

if TYPE_CHECKING:
    import pyarrow as pa

    from camworker.training.trainer import EpochRecord, Hyperparameters
    from jobs.finetune.config import FinetuneConfig

HELP = "fine-tune a network to your own classes, from image labels alone"

_TRAINING: Final = "training"
_SETTINGS: Final = f"{_TRAINING}/settings.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camworker finetune`."""
    parser.add_argument(
        "input", metavar="INPUT", help="a folder with one folder per class, or a table with a column label"
    )
    add_package_output_option(parser)
    parser.add_argument(
        "--resume", action="store_true", help="continue after the last epoch that an earlier run finished"
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--image-labels", metavar="FILE", help="Parquet or CSV: image_id, label; one row per label"
    )
    add_class_names_option(data)
    add_id_column_option(data)
    add_local_root_option(data)
    data.add_argument(
        "--multi-label", action="store_true", help="an image may have several labels, or none (sigmoid)"
    )
    data.add_argument(
        "--validation-fraction",
        type=fraction,
        default=0.2,
        metavar="F",
        help="fraction of each class that is held back for validation (default 0.2)",
    )
    data.add_argument(
        "--truth",
        metavar="FILE",
        help="true boxes of held-back images, used to report localization accuracy only",
    )
    add_truth_boxes_option(data)
    network = parser.add_argument_group("network")
    add_network_option(network, default=DEFAULT_NETWORK)
    add_pooling_option(network)
    weights = network.add_mutually_exclusive_group()
    weights.add_argument(
        "--init",
        choices=("published", "random"),
        help="start from the weights that the network's library publishes (downloaded, except for the "
        f"default network) or from random weights (default: published for {DEFAULT_NETWORK})",
    )
    weights.add_argument(
        "--backbone-weights",
        metavar="FILE",
        help="start from the weights in this file or s3:// object, or in this network package, "
        "whose foreground head is kept",
    )
    add_input_size_option(network)
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=whole_number(1), default=10, metavar="N", help="default 10")
    training.add_argument(
        "--batch-size", type=whole_number(1), default=32, metavar="N", help="per worker (default 32)"
    )
    training.add_argument(
        "--lr-backbone", type=non_negative, default=5e-5, metavar="LR", help="default 0.00005"
    )
    training.add_argument("--lr-head", type=non_negative, default=5e-3, metavar="LR", help="default 0.005")
    training.add_argument("--weight-decay", type=non_negative, default=0.01, metavar="W", help="default 0.01")
    training.add_argument(
        "--patience", type=whole_number(1), metavar="N", help="stop after N epochs without improvement"
    )
    training.add_argument(
        "--seed", type=int, default=0, help="of split, shuffling and augmentation (default 0)"
    )
    cluster = parser.add_argument_group("cluster")
    add_worker_options(cluster, workers="one per GPU, or 1")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run `camworker finetune` and return its exit code."""
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

    from jobs.finetune.config import NetworkOptions, TruthOptions, build_config  # imports torch

    config = build_config(
        NetworkOptions(args.network, args.pooling, args.init, args.backbone_weights, args.input_size),
        _hyperparameters(args),
        examples,
        held_back(examples.listing.items, args.validation_fraction, args.seed),
        patience=args.patience,
        truth=TruthOptions(args.truth, args.truth_boxes) if args.truth else None,
    )
    settings = _settings(args, config)
    _save_settings(store, settings, resume=args.resume)
    console.err(
        f"training on {config.training.num_rows} images of {config.classes} classes, "
        f"{config.held_back.num_rows} held back"
        + (f", {examples.unlabelled} without a label left out" if examples.unlabelled else "")
    )

    from camworker.networks.package import build_package, save, with_foreground
    from camworker.reports.training_page import training_page
    from jobs.finetune.foreground import foreground_of_backbone, with_training_images
    from jobs.finetune.ray_train import ClusterOptions, run_training

    output = args.output if "://" in args.output else local_path(args.output)
    state, best, history = run_training(
        config,
        join_uri(output, _TRAINING),
        ClusterOptions(args.address, args.workers, args.gpus_per_worker, console.verbose),
    )

    package = build_package(
        args.network,
        state,
        examples.classes,
        pooling=config.pooling,
        preprocessing=config.preprocessing,
        scoring="sigmoid" if args.multi_label else "softmax",
        provenance={"command": "finetune", **settings, "epoch": best + 1, "history": history},
    )
    foreground = foreground_of_backbone(config)
    if foreground and foreground.taps == package.network.taps:
        fitted = with_training_images(package, foreground, config)
        package = with_foreground(package, fitted, "the head of the backbone")
    # The package is written last, because it marks the end of the run. After a resumed run these files may
    # exist already, with equal content.
    store.create("held_back.parquet", _parquet(manifest(config.held_back, examples.classes)))
    store.create("training.html", training_page(history, settings, best).encode())
    save(package, args.output)
    for row in _describe_epoch(history[best]):
        console.out(row)
    console.out(
        f"wrote {args.output}: use it with camworker localize INPUT --output OUT --weights {args.output}"
    )
    console.result(
        {
            "package": args.output,
            "network": package.name,
            "classes": list(examples.classes.names),
            "images": config.training.num_rows,
            "held_back": config.held_back.num_rows,
            "epochs": len(history),
            "best_epoch": best + 1,
            **{key: value for key, value in history[best].items() if key not in ("epoch", "seconds")},
            "history": history,
            "fingerprint": package.fingerprint,
            "foreground": package.foreground.head.fingerprint if package.foreground else None,
            "seconds": round(time.monotonic() - started, 3),
        }
    )
    return DONE


def _hyperparameters(args: argparse.Namespace) -> "Hyperparameters":
    from camworker.training.trainer import Hyperparameters

    return Hyperparameters(
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr_backbone=args.lr_backbone,
        lr_head=args.lr_head,
        weight_decay=args.weight_decay,
        multi_label=args.multi_label,
        seed=args.seed,
    )


def _refuse_overwriting(args: argparse.Namespace, store: Store) -> None:
    if store.exists("network.json"):
        raise UsageError(f"{args.output} contains a network package already: choose another folder")
    if store.exists(_SETTINGS) and not args.resume:
        raise UsageError(f"{args.output} contains an unfinished training: continue it with --resume")
    if args.resume and not store.exists(_SETTINGS):
        raise UsageError(f"{args.output} contains no training to resume: remove --resume")


def _settings(args: argparse.Namespace, config: "FinetuneConfig") -> dict[str, object]:
    """Return everything that determines the training, for the package and its page."""
    return {
        "input": args.input if "://" in args.input else os.path.abspath(args.input),
        "network": config.network,
        "pooling": config.pooling,
        "init": config.init,
        "backbone_weights": config.backbone_weights,
        "input_size": config.preprocessing.input_size,
        **asdict(config.hyperparameters),
        "patience": config.patience,
        "validation_fraction": args.validation_fraction,
        "images": config.training.num_rows,
        "held_back": config.held_back.num_rows,
        "classes": config.classes,
    }


def _save_settings(store: Store, settings: dict[str, object], *, resume: bool) -> None:
    """Store the settings next to the checkpoints, or check that a resumed run has the same settings."""
    if not resume:
        store.create(_SETTINGS, json.dumps(settings, indent=1).encode())
        return
    before = json.loads(store.read(_SETTINGS))
    changed = [name for name in settings if settings[name] != before.get(name)]
    if changed:
        name = changed[0]
        raise UsageError(
            f"--resume needs the settings of the earlier run: {name} was {before.get(name)!r}, "
            f"not {settings[name]!r}"
        )


def _describe_epoch(epoch: "EpochRecord") -> list[str]:
    rows = [f"best epoch {epoch['epoch']}: loss {epoch['loss']:.4f}"]
    if epoch["validation_loss"] is not None:
        rows.append(
            f"held-back images: loss {epoch['validation_loss']:.4f}, "
            f"accuracy {100 * (epoch['validation_accuracy'] or 0):.2f}%"
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
