"""Contrastive losses, equal on one process and on many, in memory linear in the batch."""

from cl_losses._byol import BYOLLoss as BYOLLoss
from cl_losses._byol import byol_loss as byol_loss
from cl_losses._count_positives import count_positives as count_positives
from cl_losses._cross_domain import CrossDomainLoss as CrossDomainLoss
from cl_losses._cross_domain import cross_domain_loss as cross_domain_loss
from cl_losses._distillation import DistillationLoss as DistillationLoss
from cl_losses._distillation import distillation_loss as distillation_loss
from cl_losses._info_nce import InfoNCELoss as InfoNCELoss
from cl_losses._info_nce import info_nce_loss as info_nce_loss
from cl_losses._metrics import ContrastiveMetrics as ContrastiveMetrics
from cl_losses._metrics import contrastive_metrics as contrastive_metrics
from cl_losses._nt_xent import NTXentLoss as NTXentLoss
from cl_losses._nt_xent import nt_xent_loss as nt_xent_loss
from cl_losses._sup_con import SupConLoss as SupConLoss
from cl_losses._sup_con import sup_con_loss as sup_con_loss

__version__ = "0.3.0"
