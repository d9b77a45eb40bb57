"""Memory and time of large batches: a step of `pretrain` by batch, at one chunk size.

    hatch run bench:large-batch                    # a small encoder, batches from 512 to 8192
    hatch run bench:large-batch --resnet50         # two steps of ResNet-50 with CIFAR stem at 8192, 32 px, bf16

Memory is the highest total of torch's CPU allocator in a step, less what was there before it; of --resnet50 that of the
whole process. "ratio" is time over that of the same batch without chunks, where that is small enough to be tried.
"""

import argparse
import resource
import tempfile
import time
from functools import partial
from typing import Any

import torch
from cl_augment import SimCLRAugment
from cl_losses import NTXentLoss
from cl_models import ProjectionHead, resnet18, resnet50
from cl_train import ArrayDataset, SimCLR, make_accelerator, pretrain
from cl_train._batch import Batch
from cl_train._step import Gradient
from measure import peak_bytes, setting

SIZE = 32


def simclr(make: Any, **settings: Any) -> SimCLR:
    """Encoder, head and loss, the same weights each time."""
    torch.manual_seed(0)
    encoder = make(stem="cifar", **settings)
    head = ProjectionHead(encoder.feature_dim, encoder.feature_dim, 128)
    return SimCLR(encoder, head, SimCLRAugment(SIZE, strength=0.5, blur=False), NTXentLoss(temperature=0.5))


def gradient(method: SimCLR, chunk_size: int, *, share: int) -> Gradient:
    """The step of `pretrain` but for the optimiser."""
    accelerator = make_accelerator("auto")
    method.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    model = accelerator.prepare(method)
    return Gradient(method, model, accelerator, method.views, share, chunk_size, 1, "local", seed=0)


def batch_of(method: SimCLR, n: int) -> Batch:
    """So many images of noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return Batch(images, method.keys(torch.arange(n), seed=0, epoch=0), None)


def seconds_of(step: Any, rounds: int) -> float:
    """Shortest of some rounds."""
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        step()
        found.append(time.perf_counter() - begin)
    return min(found)


def by_batch(batches: list[int], chunk_size: int, *, whole_up_to: int, rounds: int) -> None:
    """A row for each batch."""
    print(f"ResNet-18, a quarter of the channels, CIFAR stem, {SIZE} px; chunks of {chunk_size} images")
    print()
    print("| batch | peak MB, chunks | peak MB, whole | seconds, chunks | seconds, whole | ratio |")
    print("|---:|---:|---:|---:|---:|---:|")
    for n in batches:
        figures: dict[str, tuple[str, float | None]] = {}
        for name, size in (("chunks", chunk_size), ("whole", n)):
            if name == "whole" and n > whole_up_to:
                figures[name] = ("", None)
                continue
            method = simclr(resnet18, width=0.25)
            step = partial(gradient(method, size, share=n), batch_of(method, n), 0)
            figures[name] = (f"{peak_bytes(step) / 1e6:.0f}", seconds_of(step, rounds))
        (mb, seconds), (whole_mb, whole_seconds) = figures["chunks"], figures["whole"]
        assert seconds is not None
        ratio = "" if whole_seconds is None else f"{seconds / whole_seconds:.2f}"
        whole_text = "" if whole_seconds is None else f"{whole_seconds:.2f}"
        print(f"| {n} | {mb} | {whole_mb} | {seconds:.2f} | {whole_text} | {ratio} |", flush=True)


def resnet50_at_8192(batch: int, chunk_size: int, steps: int) -> None:
    """Whole steps through `pretrain`, optimiser included."""
    method = simclr(resnet50)
    images = torch.randint(256, (batch, 3, SIZE, SIZE), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as out:
        result = pretrain(
            method,
            ArrayDataset(images),
            epochs=steps,
            batch_size=batch,
            chunk_size=chunk_size,
            out=out,
            log_every=1,
        )
    for entry in result.history:
        print(
            f"step {entry['step']}: loss {entry['loss']:.4f}, {batch / entry['images_per_second']:.0f} s, "
            f"{entry['images_per_second']:.1f} images/s",
            flush=True,
        )
    print(f"memory of the process at its highest: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


def main() -> None:
    """Print the table, or take the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--chunk-size", type=int, default=128)
    parser.add_argument("--whole-up-to", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--resnet50", action="store_true")
    parser.add_argument("--batch", type=int, default=8192, help="of --resnet50")
    parser.add_argument("--steps", type=int, default=2, help="of --resnet50")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.resnet50:
        resnet50_at_8192(arguments.batch, arguments.chunk_size, arguments.steps)
    else:
        by_batch(arguments.batches, arguments.chunk_size, whole_up_to=arguments.whole_up_to, rounds=arguments.rounds)
    print()
    print(setting("torch", "accelerate", "cl-train", "cl-augment", "cl-losses", "cl-models"))


if __name__ == "__main__":
    main()
