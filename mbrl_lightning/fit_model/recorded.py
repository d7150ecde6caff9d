"""A task family of recorded data alone."""

from __future__ import annotations

from typing import Any

import torch

from mbrl_lightning.data.recordings import Recordings
from mbrl_lightning.envs.family import TaskFamily, draw_from
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.errors import EnvError


def family() -> Any:
    """What a run that wants to act in it is told."""
    raise EnvError("recorded data cannot be simulated", "give conf= or env.file=, the family that they are of")


def family_of_data(found: Recordings) -> TaskFamily:
    """The family that the datasets are of, as far as they tell: no features, no reward, nothing to simulate."""
    tasks = torch.tensor([episode.task for episode in found.episodes], dtype=torch.float64).nan_to_num().unique(dim=0)
    low, high = tasks.amin(0), tasks.amax(0)
    return TaskFamily(
        spec=EnvSpec(
            "recorded",
            found.names,
            found.actions,
            found.horizon,
            "step",
            reward=lambda observation, action, following: 0 * following[..., 0],
            discrete=found.discrete,
        ),
        parameters=found.parameters,
        draw=draw_from(tasks),
        build=lambda tasks: family(),
        rescale=lambda values: (
            (2 * values - low.to(values) - high.to(values)) / (high - low).clamp_min(1e-12).to(values)
        ),
        test=tasks,
        context_steps=min(50, found.horizon // 2),
    )
