"""What every dynamics model shares: normalisers, bounds of the seen data, a stack of decoders, prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import lightning as L
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.networks import Normalizer, StackedMLP
from mbrl_lightning.networks.gaussians import log_prob
from mbrl_lightning.networks.statistics import joined, moments

TAIL = 0.0005  # share of the data beyond either bound of imagination
MAX_GRAD_NORM = 10.0  # gradients of every model are clipped to this norm


class Model(L.LightningModule):
    """p(next observation | observation, action, belief), with E members; what planners, measures and pictures ask.

    Observations are `[M, N, S]`, actions `[M, N, A]`, beliefs have the batch `[M]`; imagination is kept to `low` .. `high` `[S]`.
    """

    low: Tensor
    high: Tensor

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig) -> None:
        super().__init__()
        self.spec, self.cfg, self.members = spec, cfg, cfg.members
        self.register_buffer("low", torch.full((spec.observation_dim,), -torch.inf))
        self.register_buffer("high", torch.full((spec.observation_dim,), torch.inf))
        self.target_norm = Normalizer(spec.target_dim)

    @property
    def device(self) -> torch.device:
        """Where its parameters are; Lightning's own note is of `to` alone, which a part of something else is never asked."""
        return next(self.parameters()).device

    def predictions(self, observation: Tensor, action: Tensor, belief: TensorDict) -> Tensor:
        """Each member's mean next observation, without bounds: `[E, M, N, S]`."""
        raise NotImplementedError

    @torch.no_grad()
    def predict(self, observation: Tensor, action: Tensor, belief: TensorDict) -> Tensor:
        """Mean next observation over members, without bounds, `[M, N, S]`."""
        return self.predictions(observation, action, belief).mean(0)

    def imagine(self, observation: Tensor, action: Tensor, belief: TensorDict) -> Tensor:
        """Next observations `[M, N, S]` within the range of the data, each row one member's; some take noise as well."""
        raise NotImplementedError

    def bound(self, low: Tensor, high: Tensor, margin: float) -> None:
        """Keep imagination to the range `[S]` from `low` to `high` and a share `margin` of it on both sides."""
        self.low.copy_(low - margin * (high - low))
        self.high.copy_(high + margin * (high - low))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over all that learns."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(parameters, lr=self.cfg.lr, weight_decay=self.cfg.weight_decay, fused=True)


class Dynamics(Model):
    """A model of E decoders in one batched product.

    A subclass says what the decoder sees of the task, `code` of width Z = `code_dim`, and how it learns (`training_step`).
    `noise_dim` is the width of the noise of a code.
    """

    noise_dim = 0

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig, code_dim: int = 0) -> None:
        super().__init__(spec, cfg)
        self.code_dim, inputs = code_dim, spec.feature_dim + spec.action_feature_dim
        self.input_norm = Normalizer(inputs)
        sizes = [inputs + code_dim, *[cfg.hidden] * (cfg.layers + 1), spec.target_dim]
        self.decoder = StackedMLP(cfg.members, sizes, cfg.activation)
        scale = torch.full((spec.target_dim,), float(cfg.scale)).log()
        self.log_scale = torch.nn.Parameter(scale, requires_grad=cfg.learn_scale)

    @contextmanager
    def constant(self) -> Iterator[None]:
        """No gradient reaches the parameters meanwhile."""
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        for parameter in learned:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in learned:
                parameter.requires_grad_(True)

    def code(self, x: Tensor, belief: TensorDict, noise: Tensor | None = None) -> Tensor:
        """What the decoder is told of the task with its inputs `[M, N, X]`, `[M, N, Z]`; here nothing.

        Without standard normal `noise` `[M, N, Z]` it is the mean.
        """
        return x[..., :0]

    def training_step(self, batch: TensorDictBase, batch_idx: int = 0) -> dict[str, Tensor]:
        """`loss` of a batch `[M]`, and parts of it to be logged, detached."""
        raise NotImplementedError

    def see(self, real: TaskBuffer, margin: float = 0.1) -> None:
        """Fit the normalisers to all real transitions, and the bounds of imagination to their 0.05 to 99.95 % quantiles."""
        most = int(TAIL * real.capacity) + 1
        self._fit(real.summary("seen", partial(self._summary, most=most), partial(_joined, most=most)), margin)

    def observe(self, transitions: TensorDictBase, margin: float = 0.1) -> None:
        """As `see`, of transitions `[N]` that are in no buffer."""
        self._fit(self._summary(transitions, int(TAIL * len(transitions)) + 1), margin)

    @torch.no_grad()
    def _summary(self, rows: TensorDictBase, most: int) -> tuple[Tensor, ...]:
        """Moments of inputs and targets; the lowest observations, negated, and the highest, `[S, at most most]` each."""
        observation, following = rows["observation"], rows["next", "observation"]
        inputs = self._raw_inputs(observation, rows["action"])
        ends = _highest(-following.mT, most), _highest(following.mT, most)
        return moments(inputs), moments(self.spec.target(observation, following)), *ends

    def _fit(self, summary: tuple[Tensor, ...], margin: float) -> None:
        inputs, targets, *ends = summary
        self.input_norm.take(inputs)
        self.target_norm.take(targets)
        rank = int(TAIL * float(inputs[0, 0]))
        low, high = (end[:, rank] for end in ends)
        self.bound(-low, high, margin)

    def _raw_inputs(self, observation: Tensor, action: Tensor) -> Tensor:
        return torch.cat([self.spec.features(observation), self.spec.action_features(action)], -1)

    def inputs(self, observation: Tensor, action: Tensor) -> Tensor:
        """Standardised network inputs `[..., X]`."""
        return self.input_norm(self._raw_inputs(observation, action))

    def targets(self, transitions: TensorDictBase) -> Tensor:
        """Standardised targets `[..., Y]`."""
        return self.target_norm(self.spec.target(transitions["observation"], transitions["next", "observation"]))

    def decode(
        self, x: Tensor, code: Tensor, members: slice = slice(None), belief: TensorDictBase | None = None
    ) -> Tensor:
        """Standardised targets `[M, N, Y]` for inputs `[M, N, X]` and codes `[M, N, Z]`.

        The N rows are shared out among `members`, in equal blocks; `belief` `[M]` is for a model in which it is more than a code.
        """
        tasks, rows = x.shape[0], x.shape[1]
        count = len(range(*members.indices(self.members)))
        if rows % count:
            raise ValueError(f"{rows} rows cannot be shared out evenly among {count} ensemble members")
        joined = torch.cat([x, code], -1) if code.shape[-1] else x
        blocks = joined.view(tasks, count, rows // count, -1)
        return self.evaluate(blocks, members, belief).reshape(tasks, rows, -1)

    def evaluate(self, blocks: Tensor, members: slice, belief: TensorDictBase | None) -> Tensor:
        """One block of rows for each member, `[M, E, R, X + Z] -> [M, E, R, Y]`; arguments as for `decode`."""
        tasks, count, rows, _ = blocks.shape
        stacked = blocks.transpose(0, 1).reshape(count, tasks * rows, -1)
        return self.decoder(stacked, members).view(count, tasks, rows, -1).transpose(0, 1)

    def imagine(
        self,
        observation: Tensor,
        action: Tensor,
        belief: TensorDict,
        noise: Tensor | None = None,
        members: slice = slice(None),
        disturbance: Tensor | None = None,
    ) -> Tensor:
        """Next observations `[M, N, S]`, each row by its member, kept to the range of the data on both sides.

        Standard normal `noise` `[M, N, Z]` is that of the code, `disturbance` `[M, N, Y]` is scaled by the learned deviation;
        None takes means. `members` share out the rows.
        """
        x = self.inputs(observation, action)
        y = self.decode(x, self.code(x, belief, noise), members, belief)
        if disturbance is not None:
            y = y + disturbance * self.log_scale.exp()
        following = self.spec.untarget(observation, self.target_norm.inverse(y))
        return torch.clamp(following, self.low, self.high)

    def predictions(self, observation: Tensor, action: Tensor, belief: TensorDict) -> Tensor:
        """See `Model.predictions`."""
        y = self._outputs(observation, action, belief, None)[0].transpose(0, 1)
        return self.spec.untarget(observation.expand(len(y), *observation.shape), self.target_norm.inverse(y))

    @torch.no_grad()
    def predict(self, observation: Tensor, action: Tensor, belief: TensorDict, noise: Tensor | None = None) -> Tensor:
        """See `Model.predict`; the mean is taken before targets become observations, so that an angle may wrap.

        With `noise` `[P, M, N, Z]` it is over P particles too (GSSM Eq. 8), else of the mean code.
        """
        y = self._outputs(observation, action, belief, noise).mean((0, 2))
        return self.spec.untarget(observation, self.target_norm.inverse(y))

    def _outputs(self, observation: Tensor, action: Tensor, belief: TensorDict, noise: Tensor | None) -> Tensor:
        """Standardised targets of every particle and member, `[P, M, E, N, Y]`."""
        x = self.inputs(observation, action)
        codes = [self.code(x, belief, eps) for eps in ([None] if noise is None else noise)]
        copies = (1, self.members, 1)
        outputs = [self.decode(x.repeat(copies), code.repeat(copies), belief=belief) for code in codes]
        return torch.stack(outputs).unflatten(2, (self.members, -1))

    def nll(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood of standardised targets `[..., Y] -> [...]`; deviations floored at 0.02."""
        return -log_prob(target, prediction, self.log_scale.exp().clamp_min(0.02))


def _highest(rows: Tensor, most: int) -> Tensor:
    """The highest values of each row, the first `most` of them, falling."""
    return rows.topk(min(most, rows.shape[1])).values


def _joined(parts: Sequence[tuple[Tensor, ...]], most: int) -> tuple[Tensor, ...]:
    """Summaries of rows as one summary: the ends of all are among those of the parts."""
    inputs, targets, *ends = zip(*parts, strict=True)
    return joined(inputs), joined(targets), *(_highest(torch.cat(end, 1), most) for end in ends)
