"""The code that README and pages show runs as it stands."""

import warnings
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md")), *sorted(ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_of_a_document_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    for example in Sybil(parsers=[PythonCodeBlockParser()]).parse(path).examples():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            example.evaluate()


@pytest.mark.parametrize("package", ["cl-augment", "cl-losses", "cl-models", "cl-train"])
def test_a_package_readme_shows_code_that_runs(package):
    text = (ROOT / "packages" / package / "README.md").read_text()
    assert "```python" in text
    assert f"pip install {package}" in text


def test_documents_name_no_path_of_a_machine():
    for path in [*DOCUMENTS, *ROOT.glob("packages/*/CHANGELOG.md"), ROOT / "mkdocs.yml", *ROOT.glob("examples/*.*")]:
        text = path.read_text()
        for word in (f"{ROOT.parent}/", f"{Path.home()}/", "localhost"):
            assert word not in text, f"{path} names {word}"
