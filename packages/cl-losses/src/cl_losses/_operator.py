"""A function with a gradient that torch runs directly, and that its compiler takes as a whole."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def operator(
    name: str,
    forward: Callable[..., tuple[Tensor, ...]],
    backward: Callable[..., Any],
    *,
    fake_forward: Callable[..., tuple[Tensor, ...]],
    fake_backward: Callable[..., Any],
    save: Callable[[Any, tuple[Any, ...], tuple[Tensor, ...]], None],
    gradients: Callable[[Any, Tensor, Callable[..., Any]], tuple[Tensor | None, ...]],
) -> Callable[..., Tensor]:
    """`forward`'s first result, differentiable once.

    To the compiler it is an operator: it sees neither the loops over tiles nor the exchange between processes, so
    there is nothing to break a graph at. Without the compiler that would only cost time, 80 microseconds a step.

    Args:
        name: Of the operator; its gradient's ends in "_backward".
        forward: Annotated arguments to the result and what backward needs.
        backward: What `gradients` calls, annotated as well.
        fake_forward: Shapes of what `forward` returns.
        fake_backward: Shapes of what `backward` returns.
        save: (ctx, arguments, what backward needs) -> keep it in ctx.
        gradients: (ctx, gradient of the result, `backward` or its operator) -> a gradient or None for each argument.
    """
    compiled = torch.library.custom_op(name, forward, mutates_args=())
    compiled_backward = torch.library.custom_op(f"{name}_backward", backward, mutates_args=())
    compiled.register_fake(fake_forward)
    compiled_backward.register_fake(fake_backward)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        save(ctx, inputs, output[1:])

    def differentiate(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        return gradients(ctx, grad, compiled_backward)  # type: ignore[arg-type]

    def refuse(ctx: Any, *_: Tensor) -> None:
        raise NotImplementedError("The losses of cl_losses can be differentiated once: `create_graph` must be False.")

    compiled.register_autograd(differentiate, setup_context=keep)
    compiled_backward.register_autograd(refuse)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor:
            result, *needed = forward(*inputs)
            save(ctx, inputs, tuple(needed))
            return result

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            # Grad mode is on where a graph of the gradient is asked for. torch's once_differentiable would hand out
            # constants if nothing but the rows requires a gradient, and a penalty on gradients would count for nothing.
            if torch.is_grad_enabled():
                refuse(ctx)
            return gradients(ctx, grad, backward)

    def call(*inputs: Any) -> Tensor:
        return compiled(*inputs)[0] if torch.compiler.is_compiling() else Direct.apply(*inputs)

    return call
