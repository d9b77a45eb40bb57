"""What other people's scripts rely on does not change unnoticed."""

import importlib
import inspect
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("public_names.txt")
PACKAGES = ["cl_augment", "cl_losses", "cl_models", "cl_train"]


def public_names(package: str) -> list[str]:
    module = importlib.import_module(package)
    names = (name for name, value in vars(module).items() if not name.startswith("_") and not inspect.ismodule(value))
    return sorted(f"{package}.{name}" for name in names)


def test_public_names_are_those_of_the_list():
    found = [name for package in PACKAGES for name in public_names(package)]
    assert found == LIST.read_text().split(), "a public name came or went: change public_names.txt and the CHANGELOG"


@pytest.mark.parametrize("name", LIST.read_text().split())
def test_a_public_name_says_what_it_is(name):
    package, attribute = name.split(".")
    value = getattr(importlib.import_module(package), attribute)
    own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert own, f"{name} has no docstring of its own"
    if inspect.isfunction(value) and inspect.signature(value).parameters:
        assert "Args:" in own, f"the docstring of {name} does not describe its arguments"


@pytest.mark.parametrize("package", PACKAGES)
def test_hyperparameters_of_functions_are_keyword_only(package):
    """What has a default and follows the tensors is given by name, with few exceptions."""
    by_position = {
        "scaled_lr": {"rule"},
        "run_script": set(),
        "make_accelerator": {"mixed_precision"},
        "count_positives": {"domains"},
    }
    for name in public_names(package):
        value = getattr(importlib.import_module(package), name.split(".")[1])
        if inspect.isfunction(value):
            defaults = {
                p.name
                for p in inspect.signature(value).parameters.values()
                if p.default is not p.empty and p.kind is not p.KEYWORD_ONLY
            }
            assert defaults <= by_position.get(value.__name__, set()), name
