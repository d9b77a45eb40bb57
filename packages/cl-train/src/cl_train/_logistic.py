"""Multinomial logistic regression, solved to convergence."""

import torch
from torch import Tensor
from torch.nn import functional


def fit_logistic(x: Tensor, y: Tensor, *, classes: int, C: float) -> tuple[Tensor, Tensor]:  # noqa: N803
    r"""Weights and bias of the softmax regression that minimise its penalised cross entropy.

    $$\tfrac12 \lVert W \rVert^2 + C \sum_i -\log \operatorname{softmax}(W x_i + b)_{y_i},$$

    the objective of scikit-learn's `LogisticRegression(C=C)`; the bias is not penalised. L-BFGS in float64.

    Args:
        x: Features, (n, d).
        y: Classes in 0 ... classes - 1, int64, (n,).
        classes: Number of classes; one that does not occur gets a low score.
        C: Inverse strength of the regularisation, > 0.

    Returns:
        W (classes, d) and b (classes,), float64.
    """
    x = x.double()
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=1000, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        # divided by C n: the same minimum, and gradients of order one whatever C and n
        loss = functional.cross_entropy(x @ weight.T + bias, y) + weight.square().sum() / (2 * C * len(x))
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)
    return weight.detach(), bias.detach()
