"""The six depths by name."""

from cl_models._resnet import ResNet, Stem, Variant


def resnet50(
    *,
    width: float = 1.0,
    stem: Stem = "imagenet",
    variant: Variant = "torchvision",
    selective_kernel: bool = False,
    in_channels: int = 3,
) -> ResNet:
    """ResNet-50 encoder: torchvision's `resnet50` without `fc`, same parameter names and initialisation.

    Args:
        width: Multiplies the channels of every layer, > 0. The papers use 1 to 4; 0.25 makes a laptop's network.
        stem: "imagenet": 7 x 7 convolution of stride 2 and max-pool. "cifar": 3 x 3 convolution of stride 1, no pool,
            for images of about 32 px (arXiv:2002.05709, App. B.9).
        variant: "torchvision": as everybody's weights have it. "google": the SimCLR authors' code, which differs in
            four things: a projection in the shortcut of every group (ResNet-18 and 34 get one more), residual branches
            that start at zero (the last BatchNorm's scale), convolutions that start from a truncated normal of
            variance 1 / fan_in, and a max-pool that lies one pixel further.
        selective_kernel: SimCLR v2's network: selective kernels (`sk_ratio` 0.0625) in place of the 3 x 3
            convolutions, three small convolutions as ImageNet stem, and shortcuts that average before they project.
        in_channels: Channels of the images, >= 1.

    Returns:
        Encoder with `feature_dim` 2048 times `width`: images (n, in_channels, h, w) -> (n, feature_dim). Parameters at
        width 1: 23,508,032; with selective kernels 34.7 M.

    Raises:
        ValueError: An argument is out of its range.

    He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385; Chen et al., arXiv:2002.05709 and
    arXiv:2006.10029.
    """
    return ResNet(
        50, width=width, stem=stem, variant=variant, selective_kernel=selective_kernel, in_channels=in_channels
    )


def resnet18(
    *,
    width: float = 1.0,
    stem: Stem = "imagenet",
    variant: Variant = "torchvision",
    selective_kernel: bool = False,
    in_channels: int = 3,
) -> ResNet:
    """ResNet-18 encoder, `feature_dim` 512 times `width`, 11,176,512 parameters; arguments as in `resnet50`.

    The SimCLR authors' (`variant="google"`) has 4,224 more. Selective kernels need the block of ResNet-50 and above:
    here they change the stem and the shortcuts only, as in the authors' code.

    Args:
        width: Multiplies the channels of every layer, > 0.
        stem: "imagenet" or "cifar".
        variant: "torchvision" or "google".
        selective_kernel: SimCLR v2's stem and shortcuts.
        in_channels: Channels of the images, >= 1.

    Returns:
        Encoder: images (n, in_channels, h, w) -> (n, feature_dim).
    """
    return ResNet(
        18, width=width, stem=stem, variant=variant, selective_kernel=selective_kernel, in_channels=in_channels
    )


def resnet34(
    *,
    width: float = 1.0,
    stem: Stem = "imagenet",
    variant: Variant = "torchvision",
    selective_kernel: bool = False,
    in_channels: int = 3,
) -> ResNet:
    """ResNet-34 encoder, `feature_dim` 512 times `width`, 21.3 M parameters; arguments as in `resnet50`.

    Selective kernels change the stem and the shortcuts only, as in `resnet18`.

    Args:
        width: Multiplies the channels of every layer, > 0.
        stem: "imagenet" or "cifar".
        variant: "torchvision" or "google".
        selective_kernel: SimCLR v2's stem and shortcuts.
        in_channels: Channels of the images, >= 1.

    Returns:
        Encoder: images (n, in_channels, h, w) -> (n, feature_dim).
    """
    return ResNet(
        34, width=width, stem=stem, variant=variant, selective_kernel=selective_kernel, in_channels=in_channels
    )


def resnet101(
    *,
    width: float = 1.0,
    stem: Stem = "imagenet",
    variant: Variant = "torchvision",
    selective_kernel: bool = False,
    in_channels: int = 3,
) -> ResNet:
    """ResNet-101 encoder, `feature_dim` 2048 times `width`, 42.5 M parameters; arguments as in `resnet50`.

    Args:
        width: Multiplies the channels of every layer, > 0.
        stem: "imagenet" or "cifar".
        variant: "torchvision" or "google".
        selective_kernel: SimCLR v2's network.
        in_channels: Channels of the images, >= 1.

    Returns:
        Encoder: images (n, in_channels, h, w) -> (n, feature_dim).
    """
    return ResNet(
        101, width=width, stem=stem, variant=variant, selective_kernel=selective_kernel, in_channels=in_channels
    )


def resnet152(
    *,
    width: float = 1.0,
    stem: Stem = "imagenet",
    variant: Variant = "torchvision",
    selective_kernel: bool = False,
    in_channels: int = 3,
) -> ResNet:
    """ResNet-152 encoder, `feature_dim` 2048 times `width`, 58.1 M parameters; arguments as in `resnet50`.

    Args:
        width: Multiplies the channels of every layer, > 0.
        stem: "imagenet" or "cifar".
        variant: "torchvision" or "google".
        selective_kernel: SimCLR v2's network.
        in_channels: Channels of the images, >= 1.

    Returns:
        Encoder: images (n, in_channels, h, w) -> (n, feature_dim).
    """
    return ResNet(
        152, width=width, stem=stem, variant=variant, selective_kernel=selective_kernel, in_channels=in_channels
    )


def resnet200(
    *,
    width: float = 1.0,
    stem: Stem = "imagenet",
    variant: Variant = "torchvision",
    selective_kernel: bool = False,
    in_channels: int = 3,
) -> ResNet:
    """ResNet-200 encoder, `feature_dim` 2048 times `width`, 62.6 M parameters; arguments as in `resnet50`.

    BYOL's largest; torchvision has none.

    Args:
        width: Multiplies the channels of every layer, > 0.
        stem: "imagenet" or "cifar".
        variant: "torchvision" or "google".
        selective_kernel: SimCLR v2's network.
        in_channels: Channels of the images, >= 1.

    Returns:
        Encoder: images (n, in_channels, h, w) -> (n, feature_dim).
    """
    return ResNet(
        200, width=width, stem=stem, variant=variant, selective_kernel=selective_kernel, in_channels=in_channels
    )
