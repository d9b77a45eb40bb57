"""What is published: wheels that are complete and stand alone."""

import filecmp
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.name for path in (ROOT / "packages").iterdir())


def run(*command: str | Path, cwd: Path = ROOT, timeout: float = 240) -> str:
    done = subprocess.run(
        command, cwd=cwd, timeout=timeout, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    for package in PACKAGES:
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT / "packages" / package)
    return {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_holds_types_licence_and_sources(wheels, package):
    module = package.replace("-", "_")
    names = zipfile.ZipFile(wheels[package]).namelist()
    assert f"{module}/py.typed" in names
    assert f"{module}/__init__.py" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert all(name.startswith(module) for name in names)


@pytest.mark.parametrize("package", PACKAGES)
def test_licence_copies_are_byte_equal(package):
    assert filecmp.cmp(ROOT / "LICENSE", ROOT / "packages" / package / "LICENSE", shallow=False)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_changelog_names_the_version(wheels, package):
    version = wheels[package].name.split("-")[1]
    assert f"## {version}" in (ROOT / "packages" / package / "CHANGELOG.md").read_text()


def test_the_cl_losses_wheel_alone_passes_its_tests(wheels, tmp_path):
    environment, python = tmp_path / "env", tmp_path / "env" / "bin" / "python"
    run(sys.executable, "-m", "uv", "venv", "--python", sys.executable, environment)
    install = (sys.executable, "-m", "uv", "pip", "install", "--python", python)
    run(*install, "torch")
    bare = set(run(sys.executable, "-m", "uv", "pip", "freeze", "--python", python).splitlines())
    run(*install, wheels["cl-losses"])
    added = set(run(sys.executable, "-m", "uv", "pip", "freeze", "--python", python).splitlines()) - bare
    assert [line.split(" ")[0].split("=")[0] for line in added] == ["cl-losses"]
    run(*install, "pytest", "pytest-timeout")
    # -P: the checkout must not be importable, only the wheel
    tests = ROOT / "tests" / "losses"
    output = run(python, "-P", "-m", "pytest", "-q", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, tests)
    assert " passed" in output


def test_the_cl_train_wheel_brings_the_other_three(wheels, tmp_path):
    environment, python = tmp_path / "env", tmp_path / "env" / "bin" / "python"
    run(sys.executable, "-m", "uv", "venv", "--python", sys.executable, environment)
    install = (sys.executable, "-m", "uv", "pip", "install", "--python", python, "--dry-run")
    planned = run(*install, "--find-links", wheels["cl-train"].parent, "cl-train")
    for package in PACKAGES:
        assert f" + {package}==" in planned
    assert " + matplotlib==" not in planned
    assert " + torchvision==" not in planned
