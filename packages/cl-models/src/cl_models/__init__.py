"""Encoders and heads of the contrastive-learning papers."""

from cl_models._heads import ProjectionHead as ProjectionHead
from cl_models._resnet import ResNet as ResNet
from cl_models._resnet import resnet18 as resnet18
from cl_models._resnet import resnet50 as resnet50
from cl_models._weights import load_encoder as load_encoder
from cl_models._weights import save_encoder as save_encoder

__version__ = "0.1.0"
