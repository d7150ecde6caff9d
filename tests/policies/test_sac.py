"""Soft actor-critic: losses against an unbatched computation by hand, where gradients go, and a task told by the history."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from fakes import fingerprint
from lightning.fabric import Fabric
from tensordict import TensorDict
from torchrl.modules import TanhNormal
from torchrl.objectives import LossModule

from mbrl_lightning.beliefs.history import HistoryNet
from mbrl_lightning.config.methods import SACConfig
from mbrl_lightning.config.schema import PolicyConfig
from mbrl_lightning.errors import DivergedError
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.sac import SAC

PAIR, CURRENT, ACTION, LENGTH = 3, 2, 2, 4


def make(recurrent: int = 5, pair: int = PAIR, current: int = CURRENT, action: int = ACTION, **cfg) -> SAC:
    torch.manual_seed(0)
    policy = PolicyConfig(hidden=[16, 16], activation="silu")
    return SAC(policy, SACConfig(**{"lr": 3e-3, **cfg}), pair, current, action, recurrent)


def stepper() -> GradientStep:
    return GradientStep(Fabric(accelerator="cpu", devices=1))


def optimizer(sac: SAC) -> torch.optim.Optimizer:
    return torch.optim.Adam(sac.trained_parameters(), lr=sac.cfg.lr)


def transitions(rows: int = 12, seed: int = 0, dtype: torch.dtype = torch.float32) -> TensorDict:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=dtype)

    def histories() -> TensorDict:
        mask = torch.arange(LENGTH) >= torch.randint(LENGTH + 1, (rows, 1), generator=draw)
        columns = {"pairs": normal(rows, LENGTH, PAIR) * mask.unsqueeze(-1), "mask": mask}
        return TensorDict(columns | {"current": normal(rows, CURRENT)}, batch_size=[rows])

    ended = (torch.rand(rows, 1, generator=draw) < 0.3).to(dtype)
    after = TensorDict({"inputs": histories(), "reward": normal(rows, 1), "terminated": ended}, batch_size=[rows])
    columns = {"inputs": histories(), "action": normal(rows, ACTION).tanh(), "next": after}
    return TensorDict(columns | {"noise": normal(rows, 2, ACTION)}, batch_size=[rows])


def by_hand(net: HistoryNet, copy: int, inputs: TensorDict, extra: torch.Tensor | None = None) -> torch.Tensor:
    """One network on one history after another, `[N, outputs]`: PyTorch's cell on the real pairs, then its affine maps."""
    outputs = []
    for row in range(len(inputs)):
        state = torch.zeros(1, net.gru.hidden, dtype=inputs["pairs"].dtype)
        for pair in inputs["pairs"][row][inputs["mask"][row]]:
            weights = (net.gru.weight_input[copy].T, net.gru.weight_hidden[copy].T)
            state = torch.gru_cell(
                pair.unsqueeze(0), state, *weights, net.gru.bias_input[copy, 0], net.gru.bias_hidden[copy, 0]
            )
        x = torch.cat([state[0], inputs["current"][row], *([] if extra is None else [extra[row]])])
        for layer in net.net:
            x = F.linear(x, layer.weight[copy].T, layer.bias[copy, 0]) if hasattr(layer, "weight") else F.silu(x)
        outputs.append(x)
    return torch.stack(outputs)


def propose(sac: SAC, inputs: TensorDict, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    loc, raw = by_hand(sac.policy, 0, inputs).chunk(2, -1)
    scale = torch.exp(-1.5 + 3.5 * torch.tanh((raw + 1.5) / 3.5))
    action = torch.tanh(loc + scale * noise)
    return action, TanhNormal(loc, scale, event_dims=1).log_prob(action)


def hand_written(sac: SAC, batch: TensorDict) -> dict[str, torch.Tensor]:
    """The three losses of SAC, and their gradients put where they belong."""
    inputs, following = batch["inputs"], batch["next", "inputs"]
    alpha, noise = sac.log_alpha.detach().exp(), batch["noise"]
    with torch.no_grad():
        action, density = propose(sac, following, noise[:, 1])
        future = torch.stack([by_hand(sac.target, c, following, action)[:, 0] for c in range(2)]).min(0).values
        going_on = 1 - batch["next", "terminated"][:, 0]
        goal = sac.cfg.reward_scale * batch["next", "reward"][:, 0]
        goal = goal + sac.cfg.gamma * going_on * (future - alpha * density)
    values = [by_hand(sac.q, c, inputs, batch["action"])[:, 0] for c in range(2)]
    loss_q = sum((value - goal).square().mean() for value in values)
    action, density = propose(sac, inputs, noise[:, 0])
    worth = torch.minimum(*(by_hand(sac.q, c, inputs, action)[:, 0] for c in range(2)))
    loss_actor = (alpha * density - worth).mean()
    loss_alpha = -(sac.log_alpha * (density.detach() - ACTION)).mean()  # the target entropy is minus ACTION
    for loss, module in ((loss_q, sac.q), (loss_actor, sac.policy)):
        own = list(module.parameters())
        for p, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
            p.grad = gradient
    (sac.log_alpha.grad,) = torch.autograd.grad(loss_alpha, [sac.log_alpha])
    return {"loss_actor": loss_actor, "loss_qvalue": loss_q, "loss_alpha": loss_alpha}


def test_updates_equal_those_written_by_hand():
    ours = make(gamma=0.9, tau=0.1, reward_scale=2.0).double()
    hand, step = copy.deepcopy(ours), stepper()
    adams = optimizer(ours), optimizer(hand)
    for seed in range(3):
        batch = transitions(seed=seed, dtype=torch.float64)
        metrics = ours.update(batch, step, adams[0])
        losses = hand_written(hand, batch)
        adams[1].step()
        with torch.no_grad():
            for target, q in zip(hand.target.parameters(), hand.q.parameters(), strict=True):
                target.copy_(0.9 * target + 0.1 * q)
        for name, value in losses.items():
            assert metrics[name] == pytest.approx(float(value.detach()), rel=1e-6)
    for (name, p), q in zip(ours.state_dict().items(), hand.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7, msg=name)


def test_training_calls_the_loss_module(monkeypatch):
    sac, batch, calls = make(), transitions(), []
    assert isinstance(sac, LossModule)
    sac.register_forward_hook(lambda module, given, out: calls.append(out))
    metrics = {name: float(value) for name, value in sac.update(batch, stepper(), optimizer(sac)).items()}
    out = calls[0].detach()
    assert list(out.keys()) == sac.out_keys
    assert metrics == pytest.approx({name: float(value) for name, value in out.items()} | {"loss": metrics["loss"]})
    parts = ("loss_actor", "loss_qvalue", "loss_alpha")
    assert metrics["loss"] == pytest.approx(sum(metrics[name] for name in parts))


@pytest.mark.parametrize(("loss", "moved"), [("loss_actor", "policy."), ("loss_qvalue", "q."), ("loss_alpha", "log_")])
def test_each_loss_moves_its_own_part_alone(loss, moved):
    sac, batch = make(), transitions()
    sac(batch)[loss].backward()
    touched = {name for name, p in sac.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert touched == {name for name, _ in sac.named_parameters() if name.startswith(moved)}


def test_a_latent_gets_its_gradient_from_the_q_loss_alone():
    sac, batch = make(), transitions()
    now = batch["inputs", "current"].requires_grad_()
    later = batch["next", "inputs", "current"].requires_grad_()
    for loss, reached in (("loss_actor", False), ("loss_alpha", False), ("loss_qvalue", True)):
        sac(batch)[loss].backward()
        assert (now.grad is not None) == reached
        assert later.grad is None


def test_the_targets_see_neither_discounted_future_nor_entropy_after_an_end():
    sac, batch = make(reward_scale=3.0), transitions()
    batch["next", "terminated"] = torch.ones(12, 1)
    value = sac.q(batch["inputs"], batch["action"].unsqueeze(0))[..., 0]
    expected = (value - 3.0 * batch["next", "reward"][:, 0]).square().mean(1).sum()
    torch.testing.assert_close(sac(batch)["loss_qvalue"], expected)


def test_truth_values_will_do_for_terminated():
    sac, batch = make(), transitions()
    expected = sac(batch)["loss_qvalue"]
    batch["next", "terminated"] = batch["next", "terminated"].bool()
    assert torch.equal(sac(batch)["loss_qvalue"], expected)


def test_targets_follow_by_their_share_and_move_by_no_gradient():
    sac, step = make(tau=0.25), stepper()
    assert all(torch.equal(p, q) for p, q in zip(sac.target.parameters(), sac.q.parameters(), strict=True))
    before = [p.clone() for p in sac.target.parameters()]
    sac.update(transitions(), step, optimizer(sac))
    for old, new, q in zip(before, sac.target.parameters(), sac.q.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * q)
        assert not new.requires_grad
        assert not torch.equal(new, old)
    trained = {id(p) for p in sac.trained_parameters()}
    assert trained == {id(p) for p in (*sac.policy.parameters(), *sac.q.parameters(), sac.log_alpha)}


def test_the_same_generator_gives_the_same_noise_and_nothing_else_is_drawn():
    sac, batch = make(), transitions()
    before = torch.get_rng_state()
    assert torch.equal(sac(batch)["loss_actor"], sac(batch)["loss_actor"])
    one, same, other = (sac.noise(12, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.shape == (12, 2, ACTION)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_state_is_the_same_before_and_after_use_and_fits_a_fresh_module():
    used, fresh = make(), make(gamma=0.5)
    names = list(used.state_dict())
    used.update(transitions(), stepper(), optimizer(used))
    used(transitions())
    assert list(used.state_dict()) == names
    file = io.BytesIO()
    torch.save(used.state_dict(), file)
    file.seek(0)
    state = {f"sac.{name}": value for name, value in torch.load(file, weights_only=True).items()}
    torch.nn.ModuleDict({"sac": fresh}).load_state_dict(state, strict=True)  # as part of an algorithm
    assert fingerprint(fresh.state_dict()) == fingerprint(used.state_dict())
    assert torch.equal(fresh(transitions())["loss_actor"], used(transitions())["loss_actor"])


def test_a_copy_shares_nothing():
    sac = make()
    twin = copy.deepcopy(sac)
    twin.update(transitions(), stepper(), optimizer(twin))
    assert fingerprint(make().state_dict()) == fingerprint(sac.state_dict())


def test_actions_are_means_or_samples_within_bounds():
    sac, inputs = make(), transitions()["inputs"]
    noise = torch.randn(12, ACTION)
    loc, scale = sac.policy(inputs)
    torch.testing.assert_close(sac.act(inputs), torch.tanh(loc))
    torch.testing.assert_close(sac.act(inputs, noise), torch.tanh(loc + scale * noise))
    assert not sac.act(inputs).requires_grad
    assert sac.act(inputs, 1e4 * noise).abs().max() == 1


def test_deviations_stay_within_their_bounds_and_can_come_back():
    sac, inputs = make(), transitions()["inputs"]
    for bias, bound in ((-30.0, -5.0), (30.0, 2.0)):
        with torch.no_grad():
            sac.policy.net[-1].bias[..., ACTION:] = bias
        assert torch.allclose(sac.policy(inputs)[1].log(), torch.tensor(bound), atol=1e-4)
    with torch.no_grad():
        sac.policy.net[-1].bias[..., ACTION:] = -8.0
    sac.policy(inputs)[1].log().sum().backward()
    assert (sac.policy.net[-1].bias.grad[..., ACTION:] > 0.1).all()


@pytest.mark.parametrize(("wanted", "rises"), [(100.0, True), (-100.0, False)])
def test_the_temperature_rises_where_entropy_is_short_and_falls_where_there_is_too_much(wanted, rises):
    sac, step = make(target_entropy=wanted), stepper()
    adam = optimizer(sac)
    metrics = [sac.update(transitions(seed=seed), step, adam) for seed in range(5)]
    assert (metrics[-1]["alpha"] > metrics[0]["alpha"]) == rises


def test_a_fixed_temperature_stays():
    sac = make(alpha=0.3)
    assert sac.update(transitions(), stepper(), optimizer(sac))["alpha"] == pytest.approx(0.3)
    assert float(sac.log_alpha.exp()) == pytest.approx(0.3)
    assert "log_alpha" not in dict(sac.named_parameters())


def test_a_reward_that_is_not_finite_moves_nothing():
    sac, step = make(), stepper()
    batch, adam = transitions(), optimizer(sac)
    before = fingerprint(sac.state_dict())
    batch["next", "reward"][3] = float("nan")
    with pytest.raises(DivergedError):
        sac.update(batch, step, adam)
    assert fingerprint(sac.state_dict()) == before


def test_reduced_precision_runs_and_stays_near():
    sac, batch = make(), transitions()
    step = GradientStep(Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"))
    expected = float(sac(batch)["loss_qvalue"].detach())
    reduced = sac.update(batch, step, optimizer(sac))["loss_qvalue"]
    assert reduced == pytest.approx(expected, rel=0.05)
    assert reduced != expected


def guessing(sac: SAC, updates: int) -> float:
    """One-step episodes: hit +0.6 or -0.6, as the last pair of the history tells; returns the worst distance from it."""
    draw, step, adam = torch.Generator().manual_seed(0), stepper(), optimizer(sac)

    def histories(rows: int) -> tuple[TensorDict, torch.Tensor]:
        sign = 2.0 * torch.randint(2, (rows, 1), generator=draw) - 1
        pairs = torch.zeros(rows, LENGTH, 1)
        pairs[:, -2] = sign
        columns = {"pairs": pairs, "mask": torch.ones(rows, LENGTH).bool(), "current": torch.zeros(rows, 1)}
        return TensorDict(columns, batch_size=[rows]), sign

    for _ in range(updates):
        inputs, sign = histories(64)
        action = 2 * torch.rand(64, 1, generator=draw) - 1
        after = {"inputs": inputs, "reward": -4 * (action - 0.6 * sign).square(), "terminated": torch.ones(64, 1)}
        given = {"inputs": inputs, "action": action, "noise": sac.noise(64, draw), "next": after}
        sac.update(TensorDict(given, batch_size=[64]), step, adam)
    inputs, sign = histories(50)
    return float((sac.act(inputs) - 0.6 * sign).abs().max())


def test_learns_the_action_that_the_history_asks_for():
    sizes = {"pair": 1, "current": 1, "action": 1, "lr": 1e-2}
    assert guessing(make(**sizes), updates=300) < 0.2
    assert guessing(make(**sizes), updates=0) > 0.4
    assert guessing(make(recurrent=0, **sizes), updates=300) > 0.4  # a policy without memory cannot know


def test_the_temperature_brings_the_entropy_to_its_target():
    sac, step = make(lr=1e-2, target_entropy=-1.0), stepper()
    adam, draw = optimizer(sac), torch.Generator().manual_seed(0)
    batch = transitions(rows=64)
    batch["next", "terminated"] = torch.ones(64, 1)
    batch["next", "reward"] = -5 * batch["action"].square().sum(-1, keepdim=True)
    entropies = [sac.update(batch.set("noise", sac.noise(64, draw)), step, adam)["entropy"] for _ in range(401)]
    first, last = entropies[0], entropies[-20:]
    assert abs(first + 1.0) > 0.5
    assert sum(last) / 20 == pytest.approx(-1.0, abs=0.3)
