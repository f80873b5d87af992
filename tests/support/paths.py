"""Where the sources, the tests and their scripts are, and how other processes find them."""

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SUPPORT = TESTS / "support"


def python_path(*first: Path) -> str:
    """PYTHONPATH for a process that imports helpers of the tests; first: folders to look in before.

    The root comes before tests/, whose folders are named after the packages of the product.
    """
    return os.pathsep.join(map(str, [*first, ROOT, TESTS]))
