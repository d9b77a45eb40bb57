"""Contrastive losses, equal on one process and on many."""

from cl_losses._byol import BYOLLoss as BYOLLoss
from cl_losses._byol import byol_loss as byol_loss
from cl_losses._nt_xent import NTXentLoss as NTXentLoss
from cl_losses._nt_xent import nt_xent_loss as nt_xent_loss

__version__ = "0.1.0"
