"""Back-propagation through imagined rollouts against finite differences, and batching against one at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict

from mbrl_lightning.config.schema import DynamicsConfig, PolicyConfig
from mbrl_lightning.envs import make_family
from mbrl_lightning.models.latent import LatentDynamics
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.pathwise import PathwiseLoss, moment_matched

SPEC = make_family("cartpole").spec
TASKS, ROWS, LATENT = 2, 4, 3


def model(members: int = 2) -> LatentDynamics:
    torch.manual_seed(0)
    cfg = DynamicsConfig(latent_dim=LATENT, width=8, hidden=16, layers=1, members=members)
    net = LatentDynamics(SPEC, cfg).double().requires_grad_(False)
    for normalizer in (net.input_norm, net.target_norm):  # statistics that matter
        normalizer.loc.uniform_(-0.2, 0.2)
        normalizer.inverse_std.uniform_(0.5, 2.0)
    return net


def policy(copies: int, kind: str = "mlp") -> Policy:
    torch.manual_seed(1)
    cfg = PolicyConfig(kind=kind, hidden=[8], activation="tanh")
    return Policy(SPEC, cfg, LATENT, copies, squash=True).double()


def batch_of(dynamics: LatentDynamics, tasks: int = TASKS) -> TensorDict:
    torch.manual_seed(2)
    seen, action, after = (torch.randn(tasks, 5, width) for width in (4, 1, 4))
    context = {"observation": seen, "action": action, "next": {"observation": after}}
    belief = dynamics.infer(TensorDict(context, [tasks, 5]).double())
    belief["latent"] = belief["loc"]
    # near the upright, where the reward has a slope
    observation = 0.3 * torch.randn(tasks, ROWS, 4, dtype=torch.float64)
    noise = torch.randn(tasks, ROWS, LATENT, dtype=torch.float64)
    return TensorDict({"observation": observation, "belief": belief, "noise": noise}, batch_size=[tasks])


def flat(policies: Policy) -> list[torch.nn.Parameter]:
    return list(policies.net.parameters())


@pytest.mark.parametrize("kind", ["mlp", "rbf"])
@pytest.mark.parametrize("paired", [False, True])
def test_gradient_equals_finite_differences(kind, paired):
    dynamics, policies = model(), policy(TASKS, kind)
    batch = batch_of(dynamics)
    loss = PathwiseLoss(policies, dynamics, horizon=5, gamma=0.9, paired=paired).double()
    loss(batch)["loss_policy"].backward()
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in flat(policies)]
        slope = sum(float((p.grad * d).sum()) for p, d in zip(flat(policies), direction, strict=True))
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(flat(policies), direction, strict=True):
                    p.add_(sign * 1e-6 * d)
                values.append(float(loss(batch)["loss_policy"]))
                for p, d in zip(flat(policies), direction, strict=True):
                    p.sub_(sign * 1e-6 * d)
        assert abs(slope) > 1e-4
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-4)


def single(policies: Policy, copy: int) -> Policy:
    one = policy(1)
    one.net.load_state_dict({name: value[copy : copy + 1] for name, value in policies.net.state_dict().items()})
    return one


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("paired", [False, True])
def test_many_policies_at_once_equal_each_alone(members, paired):
    dynamics, policies = model(members), policy(TASKS if paired else 3)
    batch = batch_of(dynamics)
    together = PathwiseLoss(policies, dynamics, 4, 0.95, paired=paired).double()(batch)
    together["loss_policy"].backward()
    for copy in range(policies.copies):
        one = single(policies, copy)
        alone = PathwiseLoss(one, dynamics, 4, 0.95).double()(batch[copy : copy + 1] if paired else batch)
        alone["loss_policy"].backward()
        torch.testing.assert_close(together["imagined_return"][copy], alone["imagined_return"][0])
        for p, q in zip(flat(policies), flat(one), strict=True):
            torch.testing.assert_close(p.grad[copy], q.grad[0])
    torch.testing.assert_close(together["loss_policy"].detach(), -together["imagined_return"].sum())


@pytest.mark.parametrize("members", [1, 2])
def test_the_return_is_the_discounted_mean_of_the_familys_reward(members):
    """One rollout by hand: policy, model, reward, in a loop; each member has its own share of the starts."""
    dynamics, policies = model(members), policy(1)
    batch = batch_of(dynamics, tasks=1)
    observation, total, gamma = batch["observation"], 0.0, 0.8
    latent = batch["belief", "latent"].unsqueeze(1).expand(-1, ROWS, -1)
    with torch.no_grad():
        for t in range(6):
            action = policies.head(policies.inputs(observation, latent))
            following = dynamics.imagine(observation, action, batch["belief"], batch["noise"])
            total += gamma**t * float(SPEC.reward(observation, action, following).mean())
            observation = following
        out = PathwiseLoss(policies, dynamics, 6, gamma).double()(batch)
    assert float(out["imagined_return"]) == pytest.approx(total / sum(gamma**t for t in range(6)))


def test_only_the_given_members_are_imagined_with():
    dynamics, policies = model(4), policy(1)
    batch = batch_of(dynamics)
    before = PathwiseLoss(policies, dynamics, 3, members=slice(0, 2)).double()(batch)["imagined_return"]
    with torch.no_grad():
        for p in dynamics.decoder.parameters():
            p[2:] += 1.0
    assert torch.equal(
        PathwiseLoss(policies, dynamics, 3, members=slice(0, 2)).double()(batch)["imagined_return"], before
    )
    assert not torch.equal(PathwiseLoss(policies, dynamics, 3).double()(batch)["imagined_return"], before)


def test_what_is_imagined_after_an_end_counts_for_nothing():
    """A cart that is over after 3 of 30 steps: rewards of 1 a step make .1, and no gradient comes from the rest."""
    dynamics, policies = model(1), policy(1)
    calls = []

    def third(following):
        calls.append(None)
        return torch.full(following.shape[:-1], len(calls) % 3 == 0)

    def reward(observation, action, following):
        return 1 + 0 * action[..., 0]

    dynamics.spec = replace(SPEC, termination=third, reward=reward)
    out = PathwiseLoss(policies, dynamics, 30).double()(batch_of(dynamics))
    assert out["imagined_return"].tolist() == pytest.approx([0.1])


def test_moment_matching_keeps_each_groups_moments_and_their_gradient_and_no_more():
    generator = torch.Generator().manual_seed(0)
    centre = torch.tensor([0.0, 5.0, -5.0, 9.0], dtype=torch.float64).view(2, 2, 1, 1)  # [tasks, policies]
    spread = torch.tensor([1.0, 0.1], dtype=torch.float64).view(1, 2, 1, 1)
    particles = centre + spread * torch.rand(2, 2, 20_000, 3, generator=generator, dtype=torch.float64)
    flat = particles.flatten(1, 2).requires_grad_()
    drawn = moment_matched(flat, 20_000, generator).view(2, 2, 20_000, 3)
    torch.testing.assert_close(drawn.mean(2), particles.mean(2), rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.std(2), particles.std(2), rtol=0.03, atol=0)
    assert drawn[0, 0].max() > 1.5  # a normal has tails where the uniform has an edge
    (slope,) = torch.autograd.grad(drawn[0, 0].mean(), flat)
    assert slope[0, :20_000].sum().item() == pytest.approx(1, abs=0.05)
    assert (
        slope[0, 20_000:].abs().sum() == slope[1].abs().sum() == 0
    )  # particles of other policies and tasks stay out of it
