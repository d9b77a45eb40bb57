"""Batched random views for contrastive learning: every random number per sample, every draw a function of a key."""

from cl_augment._blur import GaussianBlur as GaussianBlur
from cl_augment._crop import RandomResizedCropFlip as RandomResizedCropFlip
from cl_augment._eval import EvalTransform as EvalTransform
from cl_augment._foreign import KorniaStage as KorniaStage
from cl_augment._grey import RandomGrayscale as RandomGrayscale
from cl_augment._jitter import ColorJitter as ColorJitter
from cl_augment._keys import fold_in as fold_in
from cl_augment._keys import sample_keys as sample_keys
from cl_augment._keys import uniform as uniform
from cl_augment._presets import BYOLAugment as BYOLAugment
from cl_augment._presets import LinearEvalAugment as LinearEvalAugment
from cl_augment._presets import SimCLRAugment as SimCLRAugment
from cl_augment._preview import preview as preview
from cl_augment._sobel import Sobel as Sobel
from cl_augment._solarize import Solarize as Solarize
from cl_augment._stroke import RandomStroke as RandomStroke
from cl_augment._views import TwoViewAugment as TwoViewAugment
from cl_augment._views import TwoViews as TwoViews
from cl_augment._warp import RandomWarp as RandomWarp

__version__ = "0.2.1"
