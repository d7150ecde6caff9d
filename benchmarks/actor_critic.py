"""One SAC update on histories: the library's, the same computation called bare, and TorchRL's `SACLoss` as it comes.

All three have the same networks of the same sizes, see the same batches and use the same Adam. The bare rival also shares
what the library shares: one pass over the windows for all networks, one reading by the Q networks. So the first ratio
is overhead alone (TensorDict, guards, metrics), the second what the sharing and the plain tensors save.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torchrl.modules import TanhNormal
from torchrl.objectives import SACLoss, SoftUpdate, ValueEstimators

from benchmarks.measure import Ratio, compare, ratio
from mbrl_lightning.beliefs.history import HistoryNet
from mbrl_lightning.config.methods import SACConfig
from mbrl_lightning.config.schema import PolicyConfig
from mbrl_lightning.networks import read_windows
from mbrl_lightning.networks.gaussians import squashed_sample
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.sac import SAC, HistoryPolicy

OURS, BARE, STOCK = "SAC.update", "bare PyTorch", "SACLoss as it comes"
ROWS, LENGTH, OBSERVATION, ACTION = 256, 10, 18, 6
PAIR = OBSERVATION + ACTION


def make(hidden: list[int]) -> SAC:
    """SAC of half-cheetah's sizes, with the previous reward in the observation."""
    torch.manual_seed(0)
    return SAC(PolicyConfig(hidden=hidden, activation="silu"), SACConfig(), PAIR, OBSERVATION, ACTION)


def transitions() -> TensorDict:
    """A batch `[N]` between histories, drawn as the replay draws it: both windows are views of L + 1 pairs."""
    draw = torch.Generator().manual_seed(1)
    pairs = torch.randn(ROWS, LENGTH + 1, PAIR, generator=draw)
    mask = torch.arange(LENGTH + 1) >= torch.randint(LENGTH + 1, (ROWS, 1), generator=draw)
    current, following = torch.randn(2, ROWS, OBSERVATION, generator=draw).unbind(0)
    before = {"pairs": pairs[:, :-1], "mask": mask[:, :-1], "current": current}
    after = {"pairs": pairs[:, 1:], "mask": mask[:, 1:], "current": following}
    ended = torch.rand(ROWS, 1, generator=draw) < 0.1
    reward = torch.randn(ROWS, 1, generator=draw)
    outcome = {"inputs": after, "reward": reward, "terminated": ended, "done": ended}
    return TensorDict(
        {"inputs": before, "action": torch.randn(ROWS, ACTION, generator=draw).tanh(), "next": outcome},
        batch_size=[ROWS],
    )


def mlp(net: HistoryNet, x: Tensor, frozen: bool = False) -> Tensor:
    """The layers behind the recurrent unit."""
    for layer in net.net:
        if not isinstance(layer, nn.SiLU):
            weight, bias = (layer.weight.detach(), layer.bias.detach()) if frozen else (layer.weight, layer.bias)
            x = torch.baddbmm(bias, x, weight)
        else:
            x = F.silu(x)
    return x


@dataclass
class Plain:
    """A batch as plain tensors, windows step by step."""

    pairs: Tensor
    next_pairs: Tensor
    mask: Tensor
    next_mask: Tensor
    current: Tensor
    next_current: Tensor
    action: Tensor
    reward: Tensor
    going_on: Tensor


def plain(batch: TensorDict) -> Plain:
    """Take a batch apart."""
    before, after = batch["inputs"], batch["next", "inputs"]
    return Plain(
        before["pairs"],
        after["pairs"],
        before["mask"],
        after["mask"],
        before["current"],
        after["current"],
        batch["action"],
        batch["next", "reward"],
        1 - batch["next", "terminated"].float(),
    )


class BareUpdate:
    """One update with the networks of a `SAC` and nothing around them."""

    def __init__(self, sac: SAC) -> None:
        self.policy, self.q, self.target, self.log_alpha, self.cfg = (
            sac.policy,
            sac.q,
            sac.target,
            sac.log_alpha,
            sac.cfg,
        )
        self.optimizer = torch.optim.Adam(sac.trained_parameters(), lr=self.cfg.lr, fused=True)
        self.q_parameters, self.target_parameters = list(self.q.parameters()), list(self.target.parameters())
        self.generator = torch.Generator().manual_seed(0)

    def propose(self, seen: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions and their log densities."""
        loc, raw = mlp(self.policy, seen)[0].chunk(2, -1)
        return squashed_sample(loc, -1.5 + 3.5 * torch.tanh((raw + 1.5) / 3.5), noise)

    def __call__(self, batch: Plain) -> None:
        """Losses, one backward, Adam, targets."""
        noise = torch.randn(2, ROWS, ACTION, generator=self.generator)
        windows = torch.stack([x.transpose(0, 1) for x in (batch.pairs, batch.next_pairs)]).transpose(1, 2)
        nets = self.q, self.policy, self.target, self.policy
        states = read_windows(windows, torch.stack([batch.mask, batch.next_mask]), [net.gru for net in nets], 2)
        of_q, of_policy, after = states.split([2, 1, 3])
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            after = torch.cat([after, batch.next_current.expand(3, -1, -1)], -1)
            action, density = self.propose(after[2:], noise[1])
            future = torch.minimum(*mlp(self.target, torch.cat([after[:2], action.expand(2, -1, -1)], -1)))
            goal = batch.reward + self.cfg.gamma * batch.going_on * (future - alpha * density.unsqueeze(-1))
        seen = torch.cat([of_q, batch.current.expand(2, -1, -1)], -1)
        value = mlp(self.q, torch.cat([seen, batch.action.expand(2, -1, -1)], -1))
        loss = 2 * F.mse_loss(value, goal.expand_as(value))
        action, density = self.propose(torch.cat([of_policy, batch.current.unsqueeze(0)], -1), noise[0])
        proposed = torch.cat([seen.detach(), action.expand(2, -1, -1)], -1)
        loss = loss + (alpha * density).mean() - torch.minimum(*mlp(self.q, proposed, frozen=True)).mean()
        loss = loss - self.log_alpha * (density.detach().mean() - ACTION)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.target_parameters, self.q_parameters, self.cfg.tau)


class StockQ(HistoryNet):
    """One Q function with the signature that TorchRL calls."""

    def forward(self, inputs: TensorDict, action: Tensor) -> Tensor:  # type: ignore[override]
        """Values `[N, 1]`."""
        return self.decide(self.read(inputs), action.unsqueeze(0)).squeeze(0)


class StockUpdate:
    """TorchRL's `SACLoss`, `SoftUpdate` and one Adam, put together as its documentation does.

    Its vmap over the Q networks is off: the reading of a window has a gradient of its own, which vmap does not take.
    """

    def __init__(self, hidden: list[int]) -> None:
        torch.manual_seed(0)
        cfg = SACConfig()
        actor = ProbabilisticTensorDictSequential(
            TensorDictModule(
                HistoryPolicy(1, PAIR, OBSERVATION, 2 * ACTION, hidden), in_keys=["inputs"], out_keys=["loc", "scale"]
            ),
            ProbabilisticTensorDictModule(
                in_keys=["loc", "scale"], out_keys=["action"], distribution_class=TanhNormal, return_log_prob=True
            ),
        )
        q = TensorDictModule(
            StockQ(1, PAIR, OBSERVATION + ACTION, 1, hidden),
            in_keys=["inputs", "action"],
            out_keys=["state_action_value"],
        )
        self.loss = SACLoss(
            actor, q, loss_function="l2", alpha_init=0.2, target_entropy=float(-ACTION), deactivate_vmap=True
        )
        self.loss.make_value_estimator(ValueEstimators.TD0, gamma=cfg.gamma)
        self.follow = SoftUpdate(self.loss, tau=cfg.tau)
        self.optimizer = torch.optim.Adam(self.loss.parameters(), lr=cfg.lr, fused=True)

    def __call__(self, batch: TensorDict) -> None:
        """Losses, one backward, Adam, targets."""
        out = self.loss(batch)
        self.optimizer.zero_grad()
        (out["loss_actor"] + out["loss_qvalue"] + out["loss_alpha"]).backward()
        self.optimizer.step()
        self.follow.step()


def check(hidden: list[int]) -> None:
    """Both sides reach the same parameters.

    Raises:
        AssertionError: they do not.
    """
    ours, theirs, batch = make(hidden), make(hidden), transitions()
    step, draw = GradientStep(Fabric(accelerator="cpu", devices=1)), torch.Generator().manual_seed(0)
    noise = torch.randn(2 * ROWS, ACTION, generator=draw).view(2, ROWS, ACTION).transpose(0, 1)
    ours.update(batch.clone().set("noise", noise), step, BareUpdate(ours).optimizer)
    BareUpdate(theirs)(plain(batch))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def run(repeats: int) -> list[Ratio]:
    """Ratios of one update for two widths of the hidden layers."""
    ratios, batch = [], transitions()
    step = GradientStep(Fabric(accelerator="cpu", devices=1))
    for hidden in ([64, 64], [128, 128]):
        check(hidden)
        sac, bare, stock = make(hidden), BareUpdate(make(hidden)), StockUpdate(hidden)
        adam, draw = BareUpdate(sac).optimizer, torch.Generator().manual_seed(0)
        tensors = plain(batch)
        sides = {
            OURS: lambda sac=sac, adam=adam, draw=draw: sac.update(
                batch.set("noise", sac.noise(ROWS, draw)), step, adam
            ),
            BARE: lambda bare=bare, tensors=tensors: bare(tensors),
            STOCK: lambda stock=stock: stock(batch),
        }
        seconds = compare(sides, repeats, 40, warm=10)
        case = f"one update, N = {ROWS}, L = {LENGTH}, hidden {hidden}"
        ratios.append(ratio("SAC", case, seconds, OURS, BARE, ceiling=1.5))
        ratios.append(ratio("SAC", case, seconds, STOCK, OURS))
    return ratios
