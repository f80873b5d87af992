"""The direction of imports, read from the sources: who may import whom, and what stays light."""

import ast
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

import camworker
import jobs
from jobs.cli import COMMANDS

# Every module of camworker and the modules of ours that it may import. A new module is written down here.
ALLOWED = {
    "__init__": {"localizer"},
    "annotations": {"errors", "sources", "store", "tables"},
    "batches": {"careful", "errors", "fetch", "localizer", "stages"},
    "bootstrap": set(),
    "boxes": {"dtbox", "errors", "frame", "maxboxacc", "regions"},
    "cam": {"errors", "frame"},
    "careful": {"errors", "frame", "images", "localizer"},
    "charts": set(),
    "classes": {"errors"},
    "committed": {"errors", "ledger", "parquet_files", "plan"},
    "compact": {"committed", "dataset", "errors", "ledger", "locations", "store"},
    "compiling": {"compiling_cpu", "compiling_cuda"},
    "compiling_cpu": set(),
    "compiling_cuda": set(),
    "components": {"kernels"},
    "dataset": {"committed", "errors", "ledger", "parquet_files", "store"},
    "device_decode": {"errors", "images"},
    "dtbox": {"frame"},
    "errors": set(),
    "examples": {"classes", "errors", "parquet_files", "records", "sources", "store", "tables"},
    "excite": {"batches", "errors", "fetch", "localizer", "units"},
    "exports": {"boxes", "classes", "dataset", "errors", "fetch", "frame", "ledger"},
    "fetch": {"errors", "locations", "parquet_files", "store"},
    "following": {"dataset", "lease", "ledger", "store"},
    "frame": set(),
    "gap": {"cam", "errors"},
    "images": {"errors", "frame"},
    "item_tables": {"classes", "errors", "known_labels", "plan", "records", "scratch"},
    "judging": {"boxes", "frame", "truth"},
    "kernels": set(),
    "known_labels": {"classes", "tables"},
    "lease": {"errors", "store"},
    "ledger": {"errors", "store"},
    "ledger_check": {"committed", "ledger"},
    "local_files": {"errors"},
    "localizer": {
        *("boxes", "cam", "device_decode", "errors", "frame", "images", "networks", "pixels", "predictions"),
        *("records", "weights"),
    },
    "locations": {"errors"},
    "map_metrics": {"boxes", "frame", "judging", "masks", "maxboxacc", "sweep", "truth"},
    "masks": {"errors"},
    "maxboxacc": set(),
    "memory": {"errors", "localizer"},
    "metrics": {"bootstrap", "judging", "map_metrics", "sweep", "truth"},
    "networks": {"errors", "gap", "paper_networks", "zoo"},
    "paper_figures": {"summary"},
    "paper_networks": {"gap"},
    "parquet_files": set(),
    "pending": {"committed", "dataset", "errors", "ledger", "records", "scratch"},
    "pixels": {"compiling", "gap"},
    "plan": {"errors", "ledger", "parquet_files", "records"},
    "predictions": {"errors"},
    "probe": {"errors", "store"},
    "receptive": {"gap"},
    "records": {"predictions"},
    "regions": {"kernels"},
    "report": {"frame"},
    "s3": {"errors", "locations", "s3_boto3", "s3_file", "s3_listing", "s3_obstore"},
    "s3_boto3": set(),
    "s3_file": set(),
    "s3_listing": {"s3_boto3"},
    "s3_obstore": {"s3_boto3"},
    "scratch": {"errors", "records"},
    "shard": {
        *("batches", "errors", "fetch", "ledger", "localizer", "memory", "plan", "predictions", "records"),
        "parquet_files",
        "stages",
    },
    "sources": {
        *("classes", "errors", "item_tables", "known_labels", "locations", "records", "scratch", "store"),
        "table_items",
    },
    "stages": set(),
    "states": {"errors", "gap", "networks", "paper_networks", "store"},
    "store": {"errors", "local_files", "locations", "s3"},
    "summary": {"bootstrap", "errors", "judging", "metrics", "sweep", "truth"},
    "summary_charts": {"charts", "summary"},
    "summary_page": {"bootstrap", "paper_figures", "report", "summary", "summary_charts"},
    "summary_tables": {"metrics", "summary"},
    "sweep": {"boxes", "components", "frame", "kernels", "maxboxacc"},
    "table_items": {
        *("classes", "errors", "fetch", "known_labels", "locations", "records", "store", "tables"),
    },
    "tables": {"errors", "locations", "parquet_files", "store"},
    "threads": set(),
    "tracing": {"errors", "gap"},
    "training": {"boxes", "cam", "frame", "gap", "training_data"},
    "training_data": {"errors", "fetch", "frame", "images", "records"},
    "truth": {"annotations", "classes", "errors"},
    "units": {"frame"},
    "units_page": {"report"},
    "units_table": {"units"},
    "verify": {"committed", "errors", "ledger", "ledger_check", "parquet_files", "plan", "store"},
    "weights": {"classes", "errors", "gap", "networks", "states", "store"},
    "zoo": {"errors", "gap", "tracing"},
}

TORCH = {"torch", "torchvision", "timm", "safetensors"}
TORCH_MODULES = {
    *("cam", "careful", "compiling", "compiling_cpu", "compiling_cuda", "device_decode", "excite", "gap"),
    *("images", "localizer", "memory"),
    *("networks", "paper_networks", "pixels", "receptive", "states", "tracing", "training"),
    *("training_data", "weights", "zoo"),
}
NO_PYARROW = {
    *("bootstrap", "components", "kernels", "sweep"),
    *("boxes", "cam", "dtbox", "errors", "frame", "images", "localizer", "masks", "maxboxacc", "networks"),
    *("predictions", "receptive", "regions", "stages", "units"),
    *("charts", "report"),
    *("local_files", "locations", "probe", "s3", "s3_boto3", "s3_file", "s3_listing", "s3_obstore", "store"),
}


def modules_of(package):
    """Name -> its files: a module has one, a folder of modules several, which may import each other."""
    folder = Path(package.__file__).parent
    modules = {path.stem: [path] for path in sorted(folder.glob("*.py"))}
    folders = {path.parent for path in folder.glob("*/__init__.py")}
    return modules | {path.name: sorted(path.glob("*.py")) for path in sorted(folders)}


def imported(paths, package):
    """Dotted names that files import, wherever in them: functions and TYPE_CHECKING blocks too."""
    names = set()
    for node in chain.from_iterable(ast.walk(ast.parse(path.read_text())) for path in paths):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = f"{package}.{base}".rstrip(".")
            # "from camworker import weights" imports camworker.weights.
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def top_level(paths, package):
    return {name.partition(".")[0] for name in imported(paths, package)}


def internal(paths, package, known):
    """The modules of package that files import."""
    parts = (name.split(".") for name in imported(paths, package))
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
    assert top_level([source], "p") == {"a", "c", "p"}
    assert internal([source], "p", {"m", "n", "o"}) == {"m", "n", "o"}


@each_module
def test_camworker_imports_neither_jobs_nor_ray(name):
    assert not top_level(CAMWORKER[name], "camworker") & {"jobs", "ray"}


@each_module
def test_camworker_modules_import_only_what_they_may(name):
    assert name in ALLOWED, f"say in ALLOWED what camworker/{name}.py may import"
    extra = internal(CAMWORKER[name], "camworker", CAMWORKER) - ALLOWED[name] - {name}
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
    "module",
    ["camworker", "camworker.boxes", "camworker.dataset", "camworker.frame", "camworker.errors"],
)
def test_importing_loads_no_torch(module):
    # A fresh process: here the tests themselves have loaded torch.
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & {*TORCH, "ray", "jobs"}


def test_the_localizer_is_loaded_when_asked_for():
    assert camworker.Localizer.__module__ == "camworker.inference.localizer"
    with pytest.raises(AttributeError, match="Localiser"):
        camworker.Localiser  # noqa: B018
