"""The meta-test: adaptation curve, controls and rows, with an algorithm that knows the answer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from fakes import counter_family, fingerprint, generator, shortened
from lightning.fabric import Fabric
from tensordict import TensorDict

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.envs import make_family
from mbrl_lightning.measuring.meta_test import MetaTest
from mbrl_lightning.networks.step import GradientStep

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

    def begin(self, tasks):
        return TensorDict({"latent": torch.zeros(tasks, 1)}, batch_size=[tasks])

    def adapt(self, belief, context):
        if context.ndim == 1:
            return belief
        self.seen.append(context.shape[1])
        number = context["observation"][..., 1].mean(1, keepdim=True)
        return TensorDict({"latent": number / 10}, batch_size=[len(context)]) if context.shape[1] else belief

    def shots(self, full):
        return self.contexts(full)


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
    """What a meta-test of the oracle on the counter family found, the rows it wrote, and how long its contexts were."""

    def make(family=None, full=True, tasks=5, **evaluation):
        cfg = tiny()
        cfg.evaluation = replace(cfg.evaluation, **{"context": None, "shots": [0.0, 0.5, 1.0, 2.0]} | evaluation)
        family, rows = family or counter_family(reward=says_right), []
        test = MetaTest(
            Oracle(family, cfg),
            None,
            GradientStep(Fabric(accelerator="cpu", devices=1)),
            generator(),
            lambda metric, value, split="", task=-1, shot=-1: rows.append((metric, split, task, shot, value)),
        )
        return test.run(family.test[:tasks], "test", full), rows, test.algorithm.seen

    return make


def values(rows, metric, shot=6):
    return [row[4] for row in rows if row[0] == metric and row[3] == shot]


def means(rows, metric: str) -> dict[int, float]:
    picked = {shot: values(rows, metric, shot) for shot in {row[3] for row in rows if row[0] == metric}}
    return {shot: sum(found) / len(found) for shot, found in picked.items()}


def test_adaptation_curve_and_controls(known):
    summary, rows, seen = known()
    assert seen[:4] == [0, 3, 6, 12], "the first transitions of the same context"
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


@pytest.mark.parametrize(
    ("options", "shots"),
    [
        ({"full": False}, [6]),
        ({"shots": [0.0]}, [0, 6]),  # shot one is always measured
        ({"shots": [2.0]}, [6, 12]),
        ({"shots": [0.0, 0.5]}, [0, 3, 6]),
        ({"context": 4}, [0, 2, 4, 8]),
    ],
)
def test_shots_and_context_can_be_set(known, options, shots):
    _, rows, _ = known(**options)
    assert sorted(means(rows, "return/policy")) == shots
    controlled = means(rows, "return/random")
    assert list(controlled) == ([options.get("context", 6)] if options.get("full", True) else [])


def test_several_episodes_are_averaged_task_by_task(known):
    # the return is where the episode began
    _, rows, _ = known(counter_family(reward=lambda o, a, n: o[..., 0]), full=False, episodes=40)
    found = values(rows, "return/policy")
    assert len(found) == 5
    assert all(100 < value < 300 for value in found)  # 0, 100 .. 400 with equal chances
    assert len(set(found)) > 1


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"sampled": False, "wrong_belief": False}, {"return/sampled", "return/wrong_belief"}),
        ({"tasks": 1}, {"return/wrong_belief"}),  # one task has no other's belief
    ],
)
def test_controls_can_be_left_out(known, options, missing):
    _, rows, _ = known(**options)
    assert not {row[0] for row in rows} & missing


def test_returns_of_a_family_whose_episodes_end_early(known):
    family = counter_family(horizon=8, unit="episode", termination=lambda n: n[..., 0] % 100 >= n[..., 1])
    assert values(known(family)[1], "return/policy") == [math.ceil(number) for number in (1.5, 2.5, 3.5, 4.5, 5.5)]


def test_everything_is_drawn_from_the_evaluation_stream(known):
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        runs.append(known()[1])
    assert runs[0] == runs[1]


def test_a_families_own_metrics_become_rows(known):
    family = counter_family(
        metrics=lambda episodes: {"distance": episodes["next", "observation"][..., 0].amax(-1) % 100}
    )
    assert values(known(family, full=False)[1], "distance") == [8.0] * 5
    rows = known(family)[1]
    assert values(rows, "distance@random") == values(rows, "distance@wrong_belief") == [8.0] * 5


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
    test = MetaTest(loop.algorithm, loop.real, loop.step, generator(), lambda *a, **k: None)
    test.run(loop.family.test, "test", full=True)
    assert fingerprint(loop.algorithm.state_dict()) == before
