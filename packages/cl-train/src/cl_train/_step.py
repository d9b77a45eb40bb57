"""The step of the optimiser, for any method."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from cl_train._loader import Batch
from cl_train._method import Method


def train_step(
    method: Method, model: nn.Module, optimizer: Optimizer, batch: Batch, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Views, one forward of all of them, loss, step.

    Args:
        method: Makes the views and the loss.
        model: `method` as Accelerate prepared it: its forward runs in the run's precision, and its backward averages
            gradients over processes.
        optimizer: Likewise prepared.
        batch: This process's share.
        accelerator: Scales the loss under fp16.

    Returns:
        The method's metrics, on the device.
    """
    with torch.no_grad():
        views = method.views(batch.images, batch.keys).contiguous(memory_format=torch.channels_last)
    loss, metrics = method.loss(model(views), batch.labels)
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return metrics
