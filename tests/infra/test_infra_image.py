"""The Dockerfile, the pinned versions, and the file table of infra/README.md."""

import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

from support.infra_files import INFRA, ROOT, documents

DOCKERFILE = INFRA / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Return the keyword and the rest of each instruction, with continuation lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def test_hadolint_reports_nothing() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([str(hadolint), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_image_runs_as_an_ordinary_user_without_entry_point() -> None:
    users = [rest for keyword, rest in instructions() if keyword == "USER"]
    assert users == ["1000:1000"]
    # Kubernetes and Ray's cluster launcher start shells, which an entry point would intercept. Those of the
    # launcher are login shells, which do not take PATH from the image.
    assert "ENTRYPOINT" not in {keyword for keyword, _ in instructions()}
    assert 'PATH=/opt/camworker/bin:\\$PATH" > /etc/profile.d/' in DOCKERFILE.read_text()


def test_base_image_has_a_tag_and_no_url_is_fetched() -> None:
    stages = [rest.split(" AS ") for keyword, rest in instructions() if keyword == "FROM"]
    own_stages = {stage[1] for stage in stages if len(stage) == 2}
    arguments = dict(rest.split("=") for keyword, rest in instructions() if keyword == "ARG" and "=" in rest)
    bases = set()
    for base, *_ in stages:
        filled = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], base)
        if filled not in own_stages:
            bases.add(filled)
    assert bases == {"python:3.11-slim-bookworm"}
    assert {"torch-cuda", "torch-cpu"} <= own_stages
    assert "://" not in DOCKERFILE.read_text()
    assert "ADD" not in {keyword for keyword, _ in instructions()}


def test_pip_installs_pinned_versions_without_a_cache() -> None:
    runs = [rest for keyword, rest in instructions() if keyword == "RUN"]
    pips = [part for run in runs for part in run.split("&&") if re.search(r"\bpip\b", part)]
    assert len(pips) == 6
    for pip in pips:
        assert "--no-cache-dir" in pip
        is_own_wheel = re.search(r"dist/\*\.whl|pip wheel", pip)
        assert "--no-deps" in pip if is_own_wheel else "--constraint infra/constraints.txt" in pip


def test_build_context_holds_exactly_what_is_copied() -> None:
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
    requirements = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    names = {re.split(r"[\[>=<]", item)[0].lower().replace("_", "-") for item in requirements} - {"camworker"}
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (INFRA / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert names <= pinned


def test_files_named_in_the_readme_exist() -> None:
    text = (INFRA / "README.md").read_text()
    for name in re.findall(
        r"`((?:kuberay|schedule|aws|observability)/[\w./-]+|Dockerfile|constraints\.txt)`", text
    ):
        assert (INFRA / name).exists(), name


def test_table_of_the_readme_names_every_file() -> None:
    """Each file of infra/ is in the table, or belongs to a folder or kustomization in the table."""
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
