"""Who may import whom, read from the source."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {path.name: path for path in (ROOT / "packages").iterdir()}
LEAVES = {"cl-augment", "cl-losses", "cl-models"}
# Distributions whose import name is another.
IMPORT_NAMES = {"pillow": "PIL", "scikit-learn": "sklearn"}


def module_name(distribution: str) -> str:
    name = distribution.split(">")[0].split("<")[0].split("=")[0].split("[")[0].strip()
    return IMPORT_NAMES.get(name, name).replace("-", "_")


def may_be_missing(node: ast.AST) -> bool:
    """Whether it is a `try` for an import, with an answer to ImportError alone, or an import for annotations."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, ast.Try) and [ast.unparse(h.type) for h in node.handlers if h.type] == ["ImportError"]


def imports(file: Path) -> set[tuple[str, bool]]:
    """Top-level modules a file imports, each with whether it may be missing: in a function, or tried."""
    tree = ast.parse(file.read_text())
    inner = {
        id(node)
        for part in ast.walk(tree)
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) or may_be_missing(part)
        for node in ast.walk(part)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name.split(".")[0], id(node) in inner) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found.add((str(node.module).split(".")[0], id(node) in inner))
    return found


def sources(package: str) -> list[Path]:
    files = sorted((PACKAGES[package] / "src").rglob("*.py"))
    assert files
    return files


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_package_imports_what_it_declares_and_nothing_else(package):
    project = tomllib.loads((PACKAGES[package] / "pyproject.toml").read_text())["project"]
    required = {module_name(d) for d in project["dependencies"]}
    extras = {module_name(d) for group in project.get("optional-dependencies", {}).values() for d in group}
    own = package.replace("-", "_")
    for file in sources(package):
        for name, may_miss in imports(file):
            if name in sys.stdlib_module_names or name == own:
                continue
            allowed = required | extras if may_miss else required
            assert name in allowed, f"{file.relative_to(ROOT)} imports {name}, which {package} does not declare"


@pytest.mark.parametrize("package", sorted(LEAVES))
def test_a_leaf_imports_no_sibling(package):
    siblings = {name.replace("-", "_") for name in PACKAGES if name != package}
    for file in sources(package):
        assert not siblings & {name for name, _ in imports(file)}, file


def test_in_cl_train_only_methods_and_what_they_are_made_of_import_the_leaves():
    leaves = {name.replace("-", "_") for name in LEAVES}
    importers = {file.name for file in sources("cl-train") if leaves & {name for name, _ in imports(file)}}
    methods = {"_two_views.py", "_simclr.py", "_byol.py", "_cross_domain.py", "_supervised.py", "_distilled.py"}
    assert importers == methods | {"_classifier.py", "_contrast_figures.py", "_norms.py"}


def test_cl_losses_needs_torch_only():
    project = tomllib.loads((PACKAGES["cl-losses"] / "pyproject.toml").read_text())["project"]
    assert [module_name(d) for d in project["dependencies"]] == ["torch"]


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_nothing_happens_at_import(package):
    """Only definitions, imports and constants stand at the top level of a module, and the call of a command."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for file in sources(package):
        body = ast.parse(file.read_text()).body
        tried = [node for part in body if may_be_missing(part) for node in (*part.body, *part.orelse)]
        handlers = [handler for part in body if may_be_missing(part) for handler in getattr(part, "handlers", [])]
        tried += [node for handler in handlers for node in handler.body]
        for node in [*(part for part in body if not may_be_missing(part)), *tried]:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            command = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
            assert docstring or command or isinstance(node, allowed), f"{file}:{node.lineno}"
