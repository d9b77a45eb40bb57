"""The projection head of SimCLR."""

from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """MLP from features to the space of the contrastive loss, as in the authors' code.

    Every hidden layer is Linear without bias, BatchNorm, ReLU; the output layer is Linear without bias and BatchNorm
    with a scale but no shift. (The paper's text does not mention the BatchNorms; its code has them.) Weights start
    as Normal(0, 0.01).

    Args:
        in_dim: Width of the features, >= 1.
        hidden_dim: Width of the hidden layers, >= 1; the authors use `in_dim`. Unused with one layer.
        out_dim: Width of the output, >= 1; SimCLR: 128.
        layers: Number of linear layers, >= 1: 2 in SimCLR, 3 in SimCLR v2, 1 is the paper's linear head.

    Shape:
        features (n, in_dim) -> projections (n, out_dim), not normalised. In training n must be at least 2.

    Raises:
        ValueError: An argument is below 1.

    Chen et al., arXiv:2002.05709, section 2.1 and Fig. 8; arXiv:2006.10029.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, *, layers: int = 2) -> None:
        super().__init__()
        sizes = {"in_dim": in_dim, "hidden_dim": hidden_dim, "out_dim": out_dim, "layers": layers}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        stack: list[nn.Module] = []
        for _ in range(layers - 1):
            stack += [nn.Linear(in_dim, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True)]
            in_dim = hidden_dim
        scale_only = nn.BatchNorm1d(out_dim)
        scale_only.register_parameter("bias", None)
        self.layers = nn.Sequential(*stack, nn.Linear(in_dim, out_dim, bias=False), scale_only)
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """Projections of features."""
        return self.layers(features)
