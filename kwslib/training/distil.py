"""Distillation: the targets of a training, softened by what trained models say of the same clips."""

import torch
import torch.nn.functional as F

from kwslib.checkpoint import load_model
from kwslib.io import KwsError


def soft_targets(teachers, split, share, temperature, device="cpu"):
    """Probabilities (clips, labels) to train towards, on the CPU: `share` of them the teachers', the rest the word's.

    teachers: paths of checkpoints, of any models. split: a `kwslib.data.tasks.Split`. The teachers hear each clip as it
    is, once; their softmax at `temperature` is averaged (Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2).
    Raises KwsError where a teacher has other labels."""
    taught = torch.zeros(len(split.targets), len(split.labels))
    for path in teachers:
        teacher = load_model(path, device)
        if teacher.labels != split.labels:
            labels = f"{len(teacher.labels)} labels, which are not the {len(split.labels)} of this task"
            raise KwsError(f"teacher {path} knows {labels}; take one that was trained on the same task")
        taught += (teacher.all_logits(split.waves, split.samples) / temperature).softmax(1) / len(teachers)
    return (1 - share) * F.one_hot(split.targets.cpu(), len(split.labels)) + share * taught
