"""TRPO and MAML-TRPO: exact products and gradients, the region kept to, steps that find nothing."""

from __future__ import annotations

import logging

import pytest
import torch
from fakes import plain_spec
from lightning.fabric import Fabric
from tensordict import TensorDict

from mbrl_lightning.beliefs.gradient import GradientAdaptation, repeat
from mbrl_lightning.config.methods import MetaConfig
from mbrl_lightning.config.schema import PolicyConfig
from mbrl_lightning.errors import DivergedError
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.trust_region import (
    TrustRegion,
    conjugate_gradient,
    executed_density,
    flatten,
    inner_loss,
    sampled_rows,
    unflatten,
)

TASKS, ROWS = 3, 40


class Setting:
    """A policy in float64, an inner step, and a batch sampled by the policies it leads to."""

    def __init__(
        self, discrete: bool = False, size: float = 0.3, steps: int = 1, first_order: bool = False, **changes
    ) -> None:
        torch.manual_seed(0)
        self.spec = plain_spec(discrete=discrete)
        self.policy = Policy(self.spec, PolicyConfig(hidden=[8]), 0).double()
        with torch.no_grad():  # away from the start, where all outputs are almost equal
            self.policy.net[-1].weight.mul_(10)
        adaptation = GradientAdaptation(list(self.policy.adaptable()), size, steps, first_order=first_order).double()
        self.outer = TrustRegion(self.policy, MetaConfig(**{"subsample": 1, "damping": 0.0} | changes), adaptation)
        self.step = GradientStep(Fabric(accelerator="cpu", devices=1))
        self.generator = torch.Generator().manual_seed(1)
        parameters, support = repeat(self.start().items(), TASKS, stacked=True), []
        one = GradientAdaptation(adaptation.names, size).double()
        with torch.no_grad():
            for _ in range(0 if adaptation.idle else steps):
                support.append(self.rows(parameters))
                parameters = one(inner_loss(self.policy, support[-1]), parameters)
        self.batch = TensorDict({"target": self.rows(parameters)}, batch_size=[TASKS])
        if support:
            self.batch["support"] = torch.stack(support, 1)

    def start(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.policy.adaptable().items()}

    @torch.no_grad()
    def rows(self, parameters) -> TensorDict:
        inputs = torch.randn(TASKS, ROWS, 3, generator=self.generator).double()
        loc, scale = self.policy.distribution(inputs, parameters)
        action = self.policy.choose(loc, self.policy.noise((TASKS, ROWS), self.generator).double(), scale)
        gain = action.double()[..., 0] * inputs[..., 0] + 0.1 * torch.randn(TASKS, ROWS, generator=self.generator)
        data = TensorDict(
            {"inputs": inputs, "action": action.double(), "loc": loc, "advantage": gain}, batch_size=[TASKS, ROWS]
        )
        return sampled_rows(self.policy, data.unsqueeze(1), scale)

    def loss(self) -> TensorDict:
        """What the LossModule gives after the inner steps, differentiable through them."""
        return self.outer.judge(self.batch, self.outer.adapt(self.batch, self.policy.adaptable()))

    def gradient(self) -> torch.Tensor:
        return self.outer._gradient(self.batch, self.outer.linearise(self.batch), self.step)[0]

    def product(self):
        return self.outer._products(self.batch, self.outer.linearise(self.batch).adapted, self.step)


CASES = [
    {"size": 0.0},
    {},
    {"steps": 2},
    {"discrete": True},
    {"discrete": True, "size": 0.0},
    {"first_order": True},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gradient_equals_automatic_differentiation_through_the_inner_steps(case):
    setting = Setting(**case)
    own = setting.policy.adaptable()
    found = torch.autograd.grad(-setting.loss()["loss_objective"], list(own.values()))
    torch.testing.assert_close(setting.gradient(), flatten(dict(zip(own, found, strict=True))), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_products_equal_double_differentiation_of_the_divergence(case):
    setting = Setting(**case)
    own = list(setting.policy.adaptable().values())
    slopes = torch.autograd.grad(setting.loss()["kl"], own, create_graph=True)
    vector = torch.randn_like(setting.gradient())
    along = sum((s * v).sum() for s, v in zip(slopes, unflatten(vector, setting.start()).values(), strict=True))
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(along, own)])
    torch.testing.assert_close(setting.product()(vector), expected, rtol=1e-8, atol=1e-11)


def test_products_on_a_share_of_the_rows_are_of_those_rows():
    few, whole = Setting(subsample=4), Setting()
    whole.batch = TensorDict(
        {"target": few.batch["target"][:, ::4], "support": few.batch["support"][:, :, ::4]}, batch_size=[TASKS]
    )
    adapted = few.outer.linearise(few.batch).adapted
    vector = torch.randn_like(few.gradient())
    one, other = (each.outer._products(each.batch, adapted, each.step)(vector) for each in (few, whole))
    torch.testing.assert_close(one, other)
    assert not torch.allclose(one, Setting().product()(vector))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_improves_the_policy_within_the_region(case):
    setting = Setting(**case)
    before = setting.loss().detach()
    assert abs(float(before["kl"])) < 1e-12  # the batch was sampled by the adapted policies
    found = setting.outer(setting.batch, setting.step)
    after = setting.loss().detach()
    assert found["accepted"] == 1
    assert 0 < found["kl"] <= 0.01
    assert float(after["kl"]) == pytest.approx(found["kl"])
    assert float(before["loss_objective"] - after["loss_objective"]) == pytest.approx(found["surrogate"])
    assert found["surrogate"] > 0
    assert setting.step.count == 1
    assert (found["inner_kl"] > 0) == (case.get("size") != 0.0)


def test_a_small_region_is_filled():
    setting = Setting(size=0.0, cg_steps=50, delta=1e-6)
    found = setting.outer(setting.batch, setting.step)
    assert found["backtracks"] <= 1
    assert found["kl"] / 0.8 ** (2 * found["backtracks"]) == pytest.approx(1e-6, rel=0.02)


def test_a_search_that_improves_nothing_says_so_and_leaves_the_policy(caplog):
    setting = Setting()
    before = setting.start()

    def worse(module, given, out):  # every trial of the line search, which alone needs no gradient
        out["loss_objective"] = out["loss_objective"] + float(not torch.is_grad_enabled())

    setting.outer.loss.register_forward_hook(worse)
    with caplog.at_level(logging.WARNING):
        found = setting.outer(setting.batch, setting.step)
    assert found["accepted"] == 0
    assert found["backtracks"] == 15
    assert found["kl"] == 0
    assert all(torch.equal(value, before[name]) for name, value in setting.start().items())
    assert setting.step.count == 0
    assert "left as it was" in caplog.text


def test_no_advantages_move_nothing(caplog):
    setting = Setting(size=0.0)
    setting.batch["target", "advantage"] = torch.zeros(TASKS, ROWS).double()
    before = setting.start()
    assert setting.outer(setting.batch, setting.step)["accepted"] == 0
    assert all(torch.equal(value, before[name]) for name, value in setting.start().items())


@pytest.mark.parametrize("where", ["target", "support"])
def test_what_is_not_finite_raises_and_leaves_the_policy(where):
    setting = Setting()
    setting.batch[where, "advantage"] = torch.full_like(setting.batch[where, "advantage"], torch.nan)
    before = setting.start()
    with pytest.raises(DivergedError, match="not finite"):
        setting.outer(setting.batch, setting.step)
    assert all(torch.equal(value, before[name]) for name, value in setting.start().items())


def test_conjugate_gradient_solves_in_as_many_steps_as_dimensions():
    torch.manual_seed(0)
    root = torch.randn(6, 6).double()
    matrix, target = root @ root.T + torch.eye(6), torch.randn(6).double()
    solution = conjugate_gradient(lambda v: matrix @ v, target, 6)
    torch.testing.assert_close(matrix @ solution, target, rtol=0, atol=1e-9)
    assert (conjugate_gradient(lambda v: matrix @ v, torch.zeros(6).double(), 6) == 0).all()


def test_the_density_of_clipped_actions_counts_what_lies_beyond_the_bound():
    policy = Policy(plain_spec(), PolicyConfig(hidden=[8]), 0)
    loc, scale = torch.tensor([[[0.3, -0.2]]]), torch.tensor([[[0.5, 0.8]]])
    grid = torch.linspace(-1, 1, 2001)
    for entry, other in ((0, 1), (1, 0)):
        total = 0.0
        for action, width in ((-1.0, 1.0), (1.0, 1.0), *((float(x), 1e-3) for x in grid[1:-1])):
            both = torch.zeros(1, 1, 2)
            both[..., entry], both[..., other] = action, 1.0
            total += width * float(executed_density(policy, (loc, scale), both).exp())
        beyond = torch.special.ndtr((loc[..., other] - 1) / scale[..., other])
        assert total == pytest.approx(float(beyond), rel=2e-3)
