"""RL2 puts what it saw in the first episode of a trial to use in the second: on a bandit, and on a goal that is not shown."""

from __future__ import annotations

import functools

import pytest
import torch
from fakes import read_by

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import compose
from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.bodies.torch_simulator import Canvas, TorchSimulator
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.loop import MetaLoop

pytestmark = pytest.mark.slow

PULLS = 4


def bandit(arms: int = 4) -> TaskFamily:
    """Arms of which one pays 1 and the others nothing, always; 4 pulls an episode, in each of which the last pay is seen."""
    spec = EnvSpec(
        "bandit",
        ("nothing", "paid"),
        action_dim=arms,
        horizon=PULLS,
        unit="step",
        discrete=True,
        reward=lambda observation, action, following: following[..., 1],
        features=lambda observation: observation[..., :1],
        outcome=lambda following: following[..., 1:],
    )

    def pay(state, action, tasks):
        return torch.stack([state[:, 0], (action.argmax(-1) == tasks[:, 0]).double()], -1)

    return TaskFamily(
        spec=spec,
        parameters=("arm",),
        draw=lambda n, generator: torch.randint(arms, (n, 1), generator=generator).double(),
        build=functools.partial(
            TorchSimulator,
            spec,
            initial=lambda n, generator: torch.zeros(n, 2, dtype=torch.float64),
            transition=pay,
            draw=lambda state, task: Canvas(1.0),
        ),
        rescale=lambda tasks: tasks - 1,
        test=torch.arange(arms, dtype=torch.float64).repeat(5).unsqueeze(1),
        context_steps=PULLS,
        shared_tasks=True,
    )


def trained(algorithm: str, family: TaskFamily, **changes) -> dict[tuple[str, int], float]:
    """Mean over unseen tasks by metric and shot."""
    cfg = compose(read_by({"conf": "point_goal", "algorithm": algorithm, "allow_overlap": True} | changes))
    rows: dict[tuple[str, int], list[float]] = {}
    for row in MetaLoop(cfg, family, make_algorithm(cfg, family), quiet=True).fit().rows:
        if row.split == "test":
            rows.setdefault((row.metric, row.shot), []).append(row.value)
    return {key: sum(values) / len(values) for key, values in rows.items()}


BANDIT = {
    "loop": {"iterations": 30},
    "search": {"tasks": 200, "updates": 1, "minibatch": 800, "lr": 5e-3},
    "evaluation": {"context": PULLS, "episodes": 1},
}


def test_on_a_bandit_the_second_episode_pays_almost_all():
    """The first can make (1 + 3/4 + 1/2 + 1/4) / 4 = 0.63 of it at best, and 0.25 without a memory."""
    found = trained("rl2", bandit(), **BANDIT)
    assert found["return/policy", PULLS] > 0.9
    assert found["return/unadapted", PULLS] < 0.7
    assert found["return/wrong_belief", PULLS] < 0.25


def test_without_a_memory_it_does_not():
    found = trained("dr_ppo", bandit(), **BANDIT | {"evaluation": {}})
    assert found["return/policy", 0] < 0.4


def test_on_the_point_the_second_episode_is_better_than_the_first():
    """Told, -3.8; standing still, -20."""
    found = trained("rl2", make_family("point_goal"), loop={"iterations": 20})
    assert found["return/policy", 20] > found["return/unadapted", 20] + 3
    assert found["return/policy", 20] > found["return/wrong_belief", 20] + 3
