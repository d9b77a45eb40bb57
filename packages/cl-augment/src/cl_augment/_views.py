"""Stages in a row make a view; two views make what a contrastive method compares."""

from collections.abc import Sequence
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn

from cl_augment._chain import (
    Finish,
    Images,
    Make,
    check_batch,
    check_params,
    check_sizes,
    draw_chain,
    full_precision,
    make_views,
    padded,
    run,
    shape_and_sizes,
)
from cl_augment._foreign import KorniaStage, as_stage
from cl_augment._images import as_float
from cl_augment._keys import check_keys, fold_in, random_keys
from cl_augment._stage import Params, Stage


class Chains(nn.Module):
    """Some chains of stages on the same images: what `TwoViewAugment` and `LinearEvalAugment` share. Abstract."""

    def __init__(
        self,
        chains: Sequence[Sequence[nn.Module]],
        *,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        dtype: torch.dtype | None,
        memory_format: torch.memory_format,
    ) -> None:
        super().__init__()
        stages = {id(module): as_stage(module) for chain in chains for module in chain}
        self.chains = nn.ModuleList(nn.ModuleList(stages[id(module)] for module in chain) for chain in chains)
        self.finish_with = Finish(mean, std, dtype, memory_format).checked()
        self._compiled: dict[tuple[int, ...], Make] = {}
        self._options: dict[str, Any] | None = None

    def compile(self, **options: Any) -> None:
        """Compile what makes the views, in place, for chunks that fit the cache; draws and checks stay as they are.

        The quicker way on a CPU. On a GPU, `torch.compile(augment)` makes one graph of everything, draws included.
        Another size of the images is compiled anew, and so is another number of them up to a chunk, rounded up to a
        power of two; torch gives up at the ninth. Those of a list are cut first, without being compiled.

        Args:
            options: Of `torch.compile`; by default `fullgraph=True, dynamic=False`: kernels for any number of images
                are half as fast.
        """
        self._options, self._compiled = {"fullgraph": True, "dynamic": False, **options}, {}

    def _make(self, stages: Sequence[Stage], images: Tensor, params: Sequence[Params], finish: Finish) -> Tensor:
        if self._options is None:
            return make_views(stages, images, params, finish)
        place = tuple(map(id, stages))
        if place not in self._compiled:
            # Code of its own: the compiler counts by code how often it was compiled anew, and gives up at a limit.
            own = FunctionType(make_views.__code__.replace(), make_views.__globals__)
            self._compiled[place] = torch.compile(own, **self._options)
        n = len(images)
        images, params = padded(images, params)
        return self._compiled[place](stages, images, params, finish)[:n]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is compiled, which cannot be pickled; a copy compiles anew."""
        return {**super().__getstate__(), "_compiled": {}}

    def stages(self) -> list[list[Stage]]:
        """The stages of each view, as they are applied."""
        return [list(cast(nn.ModuleList, chain)) for chain in self.chains]  # type: ignore[arg-type]

    def fresh_keys(self, images: Images, generator: torch.Generator | None) -> Tensor:
        """Keys from the generator, on the images' device, or on the CPU where a stage draws there only."""
        device = images.device if isinstance(images, Tensor) else images[0].device
        if any(isinstance(stage, KorniaStage) for chain in self.stages() for stage in chain):
            device = torch.device("cpu")
        return random_keys(len(images), device=device, generator=generator)

    def draw(self, images: Images, keys: Tensor, *, sizes: Tensor | None = None) -> list[list[Params]]:
        """What is random in the views of these images, to be looked at, changed or replayed.

        Args:
            images: As in a call; only their number and sizes matter.
            keys: Keys, int64, shape (n,).
            sizes: As in a call.

        Returns:
            For each view and stage a dictionary of tensors with a row for each image; "batch_prob" says which images
            the stage applies to.
        """
        check_keys(keys, len(images))
        if sizes is not None:
            check_sizes(sizes, images)
        shape, sizes = shape_and_sizes(images, sizes)
        if sizes is not None:
            sizes = sizes.to(keys.device, non_blocking=True)
        return [
            draw_chain(stages, fold_in(keys, view), shape, sizes=sizes) for view, stages in enumerate(self.stages())
        ]

    def stacked(
        self,
        images: Images,
        keys: Tensor | None = None,
        *,
        sizes: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The views of a call below each other, first those of the first chain: (views n, c, size, size)."""
        check_batch(images)
        if keys is None:
            keys = self.fresh_keys(images, generator)
        return self._run(images, self.draw(images, keys, sizes=sizes))

    def restacked(self, images: Images, params: Sequence[Sequence[Params]]) -> Tensor:
        """The views that `params` describe, below each other."""
        check_batch(images)
        check_params(params, self.stages(), len(images))
        return self._run(images, params)

    def _run(self, images: Images, params: Sequence[Sequence[Params]]) -> Tensor:
        return run(self.stages(), [images] * len(self.chains), params, self.finish_with, self._make)


class TwoViewAugment(Chains):
    """Two random views of each image: what every preset is. Abstract; `TwoViews` takes stages of your own.

    The first stage of a view fixes the size (a crop, a warp), the others keep it. `cut` and `finish` run these two
    parts one by one, because images that are read from files must be cut one at a time, in the workers of a loader,
    before they can be stacked. Calling the module is one after the other.

    Stage s of view v draws from `fold_in(fold_in(keys, v), s)`, so a stage that is added or swapped leaves the draws
    of those before it.

    Args:
        view_a: Stages of the first view: ours, Kornia's augmentations (their parameters are then drawn from the keys,
            too), or modules called as `stage(images, keys)`.
        view_b: Stages of the second view.
        mean: Subtracted from each channel at the end; None for no normalisation, as the paper's network sees [0, 1].
        std: What each channel is then divided by.
        dtype: Of the views; None for that of the images, and float32 for uint8.
        memory_format: Of the views.

    Shape:
        images (n, c, h, w), uint8 or float in [0, 1], any device; keys (n,) from `sample_keys` -> two of
        (n, c, size, size), float in [0, 1] before `mean` and `std`. Without keys, fresh ones are drawn from `generator`
        or, without that too, from the device's global generator. Images of several sizes come as a list of (c, h, w),
        or as a padded batch whose `sizes`, int64 (n, 2), say how high and wide each is from its upper left corner.

    Raises:
        TypeError: On call, images or keys of another dtype.
        ValueError: An argument is out of its range; on call, images outside [0, 1] or below 2 px, or keys of another
            length than the images.
    """

    def __init__(
        self,
        view_a: Sequence[nn.Module],
        view_b: Sequence[nn.Module],
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__([view_a, view_b], mean=mean, std=std, dtype=dtype, memory_format=memory_format)

    def forward(
        self,
        images: Images,
        keys: Tensor | None = None,
        *,
        sizes: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Two views of each image, the halves of one tensor: `torch.save` of one writes both, unless it is cloned."""
        view_a, view_b = self.stacked(images, keys, sizes=sizes, generator=generator).chunk(2)
        return view_a, view_b

    def replay(self, images: Images, params: Sequence[Sequence[Params]]) -> tuple[Tensor, Tensor]:
        """The views that `params`, from `draw`, describe: those of the call with the same keys."""
        view_a, view_b = self.restacked(images, params).chunk(2)
        return view_a, view_b

    def cut(self, images: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The first stage of both views, for images that cannot be stacked before they are cut.

        Args:
            images: uint8 or float in [0, 1], shape (n, c, h, w), such as one image of a file, n = 1.
            keys: Keys, int64, shape (n,).

        Returns:
            Two of (n, c, size, size), float32, or float64 for float64.

        Raises:
            TypeError: `images` or `keys` have another dtype.
            ValueError: `images` or `keys` have another shape, or `images` leave [0, 1].
        """
        check_batch(images)
        check_keys(keys, len(images))
        cuts = []
        for view, (stage, *_) in enumerate(self.stages()):
            source = full_precision(images) if stage.reads_uint8 else as_float(full_precision(images))
            cuts.append(stage.replay(source, stage.draw(fold_in(fold_in(keys, view), 0), images.shape)))
        return cuts[0], cuts[1]

    def finish(self, cuts: tuple[Tensor, Tensor], keys: Tensor) -> tuple[Tensor, Tensor]:
        """The other stages of both views, on any device.

        Args:
            cuts: What `cut` returned, or rows of several of its results.
            keys: The keys of those rows, int64, shape (n,).

        Returns:
            Two views (n, c, size, size), in the dtype of the cuts unless `dtype` says otherwise.

        Raises:
            TypeError: `keys` have another dtype.
            ValueError: `keys` have another shape.
        """
        check_keys(keys, len(cuts[0]))
        chains = [stages[1:] for stages in self.stages()]
        params = [
            draw_chain(stages, fold_in(keys, view), cuts[view].shape, first=1) for view, stages in enumerate(chains)
        ]
        view_a, view_b = run(chains, cuts, params, self.finish_with, self._make).chunk(2)
        return view_a, view_b


class TwoViews(TwoViewAugment):
    """Two views by stages of your own, the same for both.

    Args:
        stages: At least one; the first sets the size. Stages of this package, augmentations of Kornia's, or modules
            called as `stage(images, keys)`.
        mean: As of every augmentation: subtracted from each channel at the end.
        std: What each channel is then divided by.
        dtype: Of the views; None for that of the images, and float32 for uint8.
        memory_format: Of the views.

    Shape:
        As of every augmentation: images (n, c, h, w), keys (n,) or None -> two of (n, c, size, size).

    Raises:
        ValueError: There are no stages.
    """

    def __init__(
        self,
        *stages: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        if not stages:
            raise ValueError("`stages` must hold at least one stage, got none.")
        super().__init__(stages, stages, mean=mean, std=std, dtype=dtype, memory_format=memory_format)
