"""Pruning: which weights go, and how what is left is trained."""

from momentumnet.prune.lottery.arms import CONTROLS, TICKET
from momentumnet.prune.lottery.report import LotteryReport, TicketTraining
from momentumnet.prune.lottery.rounds import LotteryTicket
from momentumnet.prune.lottery.training_log import TrainingLog
from momentumnet.prune.masking.dense import dense_state_dict, load_dense_state_dict
from momentumnet.prune.masking.distance import EarlyBird, mask_distance
from momentumnet.prune.masking.masks import (
    Masks,
    apply_masks,
    masks_of,
    prunable,
    remove_masks,
    sparsity,
)
from momentumnet.prune.masking.scores import (
    lowest_masks,
    magnitude_masks,
    magnitude_scores,
    random_masks,
    random_scores,
    shuffled_masks,
)
from momentumnet.prune.structured.blocks import BlockStructure
from momentumnet.prune.structured.channels import ChannelStructure

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
