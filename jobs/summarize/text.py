"""A summary as text on the console."""

from camworker.metrics.definitions import METRICS
from camworker.metrics.metric import Metric, Need
from camworker.metrics.summary import Summary
from jobs.console import Console


def print_summary(console: Console, summary: Summary) -> None:
    """Print the metrics of a summary and what they leave out."""
    console.out(
        f"{summary.images} images, {sum(summary.failed.values())} failed; "
        f"{summary.images_with_truth} with truth ({summary.instances} labels)"
    )
    for metric in METRICS:
        estimate, title = summary.estimates[metric.name], _title(metric, summary)
        if estimate.value is not None:
            line = f"{title:<36}{100 * estimate.value:5.2f}%"
            if estimate.interval is not None:
                low, high = (100 * end for end in estimate.interval)
                line += f"  [{low:.2f}, {high:.2f}]"
            console.out(line)
        elif Need.MASKS not in metric.needs:
            console.out(f"{title:<36}not supported by these rows and this truth")
    for other in summary.compared:
        console.out(f"{other.recipe} less {summary.settings.recipe}, in points:")
        for metric in METRICS:
            difference = other.differences[metric.name]
            if difference.value is not None and difference.interval is not None:
                low, high = (100 * end for end in difference.interval)
                title = _title(metric, summary)
                console.out(f"  {title:<34}{100 * difference.value:+6.2f}  [{low:+.2f}, {high:+.2f}]")
    _print_left_out(console, summary)


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
