"""The Dockerfile by hadolint's rules and ours, the versions that it pins, README's lines."""

import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

from jobs.cli import make_parser
from support.infra_files import INFRA, ROOT, camworker_arguments, code_blocks, documents

DOCKERFILE = INFRA / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Keyword and the rest of every instruction, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([str(hadolint), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_as_nobody_in_particular() -> None:
    users = [rest for keyword, rest in instructions() if keyword == "USER"]
    assert users == ["1000:1000"]
    # Kubernetes and Ray's launcher start shells in it: an entry point would stand in their way, and the
    # launcher's are login shells, which forget the image's PATH.
    assert "ENTRYPOINT" not in {keyword for keyword, _ in instructions()}
    assert 'PATH=/opt/camworker/bin:\\$PATH" > /etc/profile.d/' in DOCKERFILE.read_text()


def test_base_images_have_tags_and_nothing_is_fetched_by_address() -> None:
    stages = [rest.split(" AS ") for keyword, rest in instructions() if keyword == "FROM"]
    ours = {stage[1] for stage in stages if len(stage) == 2}
    arguments = dict(rest.split("=") for keyword, rest in instructions() if keyword == "ARG" and "=" in rest)
    bases = set()
    for base, *_ in stages:
        filled = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], base)
        if filled not in ours:
            bases.add(filled)
    assert bases == {"python:3.11-slim-bookworm"}
    assert {"torch-cuda", "torch-cpu"} <= ours
    assert "://" not in DOCKERFILE.read_text()
    assert "ADD" not in {keyword for keyword, _ in instructions()}


def test_what_pip_installs_is_pinned_and_leaves_no_cache() -> None:
    runs = [rest for keyword, rest in instructions() if keyword == "RUN"]
    pips = [part for run in runs for part in run.split("&&") if re.search(r"\bpip\b", part)]
    assert len(pips) == 6
    for pip in pips:
        assert "--no-cache-dir" in pip
        ours = re.search(r"dist/\*\.whl|pip wheel", pip)
        assert "--no-deps" in pip if ours else "--constraint infra/constraints.txt" in pip


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    copied = {
        name
        for keyword, rest in instructions()
        if keyword == "COPY" and not rest.startswith("--from")
        for name in rest.split()[:-1]
    }
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_every_dependency_has_a_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    names = {re.split(r"[\[>=<]", item)[0].lower().replace("_", "-") for item in asked} - {"camworker"}
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (INFRA / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert names <= pinned


def test_every_command_line_in_readme_is_one_of_ours() -> None:
    blocks = code_blocks(INFRA / "README.md", "sh")
    for block in blocks:
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    found = [words for block in blocks for line in block.splitlines() if (words := camworker_arguments(line))]
    assert [make_parser().parse_args(words).command for words in found] == ["localize"]


@pytest.mark.parametrize("where", ["infra/README.md"])
def test_every_file_that_readme_names_exists(where: str) -> None:
    text = (ROOT / where).read_text()
    for name in re.findall(
        r"`((?:kuberay|schedule|aws|observability)/[\w./-]+|Dockerfile|constraints\.txt)`", text
    ):
        assert (INFRA / name).exists(), name
    for name in re.findall(r"\binfra/[\w./-]*\w", text):
        assert (ROOT / name).exists(), name


def test_the_table_names_every_file() -> None:
    """A file of infra/ is in README's table, or is part of a folder or a kustomization that is."""
    text = (INFRA / "README.md").read_text()
    named = set(re.findall(r"^\| (.+?) \|", text, re.MULTILINE))
    names = {name for cell in named for name in re.findall(r"`([\w./-]+)`", cell)}
    parts = {
        path.parent / name
        for path in INFRA.rglob("kustomization.yaml")
        for name in ["kustomization.yaml", *documents(path)[0]["resources"]]
    }
    for path in INFRA.rglob("*"):
        relative = path.relative_to(INFRA).as_posix()
        if path.is_dir() or path.name in ("README.md", "SCALE.md", "trust.json") or path in parts:
            continue
        assert any(relative == name or relative.startswith(name) for name in names), relative
