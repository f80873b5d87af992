"""What stays light to import; contracts in pyproject.toml (lint-imports) hold the direction of imports."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import camworker

HEAVY = {"torch", "torchvision", "timm", "safetensors", "ray", "jobs"}


@pytest.mark.parametrize(
    "module",
    [
        "camworker",
        *(
            f"camworker.{name}"
            for name in ("boxes", "classes", "dataset", "errors", "exports", "frame", "inputs", "ledger")
        ),
        *(f"camworker.{name}" for name in ("metrics", "reports", "schemas", "storage")),
    ],
)
def test_importing_loads_neither_torch_nor_ray(module: str) -> None:
    # In a new process: the tests themselves have loaded torch.
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & HEAVY


def test_the_public_names_are_loaded_on_first_use() -> None:
    assert camworker.Localizer.__module__ == "camworker.inference.localizer"
    assert camworker.latest.__module__ == "camworker.dataset"
    assert {"Localizer", "latest"} <= set(dir(camworker))
    with pytest.raises(AttributeError, match="Localiser"):
        camworker.Localiser  # noqa: B018


@pytest.mark.parametrize("package", ["camworker", "jobs"])
def test_packages_are_typed_for_their_users(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert (Path(spec.origin).parent / "py.typed").exists()
