"""Planners: the optimum where it is known, batches, chunks, warm starts, and what must not break them."""

import dataclasses
import logging
import math

import pytest
import torch
from tensordict import TensorDict
from torchrl.modules import CEMPlanner

from mbrl_lightning.config.methods import PlannerConfig
from mbrl_lightning.config.schema import FIELDS, DynamicsConfig
from mbrl_lightning.data.collect import collect, episode_returns, random_actions
from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.bodies import point2d
from mbrl_lightning.envs.spec import EnvSpec, never
from mbrl_lightning.errors import ConfigError, EnvError
from mbrl_lightning.models.mlp import MLPDynamics
from mbrl_lightning.models.model_env import ModelEnv
from mbrl_lightning.policies.planner_actor import PlannerActor
from mbrl_lightning.policies.planners import PLANNERS, coloured, make_planner

KINDS = list(PLANNERS)
SMALL = PlannerConfig(horizon=6, candidates=64, iterations=3, elites=8, gamma=1.0)
DRIFT = torch.tensor([[1.0, 0.2], [0.0, 1.0]], dtype=torch.float64)
PUSH = torch.tensor([[0.0, 0.2]], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def config(**changes) -> PlannerConfig:
    return dataclasses.replace(SMALL, **changes)


def cart(observation, action):
    """A double integrator: position and velocity under a push."""
    return observation @ DRIFT.to(observation).T + action @ PUSH.to(observation)


def quadratic(observation, action, following):
    return -following.square().sum(-1) - 0.1 * action.square().sum(-1)


def cart_env(**changes) -> ModelEnv:
    members = changes.pop("members", 1)
    advance = changes.pop("advance", cart)
    spec = EnvSpec("cart", ("place", "speed"), 1, 40, "episode", quadratic)
    return ModelEnv(dataclasses.replace(spec, **changes), advance, members)


def best_sequence(start, horizon):
    """Exact minimiser of the quadratic cost, by least squares over the sequence `[H]` of actions."""
    powers = [torch.linalg.matrix_power(DRIFT, t) for t in range(horizon + 1)]
    free = torch.cat([powers[t + 1] @ start for t in range(horizon)])
    reach = torch.zeros(2 * horizon, horizon, dtype=torch.float64)
    for t in range(horizon):
        for u in range(t + 1):
            reach[2 * t : 2 * t + 2, u] = powers[t - u] @ PUSH[0]
    return -torch.linalg.solve(reach.T @ reach + 0.1 * torch.eye(horizon, dtype=torch.float64), reach.T @ free)


# -- the optimum


@pytest.mark.parametrize(("kind", "close"), [("cem", 1e-3), ("icem", 1e-2), ("mppi", 0.05), ("random", 0.6)])
def test_finds_the_optimum_of_a_linear_system(kind, close):
    start = torch.tensor([[0.5, -0.2], [-0.3, 0.4], [0.1, 0.1]], dtype=torch.float64)
    cfg = config(kind=kind, candidates=500, elites=30, iterations=20, min_std=1e-3, momentum=0.0, temperature=0.005)
    env = cart_env()
    planner = make_planner(env, cfg)
    action, plan = planner.plan(start, generator())
    exact = torch.stack([best_sequence(row, cfg.horizon) for row in start])
    assert exact.abs().max() < 1  # so that bounds do not matter
    best = planner.score(start, exact[:, None, :, None])[:, 0]
    nothing = planner.score(start, torch.zeros(3, 1, cfg.horizon, 1, dtype=torch.float64))[:, 0]
    found = torch.cat([action.unsqueeze(1), plan["mean"][:, :-1]], 1)  # the plan has been shifted a step on
    lost = (best - planner.score(start, found.unsqueeze(1))[:, 0]) / (best - nothing)
    assert lost.min() > -1e-9
    assert lost.max() < close


@pytest.mark.parametrize("discrete", [False, True])
def test_mppi_executes_the_weighted_mean_itself(discrete):
    family = make_family("acrobot" if discrete else "point2d")
    env = ModelEnv(family.spec, lambda o, a: family.spec.untarget(o, 0.1 * o + 0.2 * a.sum(-1, keepdim=True)))
    planner = make_planner(env, config(kind="mppi", iterations=1, momentum=0.5))
    start = torch.randn(3, family.spec.observation_dim, generator=generator())
    action, plan = planner.plan(start, generator(1))
    cold = planner.cold(3)["mean"]
    candidates = planner.sample(cold, torch.full_like(cold, planner.cfg.initial_std), 64, generator(1))
    candidates[:, 0] = planner.execute(cold)  # the plan so far is tried too
    returns = planner.score(start, candidates)
    weights = (returns / planner.cfg.temperature).exp()
    mean = torch.einsum("bn,bnha->bha", weights / weights.sum(1, keepdim=True), candidates)
    torch.testing.assert_close(action, planner.execute(mean)[:, 0])
    share = planner.cfg.min_std if discrete else 0.0
    torch.testing.assert_close(plan["mean"][:, :-1], (1 - share) * mean[:, 1:] + share / mean.shape[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_point_is_brought_home(kind):
    """Bounds are active on the way; the best possible return from these starts is known."""
    family = make_family("point2d")
    cfg = config(kind=kind, candidates=200, elites=20, iterations=4, horizon=8, temperature=0.05)
    env = ModelEnv(family.spec, lambda o, a: point2d.transition(o, a, o))
    sim = family.simulate(torch.ones(6, 1))
    act = PlannerActor(make_planner(env, cfg), generator())
    ours = collect(sim, family.spec, act, 30, generator(3), training=False)
    best = collect(
        family.simulate(torch.ones(6, 1)), family.spec, point2d.best_action, 30, generator(3), training=False
    )
    assert ours["action"].abs().max() <= 1
    returns, optimum = episode_returns(ours, family.spec).mean(), episode_returns(best, family.spec).mean()
    assert optimum >= returns > optimum * (1.5 if kind == "random" else 1.06)


@pytest.mark.parametrize("kind", KINDS)
def test_discrete_sequences_are_found(kind):
    """Four choices that turn a counter; only one sequence in 4^5 hits every wanted number."""
    wanted = torch.tensor([3, 1, 2, 0, 2])

    def count(observation, action):
        return torch.cat([observation[..., :1] + 1, action.argmax(-1, keepdim=True).to(observation)], -1)

    def reward(observation, action, following):
        assert bool((action.sum(-1) == 1).all())
        assert set(action.unique().tolist()) <= {0.0, 1.0}
        return (following[..., 1] == wanted[observation[..., 0].long().clamp_max(4)]).float()

    spec = EnvSpec("dial", ("step", "last"), 4, 5, "episode", reward, discrete=True)
    cfg = config(kind=kind, horizon=5, candidates=400, elites=30, iterations=6, temperature=0.2)
    planner = make_planner(ModelEnv(spec, count), cfg)
    first, plan = planner.plan(torch.zeros(3, 2), generator())
    assert first.argmax(-1).tolist() == [3, 3, 3]
    rest = plan["mean"][:, : (1 if kind == "random" else 4)].argmax(-1)
    assert rest.tolist() == [wanted[1 : 1 + rest.shape[1]].tolist()] * 3


# -- batches, chunks, members


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("members", [1, 3])
def test_results_do_not_depend_on_the_chunk(kind, members):
    def drifting(observation, action):
        block = torch.arange(members).repeat_interleave(observation.shape[1] // members).view(1, -1, 1)
        return cart(observation, action) + 0.05 * block

    start = torch.randn(4, 2, generator=generator(), dtype=torch.float64)
    results = []
    for chunk in (10**6, 100, 37, 1):
        planner = make_planner(cart_env(advance=drifting, members=members), config(kind=kind, chunk=chunk))
        results.append(planner.plan(start, generator(1)))
    for action, plan in results[1:]:
        torch.testing.assert_close(action, results[0][0], rtol=0, atol=1e-12)
        torch.testing.assert_close(plan["mean"], results[0][1]["mean"], rtol=0, atol=1e-12)


def test_memory_is_bounded_by_the_chunk():
    rows = []

    def watched(observation, action):
        rows.append(observation.shape[0] * observation.shape[1])
        return cart(observation, action)

    planner = make_planner(cart_env(advance=watched, members=2), config(chunk=48))
    planner.plan(torch.zeros(4, 2), generator())
    assert max(rows) == 48
    assert sum(rows) == 3 * 6 * 4 * 64 * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("discrete", [False, True])
def test_each_environment_gets_what_it_gets_alone(kind, discrete, monkeypatch):
    """The same draws for a row, alone or among others, over three steps with warm starts."""
    family = make_family("acrobot" if discrete else "point2d")
    sim = family.simulate(family.test[:5])
    env = ModelEnv(family.spec, lambda o, a: family.spec.untarget(o, 0.1 * o + 0.2 * a.sum(-1, keepdim=True)))
    planner, own = make_planner(env, config(kind=kind)), make_planner(env, config(kind=kind))
    starts = [sim.reset(generator(seed)).double() for seed in range(3)]
    draws, sample, calls = [], type(planner).sample, [0]

    def recorded(mean, std, count, source):
        batch = torch.cat([sample(planner, m[None], s[None], count, generator(7 + 100 * i + len(draws)))
                           for i, (m, s) in enumerate(zip(mean, std, strict=True))])  # fmt: skip
        draws.append(None)
        return batch

    def alone(mean, std, count, source):
        calls[0] += 1
        return sample(own, mean, std, count, generator(7 + 100 * 3 + calls[0] - 1))

    monkeypatch.setattr(planner, "sample", recorded)
    monkeypatch.setattr(own, "sample", alone)
    plan = single = None
    for start in starts:
        together, plan = planner.plan(start, generator(), plan)
        action, single = own.plan(start[3:4], generator(), single)
        torch.testing.assert_close(action, together[3:4], rtol=0, atol=1e-12)
        torch.testing.assert_close(single["mean"], plan["mean"][3:4], rtol=0, atol=1e-12)


def test_members_vote():
    """One member says right is good, the other that it is ten times worse than left: the mean decides."""

    def torn(observation, action):
        gain = torch.cat([torch.full((observation.shape[1] // 2,), g) for g in (1.0, -10.0)]).view(1, -1, 1)
        return observation + gain * torch.cat([action, action], -1)

    def rightwards(observation, action, following):
        return following[..., 0]

    planner = make_planner(cart_env(advance=torn, members=2, reward=rightwards), config(kind="cem", horizon=1))
    action, _ = planner.plan(torch.zeros(3, 2), generator())
    assert (action < -0.9).all()
    sequences = torch.tensor([[[[1.0]], [[-0.5]]]])
    assert planner.score(torch.zeros(1, 2), sequences).tolist() == [[-4.5, 2.25]]


def test_discount_and_the_end_of_an_episode():
    env = cart_env(
        advance=lambda o, a: o + 1,
        reward=lambda o, a, n: torch.where(n[..., 0] > 3, math.nan, n[..., 0]),
        termination=lambda n: n[..., 0] >= 3,
    )
    planner = make_planner(env, config(gamma=0.5, horizon=6))
    assert planner.score(torch.zeros(1, 2), torch.zeros(1, 1, 6, 1)).item() == 1 + 0.5 * 2 + 0.25 * 3
    fall = make_planner(cart_env(advance=lambda o, a: o + 1, training_termination=lambda n: n[..., 0] >= 1), config())
    assert fall.score(torch.zeros(1, 2), torch.zeros(1, 1, 6, 1)).item() == -2


# -- warm start


@pytest.mark.parametrize("kind", KINDS)
def test_warm_start_helps_at_equal_budget(kind):
    cfg = config(kind=kind, horizon=12, candidates=24, elites=6, iterations=1, temperature=0.05)
    start, returns = torch.randn(40, 2, generator=generator(5), dtype=torch.float64), {}
    for warm in (True, False):
        env, state, total = cart_env(), start, 0.0
        act = PlannerActor(make_planner(env, dataclasses.replace(cfg, warm_start=warm)), generator())
        for _ in range(25):
            action = act(state)
            following, reward, _ = env.transit(state.unsqueeze(1), action.unsqueeze(1))
            state, total = following[:, 0], total + reward.mean().item()
        returns[warm] = total
    assert returns[True] > 0.9 * returns[False]  # both are negative


@pytest.mark.parametrize("discrete", [False, True])
def test_a_new_episode_begins_with_a_cold_plan(discrete):
    family = make_family("acrobot" if discrete else "point2d")
    env = ModelEnv(family.spec, lambda o, a: o + 0.1)
    act = PlannerActor(make_planner(env, config(kind="icem")), generator())
    act.begin(torch.ones(3, dtype=torch.bool))
    act(torch.randn(3, family.spec.observation_dim, generator=generator()))
    before = act.plan.clone()
    act.begin(torch.tensor([False, True, False]))
    cold = act.planner.cold(3)
    assert act.plan["mean"][1].equal(cold["mean"][1])
    assert act.plan["kept"][1].isnan().all()
    assert act.plan[[0, 2]]["mean"].equal(before[[0, 2]]["mean"])
    assert not before["kept"].isnan().any()


def test_a_plan_is_shifted_by_one_step():
    planner = make_planner(cart_env(), config())
    action, plan = planner.plan(torch.ones(2, 2), generator())
    assert plan["mean"].shape == (2, 6, 1)
    assert (plan["mean"][:, -1] == 0).all()
    assert not (plan["mean"][:, :-1] == 0).any()
    again, _ = planner.plan(torch.ones(2, 2), generator())
    assert again.equal(action)


# -- what must not break it


@pytest.mark.parametrize("kind", KINDS)
def test_no_finite_candidate_gives_the_safe_action_once_warned(kind, caplog):
    def broken(observation, action):
        bad = torch.full_like(observation, math.inf)
        return torch.where(observation[:, :, :1] > 5, bad, cart(observation, action))

    planner = make_planner(cart_env(advance=broken), config(kind=kind))
    state = torch.tensor([[0.3, 0.1], [9.0, 0.0]])
    with caplog.at_level(logging.WARNING):
        action, plan = planner.plan(state, generator())
        again, _ = planner.plan(state, generator(), plan)
    assert action[1].tolist() == again[1].tolist() == [0.0]
    assert action[0].abs() > 0
    assert plan.isfinite().all() if kind != "icem" else plan["mean"].isfinite().all()
    assert planner.failures == 2
    assert len([record for record in caplog.records if "no candidate" in record.message]) == 1
    only = make_planner(cart_env(), config(kind=kind))
    monkey, _ = only.plan(state[:1], generator())
    assert monkey.isfinite().all()


def test_the_safe_discrete_action_is_the_one_nearest_to_nothing():
    spec = make_family("acrobot").spec
    planner = make_planner(ModelEnv(spec, lambda o, a: o * math.nan), config())
    action, _ = planner.plan(torch.zeros(2, 4), generator())
    assert spec.action_features(action).tolist() == [[0.0], [0.0]]
    assert action.sum(-1).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_some_candidates_that_are_not_finite_do_not_matter(kind):
    def half(observation, action):
        return torch.where(action > 0.2, math.nan, cart(observation, action))

    planner = make_planner(cart_env(advance=half), config(kind=kind, temperature=0.05))
    action, plan = planner.plan(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), generator())
    assert (action <= 0.2).all()
    assert plan["mean"].isfinite().all()
    assert action[1] < -0.05
    assert planner.failures == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("discrete", [False, True])
def test_equal_elites_are_no_trouble(kind, discrete):
    base = make_family("acrobot" if discrete else "point2d").spec
    spec = dataclasses.replace(base, reward=lambda o, a, n: torch.zeros(o.shape[:-1]), termination=never)
    planner = make_planner(ModelEnv(spec, lambda o, a: o), config(kind=kind, elites=1, iterations=8))
    action, plan = planner.plan(torch.zeros(2, spec.observation_dim), generator())
    assert action.isfinite().all()
    assert plan["mean"].isfinite().all()
    if discrete:
        torch.testing.assert_close(plan["mean"].sum(-1), torch.ones(2, 6))
        assert (plan["mean"] > 0).all() or kind == "random"


def test_a_reward_function_that_raises_or_returns_another_shape_is_named():
    def raises(observation, action, following):
        raise ZeroDivisionError("by nothing")

    planner = make_planner(cart_env(reward=raises), SMALL)
    with pytest.raises(EnvError, match=r"cart: the reward function raised ZeroDivisionError: by nothing"):
        planner.plan(torch.zeros(1, 2), generator())
    planner = make_planner(cart_env(reward=lambda o, a, n: n), SMALL)
    with pytest.raises(EnvError, match=r"gave \(1, 64, 2\) for observations \(1, 64, 2\)"):
        planner.plan(torch.zeros(1, 2), generator())
    planner = make_planner(cart_env(reward=lambda o, a, n: 1.0), SMALL)
    with pytest.raises(EnvError, match="gave float"):
        planner.plan(torch.zeros(1, 2), generator())


def test_more_elites_than_candidates_are_refused_where_there_are_elites():
    for kind in ("cem", "icem"):
        with pytest.raises(ConfigError, match="elites=65"):
            make_planner(cart_env(), config(kind=kind, elites=65))
    for kind in ("random", "mppi"):
        action, _ = make_planner(cart_env(), config(kind=kind, elites=65)).plan(torch.zeros(1, 2), generator())
        assert torch.isfinite(action).all()


def test_every_kind_has_a_name():
    assert FIELDS["planner.kind"].metadata["choices"] == tuple(PLANNERS)


def test_coloured_noise_has_unit_variance_and_memory():
    white, red = coloured(20, 0.0), coloured(20, 2.0)
    torch.testing.assert_close(white, torch.eye(20))
    covariance = red @ red.T
    torch.testing.assert_close(covariance.diagonal(), torch.ones(20))
    assert covariance[5, 6] > 0.8
    noise = make_planner(cart_env(), config(kind="icem", horizon=20)).noise((2, 3000, 20, 1), generator())
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert (noise[:, :, 1:] * noise[:, :, :-1]).mean() > 0.8


# -- TorchRL


def test_planner_is_a_policy_of_torchrl():
    env = cart_env()
    planner = make_planner(env, config(kind="cem"))
    start = torch.randn(5, 2, generator=generator())
    rollout = env.rollout(
        10, planner, auto_reset=False, tensordict=env.reset(TensorDict({"observation": start}, batch_size=[5]))
    )
    assert rollout.batch_size == (5, 10)
    assert rollout["next", "reward"][:, -1].mean() > rollout["next", "reward"][:, 0].mean()
    following, reward, _ = env.transit(rollout["observation"], rollout["action"])
    torch.testing.assert_close(rollout["next", "observation"], following)
    torch.testing.assert_close(rollout["next", "reward"][..., 0], reward)
    assert rollout.get("plan", None) is not None


def test_one_state_and_batches_of_batches():
    planner = make_planner(cart_env(), SMALL)
    one = planner(TensorDict({"observation": torch.ones(2)}, batch_size=[]))
    assert one["action"].shape == (1,)
    many = planner(TensorDict({"observation": torch.ones(2, 3, 2)}, batch_size=[2, 3]))
    assert many["action"].shape == (2, 3, 1)


def test_cem_scores_and_elites_agree_with_torchrl():
    """Its planner on the same environment with the same draws: the plan's first mean is what it would execute."""
    env, start = cart_env(), torch.tensor([0.7, -0.3])
    theirs = CEMPlanner(env, planning_horizon=6, optim_steps=1, num_candidates=64, top_k=8)
    torch.manual_seed(11)
    expected = theirs(TensorDict({"observation": start}, batch_size=[]))["action"]
    ours = make_planner(env, config(iterations=1, momentum=0.0, initial_std=1.0))
    draws = torch.Generator().manual_seed(11)
    candidates = ours.sample(torch.zeros(1, 6, 1), torch.ones(1, 6, 1), 64, draws)
    weights = ours.weigh(ours.score(start.unsqueeze(0), candidates))
    mean, _ = ours.refit(candidates, weights, torch.zeros(1, 6, 1), torch.ones(1, 6, 1))
    torch.testing.assert_close(mean[0, 0], expected)


# -- a learned model


def test_plans_through_an_ensemble_and_repeats_bit_for_bit():
    family = make_family("point2d")
    dynamics = MLPDynamics(family.spec, DynamicsConfig(hidden=16, layers=1, members=5))
    data = collect(
        family.simulate(torch.ones(4, 1)), family.spec, random_actions(family.spec, generator()), 50, generator()
    )
    dynamics.observe(data.flatten(0, 1))
    belief = dynamics.tell(torch.zeros(4, 0))
    actions = []
    for _ in range(2):
        act = PlannerActor(make_planner(ModelEnv.of(dynamics, belief), SMALL), generator(2))
        act.begin(torch.ones(4, dtype=torch.bool))
        actions.append([act(data["observation"][:, step]) for step in range(3)])
    assert all(one.equal(other) for one, other in zip(*actions, strict=True))
    assert not any(action.requires_grad for action in actions[0])
    assert torch.stack(actions[0]).abs().max() <= 1
