"""Which classes the page of a summary shows: the best and the worst of those with enough units."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from camworker.metrics.definitions import GT_KNOWN
from camworker.metrics.metric import Estimate
from camworker.metrics.summary import ClassResult, Summary
from camworker.reports.summary_charts import EACH_END, class_bars
from support.summaries import four_of_each, summary_of


def with_classes(*labels_and_right: tuple[int, int], known: float | None = 0.5) -> Summary:
    """Return a summary of classes: for each, how many labels it has and how many of them are right."""
    results = tuple(
        ClassResult(
            label,
            str(label),
            count,
            count,
            {
                "gt_known_localization_accuracy": right / count if count else None,
                "top1_localization_accuracy": 0.25 if count else None,
                "top1_classification_accuracy": 0.125 if count else None,
            },
        )
        for label, (count, right) in enumerate(labels_and_right)
    )
    estimates = {GT_KNOWN.name: Estimate(known)}
    return replace(summary_of(*four_of_each())[0], per_class=results, estimates=estimates)


def test_few_classes_are_all_shown() -> None:
    bars = class_bars(with_classes((4, 1), (0, 0), (2, 2), (8, 8)))
    assert bars is not None
    assert [(title, [c.name for c in classes]) for title, classes in bars.lists] == [
        ("All classes", ["3", "2", "0"])
    ]


def test_without_maps_of_known_labels_classes_are_ranked_by_another_metric() -> None:
    bars = class_bars(with_classes((4, 1), known=None))
    assert bars is not None
    assert (bars.name, bars.lists[0][1][0].share) == ("top1_localization_accuracy", 0.25)
    values = {"top1_localization_accuracy": None, "top1_classification_accuracy": 0.125}
    labels_only = ClassResult(0, "0", 4, 0, values)
    bars = class_bars(replace(with_classes(known=None), per_class=(labels_only,)))
    assert bars is not None
    assert (bars.name, bars.lists[0][1][0].share) == ("top1_classification_accuracy", 0.125)
    assert class_bars(with_classes((0, 0))) is None


def test_of_many_classes_the_best_and_worst_with_enough_labels_are_shown() -> None:
    # 40 classes of 10 units, the later the better; and one that is perfect on a single unit.
    bars = class_bars(with_classes(*((10, n // 4) for n in range(40)), (1, 1)))
    assert bars is not None
    assert (bars.least, bars.ranked) == (5, 40)
    best, worst = (classes for _, classes in bars.lists)
    assert [c.share for c in best] == [0.9] * 4 + [0.8] * 4 + [0.7] * 4 + [0.6] * 3
    assert [c.share for c in worst] == [0.0] * 4 + [0.1] * 4 + [0.2] * 4 + [0.3] * 3


def test_equally_good_classes_are_shown_once() -> None:
    bars = class_bars(with_classes(*[(3, 3)] * 40))
    assert bars is not None
    best, worst = ([c.name for c in classes] for _, classes in bars.lists)
    assert best == [str(n) for n in range(15)]
    assert worst == [str(n) for n in range(15, 30)]


@settings(max_examples=25)
@given(st.lists(st.integers(0, 168), min_size=2 * EACH_END + 1, max_size=80))
def test_best_and_worst_classes_are_distinct(drawn: list[int]) -> None:
    # 0 to 12 units, and no more right ones than units.
    classes = [(n % 13, (n // 13) % (n % 13 + 1)) for n in drawn]
    bars = class_bars(with_classes(*classes))
    if bars is None or len(bars.lists) == 1:
        assert sum(units > 0 for units, _ in classes) <= 2 * EACH_END
        return
    best, worst = (shown for _, shown in bars.lists)
    assert len(best) == len(worst) == EACH_END
    assert not {c.name for c in best} & {c.name for c in worst}
    assert all(c.labels >= bars.least for c in [*best, *worst])
    assert min(c.share for c in best) >= max(c.share for c in worst)
    assert 1 <= bars.least <= 5
    assert bars.ranked == sum(units >= bars.least for units, _ in classes) >= 2 * EACH_END
