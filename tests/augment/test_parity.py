"""The table of parity in docs/augment.md: how far each stage is from its oracle, with the same drawn numbers."""

from pathlib import Path

import pytest
from test_blur import largest_difference as of_blur
from test_eval import largest_difference_of_eval
from test_grey import largest_difference as of_grey
from test_jitter import largest_differences as of_jitter
from test_resample import largest_difference_of_crop
from test_sobel import largest_difference as of_sobel
from test_solarize import largest_difference as of_solarize

PAGE = Path(__file__).parents[2] / "docs" / "augment.md"
HEAD = "| stage, float32 | oracle | bound | largest difference |"


def measured() -> list[tuple[str, str, float, float]]:
    """Stage, oracle, bound, largest difference."""
    jitter, crop = of_jitter(), largest_difference_of_crop()
    rows = [(name, "torchvision `resized_crop`, `hflip`", 2e-5, value) for name, value in crop.items()]
    rows += [("evaluation crop", "torchvision `resized_crop`", 2e-5, *largest_difference_of_eval().values())]
    rows += [(name, f"torchvision `adjust_{name}`", 2e-6, jitter[name]) for name in list(jitter)[:4]]
    rows += [("jitter in any of 24 orders", "torchvision `adjust_...`, chained", 2e-6, list(jitter.values())[4])]
    return [
        *rows,
        ("grey", "torchvision `rgb_to_grayscale`", 2e-6, of_grey()),
        ("blur", "torchvision `gaussian_blur`", 2e-6, of_blur()),
        ("solarize", "torchvision `solarize`", 2e-6, of_solarize()),
        ("Sobel", "Kornia `filters.sobel`", 2e-6, of_sobel()),
    ]


@pytest.fixture(scope="module")
def table() -> list[tuple[str, str, float, float]]:
    return measured()


def test_every_stage_is_its_oracle_within_its_bound(table):
    for stage, _, bound, difference in table:
        assert difference <= bound, stage


def test_the_page_shows_this_table(table):
    """To a factor of 2 and 2e-7: another processor rounds otherwise."""
    text = PAGE.read_text()
    assert HEAD in text
    lines = text[text.index(HEAD) :].split("\n\n")[0].splitlines()[2:]
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [(stage, oracle, float(bound)) for stage, oracle, bound, _ in shown] == [row[:3] for row in table]
    for (stage, *_, written), (*_, difference) in zip(shown, table, strict=True):
        assert float(written) == pytest.approx(difference, rel=1, abs=2e-7), stage


if __name__ == "__main__":  # to print what the page shows
    print(HEAD, "|---|---|---:|---:|", sep="\n")
    for stage, oracle, bound, difference in measured():
        print(f"| {stage} | {oracle} | {bound:.0e} | {difference:.1e} |".replace("e-0", "e-"))
