"""The documents: their links, commands, options and Python examples are those of the code."""

import ast
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cli import COMMANDS, make_parser
from support.infra_files import ROOT, camworker_arguments, code_blocks

GUIDES = [".github/CONTRIBUTING.md", ".github/CHANGELOG.md", ".github/SECURITY.md", "infra/SCALE.md"]
READMES = ["README.md", *(f"{folder}/README.md" for folder in ("camworker", "infra", "jobs", "tests"))]
DOCUMENTS = [*READMES, *GUIDES]
# Options in the documents that belong to other programs.
OTHER_PROGRAMS = re.compile(r"(kubectl|aws|docker|ray|pip|yolo|label-studio|python|python3|pytest|sed|git) ")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def anchors(document: Path) -> set[str]:
    """Return the anchors of a Markdown file's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(document: str) -> Iterator[str]:
    """Yield the lines of the shell blocks, and the camworker commands within the text."""
    for block in code_blocks(ROOT / document, "sh"):
        yield from block.splitlines()
    for code in re.findall(r"`(camworker [a-z][^`]*)`", text_of(document)):
        if "..." not in code:
            yield from code.split(" && ")


def options_of(command: str) -> set[str]:
    """Return the options in the help of a command."""
    columns = re.findall(
        r"^  (-.*?)(?:\s{2,}|$)", make_parser().commands[command].format_help(), re.MULTILINE
    )
    return {name for column in columns for name in re.findall(r"(?<!\S)--?[a-z][a-z-]*", column)}


def sections(document: str) -> dict[str, str]:
    """Return the text under each second-level heading."""
    parts = re.split(r"^## (.+)$", text_of(document), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / document).parent / name if name else ROOT / document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_in_the_text_exist(document: str) -> None:
    code = " ".join(re.findall(r"`([^`\n]+)`", text_of(document)))
    for path in re.findall(r"(?<![\w./-])(?:camworker|jobs|tests|infra|\.ci|\.github)/[\w./-]*\w", code):
        if "NAME" not in path and not path.startswith("camworker/compiled"):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_command_lines_parse(document: str) -> None:
    for block in code_blocks(ROOT / document, "sh"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    for line in command_lines(document):
        words = camworker_arguments(line)
        if words and words[0] in COMMANDS and len(words) > 1:
            make_parser().parse_args(words)  # exits if the line is wrong


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_examples_import_what_exists(document: str) -> None:
    for block in code_blocks(ROOT / document, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("camworker"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "demo"])
def test_every_option_is_documented(command: str) -> None:
    text = next(text for title, text in sections("jobs/README.md").items() if command in title.lower())
    missing = options_of(command) - {"-h", "--help", "--json", "--verbose", "--output", "-o"}
    assert not {name for name in missing if f"{name}`" not in text and f"{name} " not in text}


def test_documented_options_exist() -> None:
    known = set().union(*(options_of(command) for command in COMMANDS))
    for document in ("README.md", "jobs/README.md"):
        for code in re.findall(r"`([^`\n]+)`", text_of(document)):
            if not OTHER_PROGRAMS.search(code):
                assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", code)) <= known, code


def test_readme_is_short_and_has_a_small_picture() -> None:
    text = text_of("README.md")
    assert len(text.splitlines()) <= 150
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert (ROOT / picture).stat().st_size < 200_000


def test_each_line_of_the_installation_works_alone() -> None:
    """`.ci/run` takes the line with [test] apart at its "&&"."""
    lines = [line for block in code_blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    demo, test = lines[:2]
    assert [step.split()[0] for step in demo.split(" && ")] == [
        *("python3", ".venv/bin/pip", ".venv/bin/camworker"),
    ]
    assert next(line for line in text_of("README.md").splitlines() if "[test]'" in line) == test
    assert test.split(" && ")[-1] == ".venv/bin/pytest"
    for line in (demo, test):
        assert "-c infra/constraints.txt" in shlex.join(shlex.split(line))


def test_commands_are_all_in_the_table() -> None:
    text = text_of("jobs/README.md").partition("## ")[0]
    assert {name for name in COMMANDS if f"[{name}](" not in text} == set()
