"""A summary as text on the console."""

from camworker.metrics.definitions import METRICS
from camworker.metrics.error_categories import ERROR_TITLES
from camworker.metrics.metric import Estimate, Metric, Need
from camworker.metrics.summary import Summary
from jobs.console import Console


def print_summary(console: Console, summary: Summary) -> None:
    """Print the metrics of a summary and what they leave out."""
    console.out(
        f"{summary.images} images, {sum(summary.failed.values())} failed; "
        f"{summary.images_with_truth} with truth ({summary.instances} labels)"
    )
    raw = summary.raw
    if raw is not None:
        console.out(
            f"boxes: {summary.settings.box_rule} of the refined maps; to the right, those of the raw maps "
            f"({raw.box_rule}) and the difference in points"
        )
    for metric in METRICS:
        estimate, title = summary.estimates[metric.name], _title(metric, summary)
        if estimate.value is not None:
            line = f"{title:<36}{_percent(estimate.value)}{_interval(estimate):<18}"
            if raw is not None and metric.name in raw.estimates:
                line += f"  raw maps {_percent(raw.estimates[metric.name].value)}"
                difference = raw.differences[metric.name]
                if difference.value is not None:
                    line += f"  {100 * difference.value:+6.2f}{_interval(difference, '+')}"
            console.out(line.rstrip())
        elif Need.MASKS not in metric.needs:
            console.out(f"{title:<36}{estimate.reason_missing}")
    _print_baselines(console, summary)
    _print_errors(console, summary)
    for other in summary.compared:
        console.out(f"{other.recipe} less {summary.settings.recipe}, in points:")
        for metric in METRICS:
            difference = other.differences[metric.name]
            if difference.value is not None and difference.interval is not None:
                title = _title(metric, summary)
                console.out(f"  {title:<34}{100 * difference.value:+6.2f}{_interval(difference, '+')}")
    _print_left_out(console, summary)


def _print_baselines(console: Console, summary: Summary) -> None:
    baselines = summary.baselines
    if baselines is not None:
        gaussian = ", ".join(
            f"{_percent(share)} at IoU {delta}" for delta, share in baselines.gaussian.items()
        )
        console.out("without looking at the image:")
        console.out(f"  a centred Gaussian at its best thresholds: {gaussian}")
        console.out(f"  a box over the whole image: {_percent(baselines.whole_image)} at IoU 0.5")


def _print_errors(console: Console, summary: Summary) -> None:
    """Print the kinds of errors and the accuracy by the size of the object."""
    boxed, raw = summary.instances_with_boxes, summary.raw
    if not boxed:
        return
    console.out(f"{'first box of the first class':<36} share" + ("  raw maps" if raw else ""))
    for kind, count in summary.errors.items():
        if count or (raw is not None and raw.errors[kind]):
            line = f"  {ERROR_TITLES[kind]:<34}{_percent(count / boxed)}"
            console.out(line + (f"   {_percent(raw.errors[kind] / boxed)}" if raw else ""))
    title = "by the object's share of the image"
    console.out(f"{title:<36}labels  GT-known{'  raw maps' if raw else ''}  whole image")
    for n, size in enumerate(summary.by_size):
        if size.instances:
            line = f"  {f'{100 * size.low:.0f} to {100 * size.high:.0f}%':<34}{size.instances:>6}"
            line += f"   {_percent(size.gt_known)}"
            line += f"   {_percent(raw.by_size[n].gt_known)}" if raw else ""
            console.out(f"{line}      {_percent(size.whole_image)}")


def _percent(value: float | None) -> str:
    return f"{'-':>7}" if value is None else f"{100 * value:6.2f}%"


def _interval(estimate: Estimate, sign: str = "") -> str:
    if estimate.interval is None:
        return ""
    low, high = (f"{100 * end:{sign}.2f}" for end in estimate.interval)
    return f"  [{low}, {high}]"


def _title(metric: Metric, summary: Summary) -> str:
    upper_bound = Need.SWEEP in metric.needs and summary.select_threshold_on is None
    return metric.title + (" (upper bound)" if upper_bound else "")


def _print_left_out(console: Console, summary: Summary) -> None:
    if summary.instances_without_target:
        console.out(
            f"{summary.instances_without_target} known labels have no map of their own: run localize with "
            "--image-labels to get the metrics that need it"
        )
    if summary.images_without_truth or summary.truth_without_image:
        console.out(
            f"not counted: images without truth: {summary.images_without_truth}; images of the truth that "
            f"are not in these predictions: {summary.truth_without_image}"
        )
    unknown = summary.unknown_classes
    if unknown:
        names = ", ".join(list(unknown)[:3]) + (", ..." if len(unknown) > 3 else "")
        console.out(
            f"rows of the truth left out: {sum(unknown.values())}, of {len(unknown)} classes that this "
            f"network does not have ({names})"
        )
    for note, count in summary.truth_notes.items():
        if count:
            console.out(f"truth: {note}: {count}")
    if not summary.settings.complete:
        console.out("a generation is unfinished: run localize again to complete it")
