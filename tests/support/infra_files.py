"""The files in infra/, as tests read them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from support.paths import ROOT

INFRA = ROOT / "infra"


def documents(path: Path) -> list[Any]:
    """Every YAML document in a file."""
    return list(yaml.safe_load_all(path.read_text()))


def kubernetes_objects() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every object that a kustomization names, with the file that it is in."""
    for kustomization in sorted(INFRA.rglob("kustomization.yaml")):
        for name in documents(kustomization)[0]["resources"]:
            path = kustomization.parent / name
            if path.is_file():
                yield from ((path, thing) for thing in documents(path))


def the(kind: str, name: str | None = None) -> dict[str, Any]:
    """The object of a kind (and a name)."""
    (found,) = (
        thing
        for _, thing in kubernetes_objects()
        if thing["kind"] == kind and name in (None, thing["metadata"]["name"])
    )
    return found


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    found = re.search(rf"^{re.escape(package)}==(.+)$", (INFRA / "constraints.txt").read_text(), re.MULTILINE)
    assert found, f"{package} is not pinned"
    return found[1]


def shell_blocks(path: Path) -> list[str]:
    """What stands between ```sh and ``` in a Markdown file."""
    return re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def camworker_arguments(line: str) -> list[str] | None:
    """What a command line gives to camworker; None where it runs something else."""
    words = shlex.split(line, comments=True)
    if "--" in words:
        words = words[words.index("--") + 1 :]
    return words[1:] if words and words[0] == "camworker" else None
