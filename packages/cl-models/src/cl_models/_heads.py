"""The heads between features and loss: SimCLR's projection, BYOL's projector and predictor."""

from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """MLP from features to the space of the contrastive loss, as in the SimCLR authors' code.

    Every hidden layer is Linear without bias, BatchNorm, ReLU; the output layer is Linear without bias and BatchNorm
    with a scale but no shift. (The paper's text does not mention the BatchNorms; its code has them.) Weights start
    as Normal(0, 0.01).

    Args:
        in_dim: Width of the features, >= 1.
        hidden_dim: Width of the hidden layers, >= 1; the authors use `in_dim`. Unused below two layers.
        out_dim: Width of the output, >= 1; SimCLR: 128. Without layers it must be `in_dim`.
        layers: Number of linear layers, >= 0: 2 in SimCLR, 3 in SimCLR v2, 1 is the paper's linear head, 0 its
            missing one, which returns the features.

    Attributes:
        dims: Widths from the features to the output, `layers` + 1 of them: `dims[k]` is what `until=k` returns.

    Shape:
        features (n, in_dim) -> projections (n, out_dim), not normalised. In training n must be at least 2.

    Raises:
        ValueError: An argument is out of its range.

    Chen et al., arXiv:2002.05709, section 2.1 and Fig. 8; arXiv:2006.10029.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, *, layers: int = 2) -> None:
        super().__init__()
        _check_sizes(in_dim=in_dim, hidden_dim=hidden_dim, out_dim=out_dim)
        if layers < 0:
            raise ValueError(f"`layers` must be at least 0, got {layers}.")
        if layers == 0 and out_dim != in_dim:
            raise ValueError(f"`out_dim` must be `in_dim`, {in_dim}, where there are no layers, got {out_dim}.")
        self.dims = (in_dim, *[hidden_dim] * (layers - 1), *[out_dim] * min(layers, 1))
        stack: list[nn.Module] = []
        for wide, narrow in zip(self.dims[:-2], self.dims[1:-1], strict=True):
            stack += [nn.Linear(wide, narrow, bias=False), nn.BatchNorm1d(narrow), nn.ReLU(inplace=True)]
        if layers > 0:
            scale_only = nn.BatchNorm1d(out_dim)
            scale_only.register_parameter("bias", None)
            stack += [nn.Linear(self.dims[-2], out_dim, bias=False), scale_only]
        self.layers = nn.Sequential(*stack)
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)

    def forward(self, features: Tensor, *, until: int | None = None) -> Tensor:
        """Projections of features, or what a layer on the way to them gives.

        Args:
            features: (n, in_dim).
            until: 0 returns the features, k what the k-th layer gives, with its BatchNorm and (but for the last)
                ReLU; None goes to the end. SimCLR v2 fine-tunes from 1 (arXiv:2006.10029, section 2; the authors'
                `ft_proj_selector`).

        Returns:
            (n, dims[until]).

        Raises:
            ValueError: There is no such layer.
        """
        return self.layers(features) if until is None else self.first(until)(features)

    def first(self, until: int) -> nn.Sequential:
        """The layers that lead to what `until` returns: not copies, so they are trained with the head.

        Args:
            until: From 0 (none) to the number of layers.

        Raises:
            ValueError: There is no such layer.
        """
        depth = len(self.dims) - 1
        if not 0 <= until <= depth:
            raise ValueError(f"`until` must be from 0 to {depth}, the number of layers, got {until}.")
        return self.layers[: 3 * until]  # Linear, BatchNorm, ReLU; the last has no third


class BYOLHead(nn.Module):
    """BYOL's projector and, with `in_dim` = `out_dim`, its predictor: one hidden layer, as in the authors' code.

    Linear with bias, BatchNorm, ReLU, Linear without bias; no BatchNorm at the end. (The paper's pseudo-code gives the
    last layer a bias.) Weights start from a normal of standard deviation in_dim ** -0.5, cut at two of them, biases
    at zero: what Haiku does by itself.

    Args:
        in_dim: Width of the input, >= 1: the encoder's `feature_dim` for the projector.
        hidden_dim: Width of the hidden layer, >= 1.
        out_dim: Width of the output, >= 1.

    Shape:
        (n, in_dim) -> (n, out_dim), not normalised. In training n must be at least 2.

    Raises:
        ValueError: An argument is below 1.

    Grill et al., Bootstrap Your Own Latent, 2020, arXiv:2006.07733, section 3.3.
    """

    def __init__(self, in_dim: int, hidden_dim: int = 4096, out_dim: int = 256) -> None:
        super().__init__()
        _check_sizes(in_dim=in_dim, hidden_dim=hidden_dim, out_dim=out_dim)
        self.layers = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, out_dim, bias=False),
        )
        for module in self.layers:
            if isinstance(module, nn.Linear):
                std = module.in_features**-0.5
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(self.layers[0].bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Projections of features, or predictions of projections."""
        return self.layers(features)


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
