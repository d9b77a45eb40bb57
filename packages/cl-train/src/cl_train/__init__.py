"""The loop of contrastive learning, and what judges its result."""

from cl_train._datasets import ArrayDataset as ArrayDataset
from cl_train._datasets import ImageDataset as ImageDataset
from cl_train._datasets import readable as readable
from cl_train._errors import InputError as InputError
from cl_train._features import extract_features as extract_features
from cl_train._few_label import FewLabelScores as FewLabelScores
from cl_train._few_label import few_label_eval as few_label_eval
from cl_train._flags import flag as flag
from cl_train._flags import parse_flags as parse_flags
from cl_train._folder import FolderDataset as FolderDataset
from cl_train._in_memory import in_memory as in_memory
from cl_train._interrupt import Interrupted as Interrupted
from cl_train._knn import knn_eval as knn_eval
from cl_train._known import load_cifar10 as load_cifar10
from cl_train._known import load_digits as load_digits
from cl_train._known import load_folders as load_folders
from cl_train._lars import LARS as LARS
from cl_train._lars import lars_groups as lars_groups
from cl_train._launch import describe as describe
from cl_train._launch import make_accelerator as make_accelerator
from cl_train._launch import use_all_cores as use_all_cores
from cl_train._linear_eval import linear_eval as linear_eval
from cl_train._linear_probe import linear_probe as linear_probe
from cl_train._method import Method as Method
from cl_train._parquet import ParquetDataset as ParquetDataset
from cl_train._plots import plot_history as plot_history
from cl_train._plots import plot_views as plot_views
from cl_train._pretrain import PretrainResult as PretrainResult
from cl_train._pretrain import pretrain as pretrain
from cl_train._schedule import scaled_lr as scaled_lr
from cl_train._schedule import warmup_cosine as warmup_cosine
from cl_train._scores import Scores as Scores
from cl_train._script import run_script as run_script
from cl_train._script import values_from_flags as values_from_flags
from cl_train._simclr import SimCLR as SimCLR
from cl_train._unhealthy import HealthWarning as HealthWarning
from cl_train._unhealthy import UnhealthyRun as UnhealthyRun
from cl_train._wrapped import WrappedDataset as WrappedDataset

__version__ = "0.2.0"
