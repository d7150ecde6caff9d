"""The policy that stands for the data: near what collected them, far from what did not, and nothing of the run moves."""

from __future__ import annotations

import math

import pytest
import torch
from fakes import fingerprint, words

from mbrl_lightning.config import compose
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import collect
from mbrl_lightning.data.windows import Histories
from mbrl_lightning.policies.cloning import divergence_from_data

SMALL = words(
    "loop.iterations=2 loop.episode_steps=40 loop.model_steps=5 loop.first_model_steps=5 loop.evaluate_every=1 "
    "dynamics.hidden=8 dynamics.layers=1 dynamics.members=2 dynamics.targets=16 policy.hidden=[16] sac.warmup_steps=60 "
    "sac.every=10 sac.updates_per_step=0.2 sac.batch=16 branch.per_step=4 branch.buffer=100 history.length=4"
)
ERRORS = {"model/nll", "policy/kl_cloned"}


@pytest.fixture
def small(make_loop):
    def make(algorithm: str = "m3po"):
        return make_loop(algorithm, cfg=compose({"conf": "point_switch", "algorithm": algorithm} | SMALL))

    return make


def moved(policy, shift: float):
    """The same policy, its means before the tanh moved by `shift`."""
    with torch.no_grad():
        policy.policy.net[-1].bias[..., : policy.action_dim] += shift
    return policy


def data_of(algorithm, steps: int = 200) -> TaskBuffer:
    """What the policy does in 8 environments, sampled."""
    generator = torch.Generator().manual_seed(3)
    family, tasks = algorithm.family, algorithm.family.sample(8, generator)
    real, simulator, start = TaskBuffer(1, 8 * steps), family.simulate(tasks), algorithm.begin(8)
    found = collect(simulator, family.spec, algorithm, start, steps, generator, generator)
    real.extend(found, torch.zeros(8, dtype=torch.long), exploratory=False)
    return real


def divergence(loop, real: TaskBuffer, seed: int = 0) -> float:
    algorithm, generator = loop.algorithm, torch.Generator().manual_seed(seed)
    histories = Histories(real, algorithm.dynamics.inputs, 4)
    return divergence_from_data(algorithm.policy, histories, loop.cfg, loop.step, generator)


def test_a_policy_is_near_its_own_data_and_as_far_from_others_as_they_are_apart(small):
    loop = small()
    algorithm = loop.algorithm
    real = data_of(algorithm)
    near = divergence(loop, real)
    assert 0 <= near < 0.02
    histories = Histories(real, algorithm.dynamics.inputs, 4).before(torch.arange(50))["inputs"]
    scale = algorithm.policy.policy(histories)[1].detach()
    moved(algorithm.policy, 0.8)
    # KL of two Gaussians of one deviation: half the squared distance in deviations, for each of two actions
    assert divergence(loop, real) == pytest.approx(float((0.5 * (0.8 / scale) ** 2).sum(-1).mean()), rel=0.1)


def test_few_data_are_not_learned_by_heart(small):
    loop = small()
    real = data_of(loop.algorithm, steps=8)
    assert divergence(loop, real) < 1.0


def test_actions_at_their_limits_are_finite(small):
    loop = small()
    real = data_of(loop.algorithm, steps=20)
    real.transitions()["action"].fill_(1.0)
    assert 0 < divergence(loop, real) < float("inf")


def test_nothing_of_the_run_is_touched_and_the_stream_given_decides(small):
    loop = small()
    loop.fit()
    before, drawn = fingerprint(loop.state_dict()), torch.get_rng_state()
    first = divergence(loop, loop.real)
    assert fingerprint(loop.state_dict()) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    torch.manual_seed(99)
    assert divergence(loop, loop.real) == first
    assert divergence(loop, loop.real, seed=1) != first


def test_every_evaluation_of_a_run_writes_what_the_bounds_are_made_of(small):
    rows = [row for row in small().fit().rows if row.metric in ERRORS]
    assert sorted((row.iteration, row.real_steps, row.metric) for row in rows) == [
        (iteration, 60 + 40 * iteration, metric) for iteration in (1, 2) for metric in sorted(ERRORS)
    ]
    assert all(math.isfinite(row.value) and row.task == -1 for row in rows)


def test_a_model_that_is_never_fitted_is_not_measured(small):
    loop = small("recurrent_sac")
    rows = loop.fit().rows
    assert loop.algorithm.model is None
    assert not [row.metric for row in rows if row.metric.startswith(("model/", "policy/"))]
    assert [row for row in rows if row.metric == "reward/before_switch"]
