"""M3PO: branches, the share of imagined data, variants, and the limits in which it is something simpler."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from fakes import fingerprint
from tensordict import TensorDict

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.algorithms.m3po import M3PO
from mbrl_lightning.config import compose
from mbrl_lightning.data.windows import Histories
from mbrl_lightning.envs import make_family
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.loop import MetaLoop
from mbrl_lightning.models.imagination import branched_rollouts

SMALL = {
    "loop": {"iterations": 2, "episode_steps": 40, "model_steps": 5, "first_model_steps": 5},
    "dynamics": {"hidden": 8, "layers": 1, "members": 2, "targets": 16},
    "policy": {"hidden": [8]},
    "sac": {"warmup_steps": 60, "every": 10, "updates_per_step": 0.2, "batch": 16},
    "branch": {"per_step": 4, "buffer": 100},
    "history": {"length": 4},
}


@pytest.fixture
def small(make_loop):
    def make(algorithm: str = "m3po", **changes):
        merged = {key: SMALL.get(key, {}) | changes.get(key, {}) for key in SMALL | changes}
        cfg = compose({"conf": "point_switch", "algorithm": algorithm} | merged)
        return make_loop(algorithm, cfg=cfg)

    return make


def ready(loop):
    """After warm-up and one fit of the model."""
    loop.algorithm.collect(loop.world)
    loop._fit_dynamics()
    return loop


def test_real_steps_are_the_warm_up_and_the_stretches(small):
    loop = small()
    loop.fit()
    assert loop.real.num_steps == 60 + 2 * 40


def test_updates_follow_the_real_steps(small):
    loop = ready(small(sac={"updates_per_step": 0.5}))
    before = loop.step.count
    loop.algorithm.improve(loop.world, loop.step)
    assert loop.step.count - before == 20


@pytest.mark.parametrize("steps", [1, 3])
def test_a_branch_continues_a_real_history(small, steps):
    loop = ready(small())
    algorithm = loop.algorithm
    histories = Histories(loop.real, algorithm.dynamics.inputs, 4)
    rows = torch.arange(10, 20)
    start = histories.before(rows)
    act = partial(algorithm._sample, torch.Generator().manual_seed(0))
    imagined = branched_rollouts(algorithm.dynamics, act, start, steps, torch.Generator().manual_seed(0))
    assert len(imagined) == 10 * steps
    first = imagined[:10]
    assert torch.equal(first["pairs"][:, :4], start["inputs", "pairs"])  # the real history, untouched
    assert torch.equal(first["current"], start["inputs", "current"])
    for now in range(1, steps):
        earlier, later = imagined[10 * (now - 1) : 10 * now], imagined[10 * now : 10 * (now + 1)]
        assert torch.equal(later["current"], earlier["following"])
        assert torch.equal(later["pairs"][:, :4], earlier["pairs"][:, 1:])
        assert torch.equal(later["mask"][:, :4], earlier["mask"][:, 1:])


def test_imagined_rollouts_end_where_the_family_says(small):
    loop = ready(small())
    dynamics = loop.algorithm.dynamics
    start = TensorDict(
        {
            "inputs": {
                "pairs": torch.zeros(8, 4, dynamics.inputs.pair_dim),
                "mask": torch.zeros(8, 4).bool(),
                "current": torch.zeros(8, 2),
            },
            "observation": torch.zeros(8, 3),
        },
        batch_size=[8],
    )
    act = partial(loop.algorithm._sample, torch.Generator().manual_seed(0))
    spec = dynamics.spec
    for rule, wanted in ((lambda n: torch.ones(len(n)).bool(), 8), (lambda n: torch.zeros(len(n)).bool(), 40)):
        dynamics.spec = replace(spec, termination=rule)
        imagined = branched_rollouts(dynamics, act, start, 5, torch.Generator().manual_seed(0))
        assert len(imagined) == wanted
        assert bool(imagined["terminated"].all()) is (wanted == 8)


def test_without_imagination_it_is_recurrent_sac_whatever_the_model(small):
    other = small("recurrent_sac")
    with torch.no_grad():
        for parameter in other.algorithm.dynamics.net.parameters():
            parameter.zero_()
    policies = []
    for loop in (small("recurrent_sac"), small(branch={"beta": 0.0}), other, small()):
        loop.fit()
        policies.append(fingerprint(loop.algorithm.policy.state_dict()))
    assert policies[0] == policies[1] == policies[2] != policies[3]


def test_beta_falls_from_one_to_zero_between_its_ends(small):
    algorithm = small("m3po_h", branch={"beta_from": 2, "beta_to": 6}).algorithm
    shares = []
    for epoch in range(9):
        algorithm.iteration.fill_(epoch)
        shares.append(algorithm.beta)
    assert shares == [1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_a_batch_has_its_share_of_imagined_rows(small, beta, monkeypatch):
    loop = ready(small(branch={"beta": beta}, sac={"batch": 4000, "updates_per_step": 0.1}))
    seen = []
    monkeypatch.setattr(
        loop.algorithm.policy, "update", lambda batch, *_: seen.append(batch["next", "reward"].clone()) or {}
    )
    loop.algorithm.improve(loop.world, loop.step)
    real = set(loop.real.transitions()["next", "reward"].flatten().tolist())
    share = sum(value not in real for value in seen[-1].flatten().tolist()) / 4000
    assert share == pytest.approx(beta, abs=0.04)


def test_full_rollouts_start_at_initial_states_without_a_history(small, monkeypatch):
    loop = ready(small(branch={"full": True, "per_step": 40}))
    imagined = loop.algorithm._imagine(None, loop.real, loop.step, 400)
    assert len(imagined) == 400  # two episodes of 200 steps
    assert not imagined[:2]["mask"][:, :-1].any()
    assert imagined["mask"].all(1).sum() > 300


def test_acting_sees_what_learning_sees(small, monkeypatch):
    """The history that grew step by step is the window that the buffer gives, and both are empty when an episode begins."""
    loop = ready(small(env={"name": "point_switch", "options": {"horizon": 12}}))
    algorithm, seen = loop.algorithm, []
    choose = algorithm._sample
    monkeypatch.setattr(algorithm, "_sample", lambda draws, inputs: seen.append(inputs) or choose(draws, inputs))
    tasks, start = loop.family.sample(1, torch.Generator()), algorithm.begin(1)
    data = torch.cat(list(loop.world.interact(tasks, algorithm, start, 30, algorithm.generator, 7)), 1)
    rows = torch.arange(len(loop.real) - 30, len(loop.real))
    window = Histories(loop.real, algorithm.dynamics.inputs, 4).before(rows)["inputs"]
    for name in ("pairs", "mask", "current"):
        assert torch.equal(torch.cat([inputs[name] for inputs in seen]), window[name]), name
    assert data.shape == (1, 30)
    assert window["mask"].sum(1)[:17].tolist() == [0, 1, 2, 3, *[4] * 8, 0, 1, 2, 3, 4]


def test_what_is_remembered_decides(small):
    algorithm = ready(small()).algorithm
    observation, history = torch.randn(2, 3), algorithm.begin(2)
    data = TensorDict(
        {"observation": observation, "action": torch.ones(2, 2), "next": {"observation": -observation}}, [2]
    )
    grown = algorithm.adapt(history, data)
    assert not history["mask"].any()  # the belief that was given is as it was
    assert torch.equal(
        algorithm.adapt(history, torch.stack([data, data], 1))["pairs"], algorithm.adapt(grown, data)["pairs"]
    )
    assert not torch.equal(algorithm.act(history, observation)[0], algorithm.act(grown, observation)[0])


def test_resume_is_exact(small):
    whole, half, again = small(), small(loop={"iterations": 1}), small()
    whole.fit()
    half.fit()
    again.load_state_dict(half.state_dict())
    again.fit()
    assert fingerprint(again.algorithm.state_dict()) == fingerprint(whole.algorithm.state_dict())


def test_an_ensemble_of_one_and_a_switch_at_every_step(small):
    loop = small(dynamics={"members": 1}, env={"name": "point_switch", "options": {"switch_every_steps": 1}})
    rows = loop.fit().rows
    assert any(row.metric == "return/policy" for row in rows)


@pytest.mark.parametrize(("section", "key"), [("history", "length"), ("branch", "length"), ("dynamics", "members")])
def test_nothing_of_zero_length(section, key):
    with pytest.raises(ConfigError, match=f"{section}.{key}"):
        compose({"conf": "point_switch", "algorithm": "m3po", section: {key: 0}})


def test_an_episode_shorter_than_the_history_is_enough(small):
    loop = small(env={"name": "point_switch", "options": {"horizon": 3}}, history={"length": 10})
    loop.fit()
    assert loop.real.num_steps == 140


def test_an_imagined_return_is_of_episodes_as_long_as_imagination_lets_them_be(small, monkeypatch):
    """A walker that falls every tenth step earns ten steps an episode, and not a horizon of them."""
    loop = ready(small())
    drawn = loop.algorithm._imagine

    def falling(*args):
        imagined = drawn(*args)
        imagined["reward"], imagined["terminated"] = torch.ones(len(imagined), 1), torch.zeros(len(imagined), 1)
        imagined["terminated"][::10] = 1.0
        return imagined

    monkeypatch.setattr(loop.algorithm, "_imagine", falling)
    metrics = loop.algorithm.improve(loop.world, loop.step)
    assert metrics["imagined/return"] == pytest.approx(10.0, rel=0.1)


def test_discrete_actions_are_refused(small):
    with pytest.raises(ConfigError, match="discrete"):
        M3PO(make_family("acrobot"), compose({"conf": "acrobot", "algorithm": "m3po"}))


def test_a_family_that_ends_at_once_gives_histories_of_nothing(small):
    family = make_family("point_switch")
    ending = replace(family, spec=replace(family.spec, termination=lambda after: torch.ones(len(after)).bool()))
    merged = SMALL | {"branch": SMALL["branch"] | {"length": 3}}
    cfg = compose({"conf": "point_switch", "algorithm": "m3po"} | merged)
    loop = MetaLoop(cfg, ending, make_algorithm(cfg, ending), quiet=True)
    rows = loop.fit().rows
    assert loop.real.num_steps == 140
    assert loop.real.transitions()["next", "terminated"].all()
    assert all(math.isfinite(row.value) for row in rows if row.metric == "return/policy")
