"""A random smooth change of shape, for images whose left and right must not be swapped: characters, scans, maps."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_augment._images import as_float, check_range, check_size
from cl_augment._keys import check_keys, uniform


class RandomWarp(nn.Module):
    """Crop, rotate, shear and bend each image at random and resize it to a square, in one bilinear sampling.

    Output pixel p in [-1, 1]^2 shows the input at A p + t + e(p): A rotates, shears and zooms; t moves the window;
    e is a displacement drawn on a coarse grid of 4 x 4 points and interpolated bicubically (elastic deformation as
    of Simard et al., Best Practices for Convolutional Neural Networks, 2003, on a grid instead of by smoothing).
    What lies outside the image is black.

    Args:
        size: Side of the output in pixels, >= 1.
        scale: Range of the side of the window as a share of the image's, > 0; above 1 it looks beyond the border.
            Both axes draw their own share, so the range also bounds the change of aspect.
        degrees: Greatest rotation to either side, in degrees, >= 0.
        shear: Greatest horizontal shear to either side, as a slope, >= 0.
        shift: Greatest move of the window beyond where it still lies within the image, as a share of half the
            side, >= 0.
        elastic: Greatest displacement of a grid point per axis, as a share of half the side, >= 0.

    Shape:
        images (n, c, h, w), uint8 or float in [0, 1], keys (n,) -> (n, c, size, size), float in [0, 1].

    Raises:
        TypeError: On call, `images` or `keys` of another dtype.
        ValueError: An argument is out of its range; on call, `images` outside [0, 1], or another number of `keys`.
    """

    _GRID = 4

    def __init__(
        self,
        size: int,
        *,
        scale: tuple[float, float] = (0.7, 1.1),
        degrees: float = 15.0,
        shear: float = 0.2,
        shift: float = 0.0,
        elastic: float = 0.0,
    ) -> None:
        super().__init__()
        check_size(size)
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"`scale` must be an increasing pair above 0, got {scale}.")
        for name, value in {"degrees": degrees, "shear": shear, "shift": shift, "elastic": elastic}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"`{name}` must be at least 0 and finite, got {value}.")
        self.size, self.scale, self.degrees, self.shear = size, scale, degrees, shear
        self.shift, self.elastic = shift, elastic

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Warp each image by its key."""
        images = as_float(images)
        check_range(images)
        check_keys(keys, len(images))
        n = len(images)
        if n == 0:  # which affine_grid refuses
            return images.new_empty(0, images.shape[1], self.size, self.size)
        u = 2 * uniform(keys, 6 + 2 * self._GRID**2) - 1
        zoom = self.scale[0] + (self.scale[1] - self.scale[0]) * (u[:, 0:2] + 1) / 2
        angle, slope = math.radians(self.degrees) * u[:, 2], self.shear * u[:, 3]
        move = u[:, 4:6] * ((1 - zoom).abs() + self.shift)
        cos, sin = torch.cos(angle), torch.sin(angle)
        rows = [
            torch.stack([zoom[:, 0] * cos, zoom[:, 0] * (slope * cos - sin), move[:, 0]], dim=1),
            torch.stack([zoom[:, 1] * sin, zoom[:, 1] * (slope * sin + cos), move[:, 1]], dim=1),
        ]
        shape = [n, 1, self.size, self.size]
        grid = functional.affine_grid(torch.stack(rows, dim=1), shape, align_corners=False)
        if self.elastic > 0:
            coarse = u[:, 6:].reshape(n, 2, self._GRID, self._GRID)
            bend = functional.interpolate(coarse, size=(self.size, self.size), mode="bicubic", align_corners=True)
            grid = grid + self.elastic * bend.permute(0, 2, 3, 1)
        return functional.grid_sample(images, grid.to(images.dtype), mode="bilinear", align_corners=False).clamp(0, 1)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return (
            f"{self.size}, scale={self.scale}, degrees={self.degrees}, shear={self.shear}, shift={self.shift}, "
            f"elastic={self.elastic}"
        )
