"""What `load_google_simclr` makes of a checkpoint, and how far its features lie from those of the authors' network.

    python benchmarks/google_checkpoint.py FOLDER/model.ckpt-1 --golden FOLDER/golden.npz --variables FOLDER/*.tsv

The golden file holds `x`, images (n, h, w, c) in [0, 1], and what the authors' network computes from them in inference:
`h`, features, and `z`, projections. A list of variables has a name, a tab and a shape such as 7x7x3x64 on each line.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from cl_models import GoogleSimCLR, load_google_simclr
from cl_models._google import map_variables
from measure import setting
from torch import Tensor

TOLERANCE = 1e-4  # of the largest value


def described(found: GoogleSimCLR) -> str:
    encoder, projector, classifier = found
    config = encoder.config
    parts = [
        f"ResNet-{config['depth']}, width {config['width']:g}, {config['stem']} stem, {config['in_channels']} channels",
        "selective kernels" if config["selective_kernel"] else "no selective kernels",
        f"head {' -> '.join(map(str, projector.dims))}" if projector else "no head",
        f"{classifier.out_features} classes" if classifier else "no classifier",
    ]
    parameters = sum(p.numel() for module in found if module is not None for p in module.parameters())
    return f"{'; '.join(parts)}; {parameters:,} parameters"


def relative(found: Tensor, expected: np.ndarray) -> float:
    """Largest difference over largest value."""
    reference = torch.from_numpy(expected).double()
    return float((found.double() - reference).abs().max() / reference.abs().max())


def compare(found: GoogleSimCLR, golden: Path) -> bool:
    """Print the errors; whether all are small."""
    data = np.load(golden)
    with torch.no_grad():
        h = found.encoder(torch.from_numpy(data["x"]).permute(0, 3, 1, 2))
        errors = {"h": relative(h, data["h"])}
        if found.projector is not None and "z" in data:
            errors["z"] = relative(found.projector(h), data["z"])
    for name, error in errors.items():
        print(f"{name} {data[name].shape}: largest difference / largest value = {error:.2e}")
    return max(errors.values()) <= TOLERANCE


def map_list(path: Path) -> str:
    """Say what the variables of a list make; raises where one has no place."""
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    shapes = {name: tuple(int(size) for size in shape.split("x")) for name, shape in rows}
    modules, names = map_variables(shapes)
    assert sum(map(len, names)) == len(shapes)
    return f"{path.name}: {len(shapes)} variables, none left over: {described(modules)}"


def main() -> None:
    """Print what was found; exit with 1 where it is not what the authors' network computes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", type=Path)
    parser.add_argument("--golden", type=Path)
    parser.add_argument("--variables", type=Path, nargs="+", default=[])
    arguments = parser.parse_args()
    begin = time.perf_counter()
    found = load_google_simclr(arguments.prefix)
    seconds = time.perf_counter() - begin
    print(f"{arguments.prefix.name}: {described(found)}; read in {seconds:.2f} s")
    equal = compare(found, arguments.golden) if arguments.golden else True
    for path in arguments.variables:
        print(map_list(path))
    print(setting("torch", "cl-models"))
    if not equal:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
