"""The layers of the design, and who may import what."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = [
    {"errors", "moved", "stopping"},
    {"ending", "json_text", "locks", "mounts", "outputs"},
    {"config", "device", "npz", "schedule", "storage", "weights"},
    {"data", "privacy"},
    {"features"},
    {"flow", "classifier"},
    {"release"},
    {"evaluation"},
    {"report"},
    {"site"},
    {"federated"},
    {"study", "standalone", "bench"},
    {"deployment"},
    {"doctor"},
    {"cli"},
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
FLOWER_FILES = {"federated/flower_client.py", "federated/flower_server.py", "federated/flower_site.py"}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            yield node.module or ""


def _modules() -> list[Path]:
    return sorted((ROOT / "cadp_fl").rglob("*.py"))


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    inside = path.relative_to(ROOT / "cadp_fl")
    package = inside.parts[0].removesuffix(".py")
    if package == "__init__":
        return
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] in ("clients", "server"):
            pytest.fail(f"{inside} imports the app: {name}")
        if parts[0] == "cadp_fl" and len(parts) > 1 and parts[1] != package:
            assert LEVEL_OF[parts[1]] < LEVEL_OF[package], f"{inside} imports {name}"
        if parts[0] == "flwr":
            assert inside.as_posix() in FLOWER_FILES, f"{inside} imports {name}"
            assert parts[1] in ("app", "clientapp", "serverapp"), f"{name} is not public"
        if parts[0] == "opacus":
            assert inside.as_posix() == "privacy/dpsgd.py", f"{inside} imports {name}"
        assert parts[0] not in ("pickle", "dill", "cloudpickle"), f"{inside} imports {name}"


@pytest.mark.parametrize("folder", ["clients", "server"])
def test_the_app_is_thin_and_its_sides_do_not_meet(folder):
    other = {"clients": "server", "server": "clients"}[folder]
    for path in (ROOT / folder).rglob("*.py"):
        assert len(path.read_text().splitlines()) < 60
        assert not any(name.split(".")[0] == other for name in _imports(path))


def test_the_client_side_imports_neither_torch_nor_data_code():
    code = (
        "import sys, clients.client_app; "
        "heavy = [name for name in sys.modules if name.split('.')[0] == 'torch' or name.startswith('cadp_fl.data')]; "
        "sys.exit(str(heavy[:3]) if heavy else 0)"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_every_module_lists_what_it_offers():
    for path in _modules():
        tree = ast.parse(path.read_text())
        names = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        public = {name for name in names if not name.startswith("_")}
        listed: set[str] = set()
        for node in tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                listed = set(ast.literal_eval(node.value))
        assert not listed - _names(tree), f"{path}: __all__ names what is not there"
        if path.name != "main.py":  # the command line offers its commands by decorators
            assert not public - listed, f"{path}: {public - listed} is public and not in __all__"


def _names(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
    return found
