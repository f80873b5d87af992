"""What keeps the tree easy to enter: small folders, small modules, one meaning for each public name."""

import ast
from collections import defaultdict
from pathlib import Path

from support.paths import ROOT

MODULES = [path for package in ("camworker", "jobs") for path in sorted((ROOT / package).rglob("*.py"))]
# The interface of a command: every command defines these.
OF_EVERY_COMMAND = {"HELP", "add_arguments", "run"}


def public_names(path: Path) -> set[str]:
    """The public functions, classes and constants that a module defines at its top level."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {
                name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)
            }
    return {name for name in names if not name.startswith("_")}


def test_no_folder_holds_more_than_14_modules() -> None:
    folders = defaultdict(list)
    for path in MODULES:
        if path.name != "__init__.py":
            folders[path.parent].append(path.name)
    assert {str(folder): len(names) for folder, names in folders.items() if len(names) > 14} == {}


def test_no_module_exceeds_320_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert {path: length for path, length in lengths.items() if length > 320} == {}


def test_no_public_name_is_defined_twice() -> None:
    where = defaultdict(set)
    for path in MODULES:
        for name in public_names(path):
            where[name].add(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in where.items() if len(paths) > 1}
    assert {name: paths for name, paths in twice.items() if name not in OF_EVERY_COMMAND} == {}


def test_a_name_that_is_defined_in_two_ways_is_found(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("A: int = 1\nB = C = 2\n_D = 3\ndef e(): ...\nclass F: ...\n")
    assert public_names(source) == {"A", "B", "C", "e", "F"}
