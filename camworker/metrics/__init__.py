"""Ground truth, matching, tallies that merge, intervals and summaries."""

from camworker.metrics.tally import Tally

__all__ = ["Tally"]
