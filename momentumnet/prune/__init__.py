"""Pruning: which weights go, and how what is left is trained."""

from momentumnet.prune.arms import CONTROLS, TICKET
from momentumnet.prune.blocks import BlockStructure
from momentumnet.prune.channels import ChannelStructure
from momentumnet.prune.dense import dense_state_dict, load_dense_state_dict
from momentumnet.prune.distance import EarlyBird, mask_distance
from momentumnet.prune.lottery import LotteryTicket
from momentumnet.prune.lottery_report import LotteryReport, TicketTraining
from momentumnet.prune.masks import (
    Masks,
    apply_masks,
    masks_of,
    prunable,
    remove_masks,
    sparsity,
)
from momentumnet.prune.scores import (
    lowest_masks,
    magnitude_masks,
    magnitude_scores,
    random_masks,
    random_scores,
    shuffled_masks,
)
from momentumnet.prune.training_log import TrainingLog

__all__ = [
    "CONTROLS",
    "TICKET",
    "BlockStructure",
    "ChannelStructure",
    "EarlyBird",
    "LotteryReport",
    "LotteryTicket",
    "Masks",
    "TicketTraining",
    "TrainingLog",
    "apply_masks",
    "dense_state_dict",
    "load_dense_state_dict",
    "lowest_masks",
    "magnitude_masks",
    "magnitude_scores",
    "mask_distance",
    "masks_of",
    "prunable",
    "random_masks",
    "random_scores",
    "remove_masks",
    "shuffled_masks",
    "sparsity",
]
