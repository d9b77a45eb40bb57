"""Encoders and heads of the contrastive-learning papers."""

from cl_models._ema import EMA as EMA
from cl_models._ema import ema_decay as ema_decay
from cl_models._encoder import as_encoder as as_encoder
from cl_models._google import GoogleSimCLR as GoogleSimCLR
from cl_models._google import load_google_simclr as load_google_simclr
from cl_models._heads import BYOLHead as BYOLHead
from cl_models._heads import ProjectionHead as ProjectionHead
from cl_models._resnet import ResNet as ResNet
from cl_models._resnets import resnet18 as resnet18
from cl_models._resnets import resnet34 as resnet34
from cl_models._resnets import resnet50 as resnet50
from cl_models._resnets import resnet101 as resnet101
from cl_models._resnets import resnet152 as resnet152
from cl_models._resnets import resnet200 as resnet200
from cl_models._sync_batchnorm import sync_batchnorm as sync_batchnorm
from cl_models._weights import load_encoder as load_encoder
from cl_models._weights import save_encoder as save_encoder

__version__ = "0.4.0"
