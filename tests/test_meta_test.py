"""Measures of the meta-test on models, beliefs and episodes whose answers are known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from fakes import counter_family, fingerprint, plain_spec, shortened
from tensordict import TensorDict

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.envs import make_family
from mbrl_lightning.measures import first_valid, linear_probe, multi_step_error, one_step_error, until_fall
from mbrl_lightning.meta_test import MetaTest
from mbrl_lightning.step import GradientStep


class Model:
    """A model that predicts `rule(observation, action)`."""

    def __init__(self, rule, spec=None):
        self.spec, self.rule = spec or plain_spec(observation=2, action=1), rule

    def predict(self, observation, action, belief, noise=None):
        return self.rule(observation, action)


def truth(observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    return 0.9 * observation + action * torch.tensor([1.0, 3.0])


def still(observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    return observation


def episodes(tasks: int = 3, steps: int = 200, ends: dict[int, int] | None = None) -> TensorDict:
    """Episodes of `truth` under random actions; task `t` ends after `ends[t]` steps and stands still from there."""
    generator = torch.Generator().manual_seed(0)
    observation, rows = torch.randn(tasks, 2, generator=generator), []
    alive = torch.ones(tasks, dtype=torch.bool)
    for t in range(steps):
        action = 2 * torch.rand(tasks, 1, generator=generator) - 1
        for task, end in (ends or {}).items():
            alive = alive & ~((torch.arange(tasks) == task) & (t >= end))
        following = torch.where(alive.unsqueeze(1), truth(observation, action), observation)
        rows.append((observation, action, following, alive.clone()))
        observation = following
    columns = [torch.stack(column, 1) for column in zip(*rows, strict=True)]
    return TensorDict(
        {"observation": columns[0], "action": columns[1], "next": {"observation": columns[2]}, "valid": columns[3]},
        batch_size=[tasks, steps],
    )


NOTHING = TensorDict({"latent": torch.zeros(3, 0)}, batch_size=[3])


# -- one-step error


def test_a_perfect_model_has_no_error_and_the_null_model_that_of_no_change():
    data = episodes()
    perfect, null = one_step_error(Model(truth), data, NOTHING), one_step_error(Model(still), data, NOTHING)
    for name in ("mse", "nmse"):
        assert perfect[name].shape == (3,)
        assert perfect[name].max() < 1e-10
        torch.testing.assert_close(null[name], null[f"null_{name}"])
        torch.testing.assert_close(null[f"null_{name}"], perfect[f"null_{name}"])
        assert (null[name] > 0.1).all()


def test_raw_and_normalised_error_by_hand():
    data = episodes(tasks=3, steps=50)
    error = one_step_error(Model(lambda o, a: truth(o, a) + torch.tensor([0.5, 2.0])), data, NOTHING)
    torch.testing.assert_close(error["mse"], torch.full((3,), (0.25 + 4.0) / 2))
    change = (data["next", "observation"] - data["observation"]).reshape(-1, 2)
    expected = torch.tensor([0.25, 4.0]) / change.var(0)
    torch.testing.assert_close(error["nmse"], expected.mean().expand(3))
    torch.testing.assert_close(error["outputs"], expected)


def test_errors_are_told_apart_by_task():
    data = episodes()

    def wrong_in_the_second(observation, action):
        out = truth(observation, action)
        out[1] += 1.0
        return out

    error = one_step_error(Model(wrong_in_the_second), data, NOTHING)["mse"]
    torch.testing.assert_close(error, torch.tensor([0.0, 1.0, 0.0]))


def test_errors_of_angles_are_taken_the_short_way_round():
    def wrap(o, n):
        return torch.remainder(n - o + torch.pi, 2 * torch.pi) - torch.pi

    data = TensorDict(
        {
            "observation": torch.full((1, 4, 1), 3.1),
            "action": torch.zeros(1, 4, 1),
            "next": {"observation": torch.full((1, 4, 1), 3.2 - 2 * torch.pi)},
        },
        batch_size=[1, 4],
    )
    model = Model(lambda o, a: o + 0.1, plain_spec(observation=1, action=1, change=wrap))
    assert one_step_error(model, data, NOTHING[:1])["mse"].max() < 1e-9


def test_an_output_that_never_changes_costs_no_division_by_zero():
    data = episodes()
    data["observation"][..., 0] = data["next", "observation"][..., 0] = 1.0
    error = one_step_error(Model(still), data, NOTHING)
    assert torch.isfinite(error["nmse"]).all()


# -- several steps


def test_several_steps_of_a_perfect_and_of_a_null_model():
    data = episodes()
    assert multi_step_error(Model(truth), data, NOTHING).max() < 1e-8
    assert (multi_step_error(Model(still), data, NOTHING) > 0.3).all()


def test_several_steps_are_open_loop_along_the_real_actions():
    """A constant error of one step adds up over ten: 1 + .9 + ... + .9^9."""
    data = episodes(tasks=1, steps=400)
    off = multi_step_error(Model(lambda o, a: truth(o, a) + 0.1), data, NOTHING[:1])
    first = torch.arange(39) * 10
    change = data["next", "observation"][0, first + 9] - data["observation"][0, first]
    size = 0.1 * sum(0.9**t for t in range(10))
    torch.testing.assert_close(off, (size**2 / change.var(0, correction=0)).mean().unsqueeze(0), rtol=1e-3, atol=0)


def test_steps_after_the_end_of_an_episode_do_not_count():
    whole = multi_step_error(Model(still), episodes(tasks=1, steps=100), NOTHING[:1])
    ended = episodes(tasks=1, steps=400, ends={0: 100})
    shortened_error = multi_step_error(Model(still), ended, NOTHING[:1])
    assert float(shortened_error) == pytest.approx(float(whole), rel=0.15)  # not a quarter of it


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
def test_short_episodes(steps):
    assert multi_step_error(Model(truth), episodes(tasks=3, steps=steps), NOTHING).max() < 1e-6


def test_valid_transitions_are_picked_evenly_and_only_they():
    data = episodes(tasks=3, steps=60, ends={0: 20, 2: 45})
    data["time"] = torch.arange(60).expand(3, 60)
    picked = first_valid(data, 1000)
    assert picked.shape == (3, 20)
    assert picked["valid"].all()
    assert picked["time"][0].tolist() == list(range(20))
    assert picked["time"][1].tolist() == list(range(0, 60, 3))
    assert first_valid(data, 7).shape == (3, 7)


# -- linear probe


def latents(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=generator), torch.randn(5, 2, generator=torch.Generator().manual_seed(99))


def test_probe_finds_a_linear_map():
    (train, weights), (test, _) = latents(64, 1), latents(50, 2)
    scores = linear_probe(train, train @ weights + 3.0, test, test @ weights + 3.0)
    assert scores.shape == (2,)
    assert (scores > 0.99).all()


def test_probe_does_not_care_for_the_scale_of_the_latent():
    (train, weights), (test, _) = latents(64, 1), latents(50, 2)
    for factor in (1e-4, 1e4):
        assert (linear_probe(factor * train, train @ weights, factor * test, test @ weights) > 0.99).all()


def test_probe_finds_nothing_in_noise_and_nothing_in_a_collapsed_latent():
    (train, _), (test, _) = latents(64, 1), latents(50, 2)
    generator = torch.Generator().manual_seed(3)
    parameters, test_parameters = torch.randn(64, 2, generator=generator), torch.randn(50, 2, generator=generator)
    assert (linear_probe(train, parameters, test, test_parameters) < 0.1).all()
    flat = linear_probe(torch.ones(64, 5), parameters, torch.ones(50, 5), test_parameters)
    assert (flat < 0.1).all()
    assert torch.isfinite(flat).all()


def test_probe_is_scored_on_held_out_tasks():
    generator = torch.Generator().manual_seed(4)
    train, parameters = torch.randn(6, 5, generator=generator), torch.randn(6, 2, generator=generator)
    test, test_parameters = torch.randn(50, 5, generator=generator), torch.randn(50, 2, generator=generator)
    assert (linear_probe(train, parameters, train, parameters) > 0.8).all()  # five latents fit six tasks by heart
    assert (linear_probe(train, parameters, test, test_parameters) < 0.2).all()


def test_probe_of_an_empty_latent_is_zero():
    assert linear_probe(torch.zeros(9, 0), torch.randn(9, 2), torch.zeros(4, 0), torch.randn(4, 2)).tolist() == [0, 0]


# -- wrong beliefs


@pytest.mark.parametrize("tasks", range(2, 12))
def test_no_task_gets_its_own_belief_as_the_wrong_one(tasks):
    belief = TensorDict({"latent": torch.arange(tasks).unsqueeze(1)}, batch_size=[tasks])
    given = MetaTest.another(belief)["latent"][:, 0].tolist()
    assert sorted(given) == list(range(tasks))
    assert all(own != other for own, other in enumerate(given))


# -- a whole meta-test, with an algorithm that knows the answer


class Oracle(Algorithm):
    """Believes the mean task number of its context; the policy says it aloud."""

    def __init__(self, family, cfg):
        super().__init__(family, cfg)
        self.policy = Speaker()
        self.seen = []

    def adapt(self, context):
        self.seen.append(context.shape[1])
        number = (
            context["observation"][..., 1].mean(1, keepdim=True) if context.shape[1] else torch.zeros(len(context), 1)
        )
        return TensorDict({"latent": number / 10}, batch_size=[len(context)])


class Speaker(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def act(self, observation, belief, noise=None):
        return belief["latent"] + (0 if noise is None else 0.5 + 0 * noise)

    def noise(self, shape, generator):
        return torch.randn(*shape, 1, generator=generator)


def says_right(observation, action, following):
    """0 if the action is the task's number over ten, else minus the distance."""
    return -(action[..., 0] - observation[..., 1] / 10).abs()


@pytest.fixture
def known(tiny):
    """A meta-test of the oracle on the counter family, and the rows it wrote."""

    def make(family=None, **evaluation):
        cfg = tiny()
        cfg.evaluation = replace(cfg.evaluation, **{"context": None, "shots": [0.0, 0.5, 1.0, 2.0]} | evaluation)
        family = family or counter_family(reward=says_right)
        from lightning.fabric import Fabric

        rows = []
        test = MetaTest(
            Oracle(family, cfg),
            None,
            GradientStep(Fabric(accelerator="cpu", devices=1)),
            torch.Generator().manual_seed(0),
            lambda metric, value, split="", task=-1, shot=-1: rows.append((metric, split, task, shot, value)),
        )
        return test, rows

    return make


def means(rows, metric: str) -> dict[int, float]:
    shots = {row[3] for row in rows if row[0] == metric}
    picked = {shot: [row[4] for row in rows if row[0] == metric and row[3] == shot] for shot in shots}
    return {shot: sum(values) / len(values) for shot, values in picked.items()}


def test_adaptation_curve_and_controls(known):
    test, rows = known()
    summary = test.run(test.algorithm.family.test, "test", full=True)
    curve = means(rows, "return/policy")
    assert sorted(curve) == [0, 3, 6, 12]
    assert curve[0] == pytest.approx(-0.35)  # said 0 where 0.15 .. 0.55 was right
    for shot in (3, 6, 12):
        assert curve[shot] == pytest.approx(0, abs=1e-6)
    assert summary["return/policy"] == pytest.approx(0, abs=1e-6)
    assert means(rows, "return/sampled") == {6: pytest.approx(-0.49, abs=1e-6)}  # one is clipped
    # tasks 1.5 2.5 3.5 4.5 5.5 hear of 4.5 5.5 1.5 2.5 3.5
    assert means(rows, "return/wrong_belief") == {6: pytest.approx(-0.24, abs=1e-6)}
    assert -1.2 < means(rows, "return/random")[6] < -0.3
    assert {row[1] for row in rows} == {"test"}
    assert [row[2] for row in rows if row[0] == "return/policy" and row[3] == 6] == [0, 1, 2, 3, 4]


def test_each_shot_uses_the_first_transitions_of_the_same_context(known):
    test, _ = known()
    test.run(test.algorithm.family.test, "test", full=True)
    assert test.algorithm.seen[:4] == [0, 3, 6, 12]


def test_short_form_is_the_return_at_shot_one_alone(known):
    test, rows = known()
    test.run(test.algorithm.family.test, "test", full=False)
    assert {(row[0], row[3]) for row in rows} == {("return/policy", 6)}


@pytest.mark.parametrize("shots", [[0.0], [2.0], [0.0, 0.5]])
def test_shot_one_is_always_measured(known, shots):
    test, rows = known(shots=shots)
    test.run(test.algorithm.family.test, "test", full=True)
    assert 6 in means(rows, "return/policy")
    assert set(means(rows, "return/random")) == {6}


def test_context_length_can_be_set(known):
    test, rows = known(context=4)
    test.run(test.algorithm.family.test, "test", full=True)
    assert sorted(means(rows, "return/policy")) == [0, 2, 4, 8]


def test_several_episodes_are_averaged_task_by_task(known):
    family = counter_family(reward=lambda o, a, n: o[..., 0])  # the return is where the episode began
    test, rows = known(family, episodes=40)
    test.run(family.test, "test", full=False)
    values = [row[4] for row in rows if row[0] == "return/policy"]
    assert len(values) == 5
    assert all(100 < value < 300 for value in values)  # 0, 100 .. 400 with equal chances
    assert len(set(values)) > 1


def test_controls_can_be_left_out(known):
    test, rows = known(sampled=False, wrong_belief=False)
    test.run(test.algorithm.family.test, "test", full=True)
    assert not {row[0] for row in rows} & {"return/sampled", "return/wrong_belief"}


def test_one_task_has_no_wrong_belief(known):
    test, rows = known()
    test.run(test.algorithm.family.test[:1], "test", full=True)
    assert "return/wrong_belief" not in {row[0] for row in rows}


def test_returns_of_a_family_whose_episodes_end_early(known):
    family = counter_family(horizon=8, unit="episode", termination=lambda n: n[..., 0] % 100 >= n[..., 1])
    test, rows = known(family)
    test.run(family.test, "test", full=True)
    values = [row[4] for row in rows if row[0] == "return/policy" and row[3] == 6]
    assert values == [math.ceil(number) for number in (1.5, 2.5, 3.5, 4.5, 5.5)]


def test_everything_is_drawn_from_the_evaluation_stream(known):
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        test, rows = known()
        test.run(test.algorithm.family.test, "test", full=True)
        runs.append(rows)
    assert runs[0] == runs[1]


def test_a_families_own_metrics_become_rows(known):
    family = counter_family(
        metrics=lambda episodes: {"distance": episodes["next", "observation"][..., 0].amax(-1) % 100}
    )
    test, rows = known(family)
    test.run(family.test, "test", full=False)
    assert [row[4] for row in rows if row[0] == "distance"] == [8.0] * 5


# -- with a model


def test_wrong_context_is_measured_beside_the_right_one_and_collapse_is_told(make_loop):
    loop = make_loop(family=shortened(make_family("cartpole"), test=4), loop={"iterations": 1})
    rows = loop.fit().rows
    values = {row.metric: row.value for row in rows}
    assert values["latent/collapse"] == float(values["latent/spread"] < 0.1 * values["latent/scale"])
    for name in ("mse", "nmse", "wrong_mse", "wrong_nmse", "null_mse", "null_nmse"):
        if not name.startswith("null"):
            assert len([row for row in rows if row.metric == f"model/{name}_random"]) == 4
        assert len([row for row in rows if row.metric == f"model/{name}"]) == 4


def test_the_tested_algorithm_is_not_changed(make_loop):
    loop = make_loop("gssm", loop={"iterations": 1})
    loop.fit()
    before = fingerprint(loop.algorithm.state_dict())
    MetaTest(loop.algorithm, loop.real, loop.step, torch.Generator().manual_seed(0), lambda *a, **k: None).run(
        loop.family.test, "test", full=True
    )
    assert fingerprint(loop.algorithm.state_dict()) == before


def test_errors_are_measured_up_to_the_first_fall():
    spec = plain_spec(training_termination=lambda following: following[..., 0] > 2)
    heights = torch.tensor([[0.0, 1.0, 3.0, 0.0, 3.0]]).unsqueeze(-1)
    episodes = TensorDict({"valid": torch.ones(1, 5, dtype=torch.bool), "next": {"observation": heights}}, [1, 5])
    assert until_fall(episodes, spec)["valid"].tolist() == [[True, True, True, False, False]]
    assert until_fall(episodes, plain_spec())["valid"].all()
