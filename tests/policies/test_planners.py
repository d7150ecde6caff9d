"""Planners: the optimum where it is known, batches, chunks, warm starts, and what must not break them."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from fakes import Says, generator

from mbrl_lightning.config.methods import PlannerConfig
from mbrl_lightning.config.schema import FIELDS
from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.errors import EnvError
from mbrl_lightning.policies.planners import PLANNERS, coloured, make_planner

KINDS = list(PLANNERS)
SMALL = PlannerConfig(horizon=6, candidates=64, iterations=3, elites=8, gamma=1.0)
DRIFT = torch.tensor([[1.0, 0.2], [0.0, 1.0]], dtype=torch.float64)
PUSH = torch.tensor([[0.0, 0.2]], dtype=torch.float64)
SPEC = EnvSpec(
    "cart", ("place", "speed"), 1, 40, "episode", lambda o, a, n: -n.square().sum(-1) - 0.1 * a.square().sum(-1)
)


def make(spec=SPEC, members=1, **changes):
    return make_planner(spec, replace(SMALL, **changes), members)


def cart(observation, action):
    """A double integrator: position and velocity under a push."""
    return observation @ DRIFT.to(observation).T + action @ PUSH.to(observation)


def search(planner, advance, observation, seed=0, start=None):
    start = planner.cold(len(observation)).to(observation) if start is None else start
    return planner.plan(advance, observation, generator(seed), start)


def smooth(discrete):
    """A family with such actions, and a model of it that is easy to compute."""
    spec = make_family("acrobot" if discrete else "point2d").spec
    return spec, lambda o, a: spec.untarget(o, 0.1 * o + 0.2 * a.sum(-1, keepdim=True))


class Planning(Says):
    """An agent that plans; what it believes is its plan."""

    def __init__(self, planner, advance):
        self.planner, self.advance = planner, advance

    def act(self, belief, observation, noise=None):
        return self.planner.plan(self.advance, observation, noise, belief)


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
    planner = make(kind=kind, candidates=500, elites=30, iterations=20, min_std=1e-3, momentum=0.0, temperature=0.005)
    action, plan = search(planner, cart, start)
    exact = torch.stack([best_sequence(row, 6) for row in start])
    assert exact.abs().max() < 1  # so that bounds do not matter
    found = torch.cat([action.unsqueeze(1), plan["mean"][:, :-1]], 1)  # the plan has been shifted a step on
    tried = torch.stack([exact.unsqueeze(-1), torch.zeros_like(found), found], 1)
    best, nothing, ours = planner.score(cart, start, tried).unbind(1)
    lost = (best - ours) / (best - nothing)
    assert lost.min() > -1e-9
    assert lost.max() < close


@pytest.mark.parametrize("discrete", [False, True])
def test_mppi_executes_the_weighted_mean_itself(discrete):
    spec, advance = smooth(discrete)
    planner = make(spec, kind="mppi", iterations=1, momentum=0.5)
    start = torch.randn(3, spec.observation_dim, generator=generator())
    action, plan = search(planner, advance, start, seed=1)
    cold = planner.cold(3)["mean"]
    candidates = planner.sample(cold, torch.full_like(cold, planner.cfg.initial_std), 64, generator(1))
    candidates[:, 0] = planner.execute(cold)  # the plan so far is tried too
    weights = (planner.score(advance, start, candidates) / planner.cfg.temperature).exp()
    mean = torch.einsum("bn,bnha->bha", weights / weights.sum(1, keepdim=True), candidates)
    torch.testing.assert_close(action, planner.execute(mean)[:, 0])
    share = planner.cfg.min_std if discrete else 0.0
    torch.testing.assert_close(plan["mean"][:, :-1], (1 - share) * mean[:, 1:] + share / mean.shape[-1])


def test_cem_moves_the_plan_towards_its_elites():
    planner = make(kind="cem", momentum=0.25, min_std=0.3)
    candidates, scores = torch.randn(2, 64, 6, 1, generator=generator()), torch.randn(2, 64, generator=generator(1))
    old = torch.full((2, 6, 1), 0.5), torch.full((2, 6, 1), 0.1)
    mean, std = planner.refit(candidates, planner.weigh(scores), *old)
    elites = torch.stack([candidates[row, scores[row].argsort()[-8:]] for row in range(2)])
    torch.testing.assert_close(mean, 0.25 * old[0] + 0.75 * elites.mean(1))
    torch.testing.assert_close(std, (0.25 * old[1] + 0.75 * elites.std(1, correction=0)).clamp_min(0.3))


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
    planner = make(spec, kind=kind, horizon=5, candidates=400, elites=30, iterations=6, temperature=0.2)
    first, plan = search(planner, count, torch.zeros(3, 2))
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
        results.append(search(make(members=members, kind=kind, chunk=chunk), drifting, start, seed=1))
    for action, plan in results[1:]:
        torch.testing.assert_close(action, results[0][0], rtol=0, atol=1e-12)
        torch.testing.assert_close(plan["mean"], results[0][1]["mean"], rtol=0, atol=1e-12)


def test_memory_is_bounded_by_the_chunk():
    rows = []

    def watched(observation, action):
        rows.append(observation.shape[0] * observation.shape[1])
        return cart(observation, action)

    search(make(members=2, chunk=48), watched, torch.zeros(4, 2))
    assert max(rows) == 48
    assert sum(rows) == 3 * 6 * 4 * 64 * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("discrete", [False, True])
def test_each_environment_gets_what_it_gets_alone(kind, discrete, monkeypatch):
    """The same draws for a row, alone or among others, over three steps with warm starts; then it begins anew."""
    spec, advance = smooth(discrete)
    planner, own = make(spec, kind=kind), make(spec, kind=kind)
    sample, calls = type(planner).sample, {planner: 0, own: 0}

    def drawing(who, rows):
        def draw(mean, std, count, source):
            seeds, calls[who] = [100 * row + calls[who] for row in rows], calls[who] + 1
            parts = zip(mean.unsqueeze(1), std.unsqueeze(1), seeds, strict=True)
            return torch.cat([sample(who, m, s, count, generator(seed)) for m, s, seed in parts])

        return draw

    monkeypatch.setattr(planner, "sample", drawing(planner, range(5)))
    monkeypatch.setattr(own, "sample", drawing(own, [3]))
    cold = plan = planner.cold(5).double()
    single = cold[3:4]
    for step in range(4):
        if step == 3:
            plan, single = torch.cat([plan[:3], cold[3:4], plan[4:]]), cold[3:4]
        start = torch.randn(5, spec.observation_dim, generator=generator(step), dtype=torch.float64)
        together, plan = search(planner, advance, start, start=plan)
        action, single = search(own, advance, start[3:4], start=single)
        torch.testing.assert_close(action, together[3:4], rtol=0, atol=1e-12)
        torch.testing.assert_close(single["mean"], plan["mean"][3:4], rtol=0, atol=1e-12)
    assert not plan["kept"].isnan().any()


def test_members_vote():
    """One member says right is good, the other that it is ten times worse than left: the mean decides."""

    def torn(observation, action):
        gain = torch.cat([torch.full((observation.shape[1] // 2,), g) for g in (1.0, -10.0)]).view(1, -1, 1)
        return observation + gain * torch.cat([action, action], -1)

    planner = make(replace(SPEC, reward=lambda o, a, n: n[..., 0]), members=2, kind="cem", horizon=1)
    action, _ = search(planner, torn, torch.zeros(3, 2))
    assert (action < -0.9).all()
    sequences = torch.tensor([[[[1.0]], [[-0.5]]]])
    assert planner.score(torn, torch.zeros(1, 2), sequences).tolist() == [[-4.5, 2.25]]


def test_discount_and_the_end_of_an_episode():
    def nowhere(observation, action, following):
        return torch.where(following[..., 0] > 3, math.nan, following[..., 0])

    ending = replace(SPEC, reward=nowhere, termination=lambda n: n[..., 0] >= 3)
    falling = replace(SPEC, training_termination=lambda n: n[..., 0] >= 1)
    for planner, total in ((make(ending, gamma=0.5), 1 + 0.5 * 2 + 0.25 * 3), (make(falling), -2)):
        assert planner.score(lambda o, a: o + 1, torch.zeros(1, 2), torch.zeros(1, 1, 6, 1)).item() == total


# -- a policy that guides


class Law:
    """Proposes what a law gives, and says what is to come from where a plan ends."""

    candidates = 3

    def __init__(self, law, value):
        self.law, self.value = law, value

    def propose(self, observation, generator):
        return self.law(observation)


def test_candidates_of_a_policy_are_among_those_tried_each_made_in_a_member():
    start = torch.tensor([[0.6, 0.3], [-0.4, -0.5]])
    planner = make(kind="mppi", members=2, candidates=4, iterations=1, temperature=1e-6, initial_std=1e-3)
    alone, _ = search(planner, cart, start)
    planner.guide = Law(lambda seen: -(seen[..., :1] + seen[..., 1:]), lambda seen: torch.zeros(seen.shape[:2]))
    tried = planner.proposals(cart, start, generator())
    assert tried.shape == (2, 4, 6, 1)  # as many in each member
    state = start
    for step in range(6):  # on from where its own choices led
        torch.testing.assert_close(tried[:, 0, step], -(state[:, :1] + state[:, 1:]))
        state = cart(state, tried[:, 0, step])
    torch.testing.assert_close(search(planner, cart, start)[0], -(start[:, :1] + start[:, 1:]))
    assert (alone + start.sum(-1, keepdim=True)).abs().min() > 0.05


def test_a_plan_is_worth_its_rewards_and_the_discounted_value_of_where_it_ends():
    planner, rising = make(gamma=0.5), torch.zeros(1, 2)
    planner.guide = Law(None, lambda seen: 10 * seen[..., 0])
    bare = -sum(0.5**step * (step + 1) ** 2 * 2 for step in range(6))
    sequence = torch.zeros(1, 1, 6, 1)
    assert planner.score(lambda o, a: o + 1, rising, sequence).item() == pytest.approx(bare + 0.5**6 * 60)
    planner.spec = replace(SPEC, training_termination=lambda n: n[..., 0] >= 3)  # nothing comes after the end
    ended = -sum(0.5**step * (step + 1) ** 2 * 2 for step in range(3))
    assert planner.score(lambda o, a: o + 1, rising, sequence).item() == pytest.approx(ended)


# -- warm start


@pytest.mark.parametrize("kind", KINDS)
def test_warm_start_helps_at_equal_budget(kind):
    returns = {}
    for warm in (True, False):
        planner = make(kind=kind, horizon=12, candidates=24, elites=6, iterations=1, temperature=0.05, warm_start=warm)
        state, total, draws = torch.randn(40, 2, generator=generator(5), dtype=torch.float64), 0.0, generator()
        plan = planner.cold(40).double()
        for _ in range(25):
            action, plan = planner.plan(cart, state, draws, plan)
            before, state = state, cart(state, action)
            total += SPEC.reward(before, action, state).mean().item()
        returns[warm] = total
    assert returns[True] > 0.9 * returns[False]  # both are negative


def test_a_plan_is_shifted_by_one_step():
    action, plan = search(make(), cart, torch.ones(2, 2))
    assert plan["mean"].shape == (2, 6, 1)
    assert (plan["mean"][:, -1] == 0).all()
    assert not (plan["mean"][:, :-1] == 0).any()
    assert search(make(), cart, torch.ones(2, 2))[0].equal(action)


# -- what must not break it


@pytest.mark.parametrize("kind", KINDS)
def test_no_finite_candidate_gives_the_safe_action_once_warned(kind, caplog):
    def broken(observation, action):
        bad = torch.full_like(observation, math.inf)
        return torch.where(observation[:, :, :1] > 5, bad, cart(observation, action))

    planner = make(kind=kind)
    state = torch.tensor([[0.3, 0.1], [9.0, 0.0]])
    with caplog.at_level(logging.WARNING):
        action, plan = search(planner, broken, state)
        again, _ = search(planner, broken, state, start=plan)
    assert action[1].tolist() == again[1].tolist() == [0.0]
    assert action[0].abs() > 0
    assert plan.isfinite().all() if kind != "icem" else plan["mean"].isfinite().all()
    assert planner.failures == 2
    assert len([record for record in caplog.records if "no candidate" in record.message]) == 1


def test_the_safe_discrete_action_is_the_one_nearest_to_nothing():
    spec = make_family("acrobot").spec
    action, _ = search(make(spec), lambda o, a: o * math.nan, torch.zeros(2, 4))
    assert spec.action_features(action).tolist() == [[0.0], [0.0]]
    assert action.sum(-1).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_some_candidates_that_are_not_finite_do_not_matter(kind):
    def half(observation, action):
        return torch.where(action > 0.2, math.nan, cart(observation, action))

    planner = make(kind=kind, temperature=0.05)
    action, plan = search(planner, half, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    assert (action <= 0.2).all()
    assert plan["mean"].isfinite().all()
    assert action[1] < -0.05
    assert planner.failures == 0


@pytest.mark.parametrize(("reward", "text"), [
    (lambda o, a, n: 1 / 0, r"cart: the reward function raised ZeroDivisionError: division by zero"),
    (lambda o, a, n: n, r"gave \(1, 64, 2\) for observations \(1, 64, 2\)"),
    (lambda o, a, n: 1.0, "gave float"),
])  # fmt: skip
def test_a_reward_function_that_raises_or_returns_another_shape_is_named(reward, text):
    with pytest.raises(EnvError, match=text):
        search(make(replace(SPEC, reward=reward)), cart, torch.zeros(1, 2))


def test_every_kind_has_a_name():
    assert FIELDS["planner.kind"].metadata["choices"] == tuple(PLANNERS)


def test_coloured_noise_has_unit_variance_and_memory():
    white, red = coloured(20, 0.0), coloured(20, 2.0)
    torch.testing.assert_close(white, torch.eye(20))
    covariance = red @ red.T
    torch.testing.assert_close(covariance.diagonal(), torch.ones(20))
    assert covariance[5, 6] > 0.8
    noise = make(kind="icem", horizon=20).noise((2, 3000, 20, 1), generator())
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert (noise[:, :, 1:] * noise[:, :, :-1]).mean() > 0.8


# -- a learned model
