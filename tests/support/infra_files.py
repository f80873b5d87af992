"""Read the files of infra/ and the documents: YAML objects, code blocks, command lines."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from support.paths import ROOT

INFRA = ROOT / "infra"


def documents(path: Path) -> list[Any]:
    """Return every YAML document of a file."""
    return list(yaml.safe_load_all(path.read_text()))


def kubernetes_objects() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every object that a kustomization names, with its file."""
    for kustomization in sorted(INFRA.rglob("kustomization.yaml")):
        for name in documents(kustomization)[0]["resources"]:
            path = kustomization.parent / name
            if path.is_file():
                yield from ((path, manifest) for manifest in documents(path))


def find_object(kind: str, name: str | None = None) -> dict[str, Any]:
    """Return the only object of a kind, or the one of this kind and name."""
    (match,) = (
        manifest
        for _, manifest in kubernetes_objects()
        if manifest["kind"] == kind and name in (None, manifest["metadata"]["name"])
    )
    return match


def pinned(package: str) -> str:
    """Return the version of a package in constraints.txt."""
    match = re.search(rf"^{re.escape(package)}==(.+)$", (INFRA / "constraints.txt").read_text(), re.MULTILINE)
    assert match, f"{package} is not pinned"
    return match[1]


def code_blocks(path: Path, language: str) -> list[str]:
    """Return the fenced code blocks of a language in a Markdown file."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def camworker_arguments(line: str) -> list[str] | None:
    """Return the arguments of camworker in a command line, or None if it runs another program.

    In `ray job submit -- camworker localize ...` these are the arguments after `camworker`.
    """
    words = shlex.split(line, comments=True)
    if "--" in words and words[words.index("--") + 1 :][:1] == ["camworker"]:
        words = words[words.index("--") + 1 :]
    return words[1:] if words and words[0].rpartition("/")[2] == "camworker" else None
