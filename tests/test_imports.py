"""The direction of imports, read from the sources: who may import whom, and what stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import camworker
import jobs
from jobs.cli import COMMANDS

# Every module of camworker and the modules of ours that it may import. A new module is written down here.
ALLOWED = {
    "__init__": {"localizer"},
    "batches": {"careful", "errors", "fetch", "localizer"},
    "boxes": {"errors", "frame"},
    "cam": {"errors", "frame"},
    "careful": {"errors", "frame", "images", "localizer"},
    "classes": {"errors"},
    "dataset": {"errors", "ledger", "records", "store"},
    "errors": set(),
    "excite": {"batches", "errors", "fetch", "localizer", "units"},
    "examples": {"classes", "errors", "records", "sources", "store", "tables"},
    "fetch": {"errors", "store"},
    "frame": set(),
    "images": {"errors", "frame"},
    "ledger": {"errors", "store"},
    "localizer": {
        *("boxes", "cam", "errors", "frame", "gap", "images", "networks", "records", "weights"),
    },
    "metrics": {"boxes", "errors", "records", "truth"},
    "gap": {"cam", "errors"},
    "networks": {"errors", "gap", "paper_networks", "zoo"},
    "paper_networks": {"gap"},
    "s3": {"errors"},
    "states": {"errors", "gap", "networks", "paper_networks", "store"},
    "tracing": {"errors", "gap"},
    "zoo": {"errors", "gap", "tracing"},
    "plan": {"errors", "ledger", "records"},
    "records": {"errors"},
    "receptive": {"gap"},
    "report": {"boxes", "errors", "frame"},
    "shard": {"batches", "errors", "fetch", "ledger", "localizer", "plan", "records"},
    "sources": {"classes", "errors", "fetch", "records", "store", "tables"},
    "store": {"errors", "s3"},
    "tables": {"errors", "store"},
    "training": {"boxes", "cam", "frame", "gap", "training_data"},
    "training_data": {"errors", "fetch", "frame", "images", "records"},
    "truth": {"classes", "errors", "store", "tables"},
    "units": {"frame"},
    "units_page": {"report"},
    "units_table": {"units"},
    "weights": {"classes", "errors", "gap", "networks", "states", "store"},
}

TORCH = {"torch", "torchvision", "timm", "safetensors"}
TORCH_MODULES = {
    *("cam", "careful", "excite", "gap", "images", "localizer", "networks", "paper_networks", "receptive"),
    *("states", "tracing", "training", "training_data", "weights", "zoo"),
}
NO_PYARROW = {"boxes", "cam", "errors", "frame", "images", "localizer", "networks", "receptive", "units"}


def modules_of(package):
    folder = Path(package.__file__).parent
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def imported(path, package):
    """Dotted names that a file imports, wherever in it: functions and TYPE_CHECKING blocks too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = f"{package}.{base}".rstrip(".")
            # "from camworker import weights" imports camworker.weights.
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def top_level(path, package):
    return {name.partition(".")[0] for name in imported(path, package)}


def internal(path, package, known):
    """The modules of package that a file imports."""
    parts = (name.split(".") for name in imported(path, package))
    return {name[1] for name in parts if name[0] == package and len(name) > 1 and name[1] in known}


CAMWORKER, JOBS = modules_of(camworker), modules_of(jobs)
each_module = pytest.mark.parametrize("name", CAMWORKER)
each_job = pytest.mark.parametrize("name", JOBS)


def test_the_reader_sees_every_kind_of_import(tmp_path):
    source = tmp_path / "module.py"
    source.write_text(
        "import a.b\nfrom p import m\nfrom .n import thing\n"
        "if TYPE_CHECKING:\n    import c\ndef f():\n    from p.o import other\n"
    )
    assert top_level(source, "p") == {"a", "c", "p"}
    assert internal(source, "p", {"m", "n", "o"}) == {"m", "n", "o"}


@each_module
def test_camworker_imports_neither_jobs_nor_ray(name):
    assert not top_level(CAMWORKER[name], "camworker") & {"jobs", "ray"}


@each_module
def test_camworker_modules_import_only_what_they_may(name):
    assert name in ALLOWED, f"say in ALLOWED what camworker/{name}.py may import"
    extra = internal(CAMWORKER[name], "camworker", CAMWORKER) - ALLOWED[name]
    assert not extra, f"camworker/{name}.py imports {extra}"


def test_the_allowed_imports_have_no_cycle():
    def reachable(name, seen):
        for other in ALLOWED[name] - seen:
            seen.add(other)
            reachable(other, seen)
        return seen

    assert not [name for name in ALLOWED if name in reachable(name, set())]


@each_module
def test_torch_only_where_networks_are(name):
    if name not in TORCH_MODULES:
        assert not top_level(CAMWORKER[name], "camworker") & TORCH


@pytest.mark.parametrize("name", sorted(NO_PYARROW))
def test_pyarrow_only_where_tables_are(name):
    assert "pyarrow" not in top_level(CAMWORKER[name], "camworker")


@each_job
def test_commands_are_imported_by_nobody(name):
    """Only the command line loads them, by their names in COMMANDS."""
    assert not internal(JOBS[name], "jobs", JOBS) & (set(COMMANDS) - {name})


def test_every_command_is_a_module():
    assert set(COMMANDS) <= set(JOBS)


@pytest.mark.parametrize(
    "module", ["camworker", "camworker.boxes", "camworker.dataset", "camworker.frame", "camworker.errors"]
)
def test_importing_loads_no_torch(module):
    # A fresh process: here the tests themselves have loaded torch.
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & {*TORCH, "ray", "jobs"}


def test_the_localizer_is_loaded_when_asked_for():
    assert camworker.Localizer.__module__ == "camworker.localizer"
    with pytest.raises(AttributeError, match="Localiser"):
        camworker.Localiser  # noqa: B018
