"""PPO: one-step bandits, the advantage estimate in closed form, what stops an update."""

from __future__ import annotations

import pytest
import torch
from fakes import fingerprint, plain_spec
from lightning.fabric import Fabric
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torchrl.modules import IndependentNormal, OneHotCategorical
from torchrl.objectives import ClipPPOLoss

from mbrl_lightning.config.schema import PolicyConfig, SearchConfig
from mbrl_lightning.errors import DivergedError
from mbrl_lightning.networks.step import GradientStep, summed
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.ppo import PPO, ClipLoss


class Setting:
    """A policy, its PPO, an optimizer and everything `update` needs."""

    def __init__(self, spec, latent: int = 0, policy: dict | None = None, lr: float = 0.02, **search) -> None:
        torch.manual_seed(0)
        self.spec, cfg = spec, PolicyConfig(hidden=[8], **(policy or {}))
        self.policy = Policy(spec, cfg, latent)
        self.ppo = PPO(self.policy, SearchConfig(**{"minibatch": 64, "max_grad_norm": 10.0, **search}), cfg)
        self.trained = [*self.policy.parameters(), *self.ppo.parameters()]
        self.optimizer = torch.optim.Adam(self.trained, lr=lr)
        self.step = GradientStep(Fabric(accelerator="cpu", devices=1))
        self.generator = torch.Generator().manual_seed(0)

    def rollout(self, reward, rows: int = 256, observation: torch.Tensor | None = None, latent=None) -> TensorDict:
        """One-step episodes; `reward` maps the action and the latent to a reward."""
        observation = torch.zeros(rows, 1, self.spec.observation_dim) if observation is None else observation
        rows = len(observation)
        latent = torch.zeros(rows, 1, self.policy.latent_dim) if latent is None else latent
        sampled = self.ppo.sample(self.policy, observation, latent, self.generator)
        after = {"observation": observation, "reward": reward(sampled["action"], latent).unsqueeze(-1)}
        ended = torch.ones(rows, 1, 1, dtype=torch.bool)
        after |= {"terminated": ended, "truncated": ~ended, "done": ended}
        seen = {"observation": observation, "age": ended[..., 0].long() - 1, "next": TensorDict(after, [rows, 1])}
        return TensorDict(sampled | seen, batch_size=[rows, 1])

    def update(self, data: TensorDict, latent: torch.Tensor | None = None) -> dict[str, float]:
        latent = torch.zeros(len(data), 1, self.policy.latent_dim) if latent is None else latent
        return self.ppo.update(self.policy, data, latent, self.step, self.optimizer, self.generator)


def nearest(goal: float):
    return lambda action, latent: -(action[..., 0] - goal).square()


def test_the_rewarded_choice_becomes_likelier():
    setting = Setting(plain_spec(observation=2, action=3, discrete=True))
    start = torch.zeros(1, 2)
    before = torch.softmax(setting.policy(start)[0], -1)[0]
    for _ in range(10):
        setting.update(setting.rollout(lambda action, latent: action[..., 2]))
    after = torch.softmax(setting.policy(start)[0], -1)[0]
    assert before[2] < 0.5
    assert after[2] > 0.8


def test_a_conditioned_policy_learns_another_action_for_each_belief():
    setting = Setting(plain_spec(observation=1, action=1), latent=1)
    latent = torch.tensor([-1.0, 1.0]).repeat(128).view(256, 1, 1)
    for _ in range(40):
        data = setting.rollout(lambda action, z: -(action[..., 0] - 0.6 * z[..., 0]).square(), latent=latent)
        setting.update(data, latent)
    means = setting.policy.inputs(torch.zeros(2, 1), torch.tensor([[-1.0], [1.0]]))
    means = setting.policy(means)[0].detach()[:, 0]
    assert float(means[0]) < -0.3
    assert float(means[1]) > 0.3


def torchrls(policy: Policy, value: torch.nn.Module, cfg: SearchConfig) -> ClipPPOLoss:
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(policy, in_keys=["inputs"], out_keys=["loc", "scale"]),
        ProbabilisticTensorDictModule(
            in_keys={"logits": "loc"} if policy.spec.discrete else ["loc", "scale"],
            out_keys=["action"],
            return_log_prob=True,
            distribution_class=OneHotCategorical if policy.spec.discrete else IndependentNormal,
        ),
    )
    critic = TensorDictModule(value, in_keys=["seen", "time"], out_keys=["state_value"])
    coefficients = {"clip_epsilon": cfg.clip_epsilon, "entropy_coeff": cfg.entropy, "critic_coeff": 0.5}
    return ClipPPOLoss(
        actor, critic, **coefficients, loss_critic_type="l2", normalize_advantage=False, functional=False
    )


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("moved", [0.0, 0.5])
def test_the_loss_and_its_gradient_are_torchrls(discrete, moved):
    setting = Setting(plain_spec(observation=2, action=3, discrete=discrete), clip_epsilon=0.1, entropy=0.05)
    data = setting.rollout(lambda action, latent: action[..., 0], observation=torch.randn(64, 1, 2))
    rows = setting.ppo.rows(setting.policy, data, torch.zeros(64, 1, 0))
    with torch.no_grad():
        for parameter in setting.policy.parameters():
            parameter += moved * torch.randn_like(parameter)
    found, slopes = [], []
    for loss in (
        ClipLoss(setting.policy, setting.ppo.value, setting.ppo.cfg),
        torchrls(setting.policy, setting.ppo.value, setting.ppo.cfg),
    ):
        out = loss(rows.clone())
        found.append({name: out[name].detach() for name in ("loss_objective", "loss_critic", "loss_entropy")})
        found[-1]["kl"] = out["kl" if "kl" in out.keys() else "kl_approx"].detach()  # noqa: SIM118 - no `in`
        trained = [p for p in setting.trained if p.requires_grad]
        slopes.append(torch.autograd.grad(summed(out.exclude("kl", "kl_approx"))["loss"], trained, allow_unused=True))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(*([s for s in part if s is not None] for part in slopes), rtol=1e-3, atol=1e-6)
    assert (abs(float(found[0]["kl"])) < 1e-6) == (moved == 0)


def chain(setting: Setting, rewards: list[float], ends: list[int]) -> TensorDict:
    """One row of states 0, 1, 2, ..., which are the ages of its only episode, if nothing ends it before."""
    states = torch.arange(len(rewards) + 1.0).view(1, -1, 1)
    done, reward = (torch.tensor(x).view(1, -1, 1) for x in (ends, rewards))
    sampled = setting.ppo.sample(setting.policy, states[:, :-1], torch.zeros(1, len(rewards), 0), setting.generator)
    after = TensorDict({"observation": states[:, 1:], "reward": reward, "done": done.bool()}, [1, len(rewards)])
    return TensorDict(sampled | {"age": states[..., :-1, 0].long(), "next": after}, [1, len(rewards)])


def targets(lam: float, ends: list[int], rewards: tuple[float, ...] = (1.0, 3.0)) -> list[float]:
    """Value targets of a row, in units of the reward, for a value that says 2 + 3 x state + 100 x share of the horizon."""
    setting = Setting(plain_spec(observation=1, action=1, horizon=10), gamma=0.9, lam=lam)

    class Known(torch.nn.Module):  # in the scaled units that PPO learns in
        def forward(self, inputs, time):
            return (2 + 3 * inputs[..., :1] + 100 * time) / setting.ppo.return_square.sqrt().float()

    setting.ppo.value = Known()
    data = chain(setting, list(rewards), ends)
    rows = setting.ppo.rows(setting.policy, data, torch.zeros(1, 1, 0))
    return (rows["value_target"][:, 0] * setting.ppo.return_square.sqrt()).tolist()


def test_nothing_is_expected_after_an_end_and_the_value_of_the_last_state_where_a_row_is_cut():
    second, third = 2 + 3 + 10, 2 + 6 + 20
    assert targets(0.0, [0, 0]) == pytest.approx([1 + 0.9 * second, 3 + 0.9 * third])
    assert targets(0.0, [0, 1]) == pytest.approx([1 + 0.9 * second, 3.0])  # whether it fell or time was up
    assert targets(0.0, [1, 0]) == pytest.approx([1.0, 3 + 0.9 * third])
    last = 3 + 0.9 * third
    assert targets(1.0, [0, 0]) == pytest.approx([1 + 0.9 * last, last])
    assert targets(1.0, [0, 1]) == pytest.approx([1 + 0.9 * 3, 3.0])
    assert targets(1.0, [1, 0]) == pytest.approx([1.0, last])


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_size_of_the_reward_does_not_matter(factor):
    advantages = []
    for size in (1.0, factor):
        setting = Setting(plain_spec(observation=1, action=1))
        data = setting.rollout(lambda action, latent, size=size: size * nearest(0.3)(action, latent))
        advantages.append(setting.ppo.rows(setting.policy, data, torch.zeros(256, 1, 0)))
    for key in ("advantage", "value_target"):
        torch.testing.assert_close(advantages[0][key], advantages[1][key], rtol=1e-3, atol=1e-4)
    assert advantages[0]["advantage"].mean().abs() < 1e-5
    assert float(advantages[0]["advantage"].std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("value", "rows"), [(0.0, 256), (1.0, 256), (1.0, 1)])
def test_equal_rewards_or_a_single_transition_stay_finite(value, rows):
    setting = Setting(plain_spec(observation=1, action=1))
    metrics = setting.update(setting.rollout(lambda action, _: torch.full_like(action[..., 0], value), rows))
    assert all(torch.isfinite(torch.tensor(list(metrics.values()))))


def test_a_reward_that_is_not_finite_moves_nothing():
    setting = Setting(plain_spec(observation=2, action=1))
    setting.update(setting.rollout(nearest(0.5)))
    before = fingerprint(setting.trained)
    data = setting.rollout(nearest(0.5))
    data["next", "reward"][3] = float("nan")
    with pytest.raises(DivergedError):
        setting.update(data)
    assert fingerprint(setting.trained) == before


def test_a_policy_that_has_moved_far_enough_ends_the_epochs():
    def steps(target_kl: float | None) -> int:
        setting = Setting(plain_spec(observation=2, action=1), lr=0.05, epochs=6, minibatch=256, target_kl=target_kl)
        setting.update(setting.rollout(nearest(0.7)))
        return setting.step.count

    assert steps(None) == 6
    assert 1 < steps(0.02) < 6
    assert steps(1e-9) in (1, 2)  # the first epoch starts from no movement


def test_a_small_remainder_is_no_step_of_its_own():
    setting = Setting(plain_spec(observation=2, action=1), epochs=1, minibatch=100, target_kl=None)
    setting.update(setting.rollout(nearest(0.7), rows=230))
    assert setting.step.count == 2  # 100 + 100, the 30 left out
    setting.update(setting.rollout(nearest(0.7), rows=40))
    assert setting.step.count == 3  # but a batch that is small altogether counts


def test_ranks_share_every_minibatch(monkeypatch):
    setting, shared = Setting(plain_spec(observation=2, action=1), epochs=2, minibatch=64, target_kl=None), []
    monkeypatch.setattr(setting.step, "share", lambda batch: shared.append(len(batch)) or batch[: len(batch) // 2])
    setting.update(setting.rollout(nearest(0.5), rows=128))
    assert shared == [64] * 4


def test_entropy_bonus_keeps_the_policy_wide():
    scales = []
    for entropy in (0.0, 0.5):
        setting = Setting(plain_spec(observation=2, action=1), entropy=entropy)
        for _ in range(10):
            setting.update(setting.rollout(nearest(0.0)))
        scales.append(float(setting.policy.log_std.detach().exp()))
    assert scales[1] > scales[0]
