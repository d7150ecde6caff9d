"""What is measured of a model and a latent on unseen tasks: pure functions of tensors."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.adaptive import AdaptiveDynamics
from mbrl_lightning.models.base import Dynamics
from mbrl_lightning.networks import NOISE
from mbrl_lightning.networks.gaussians import kl_divergence

MULTI_STEPS = 10
MOST_CUTS, CUTS_AT_ONCE = 40, 64


def until_fall(episodes: TensorDict, spec: EnvSpec) -> TensorDict:
    """Episodes `[..., T]` valid up to the first training termination: beyond it the model is neither fitted nor used."""
    if spec.training_termination is None:
        return episodes
    fallen = spec.training_termination(episodes["next", "observation"]).int()
    before = (fallen.cumsum(-1) - fallen) == 0
    return episodes.clone(False).set("valid", episodes["valid"] & before)


def first_valid(data: TensorDict, most: int) -> TensorDict:
    """Up to `most` valid transitions of each row of `[M, N]`, as many as the poorest row has, spread evenly."""
    count = min(most, int(data["valid"].sum(1).min()))
    order = torch.argsort((~data["valid"]).int(), dim=1, stable=True)
    lengths = data["valid"].sum(1, keepdim=True)
    picks = (torch.arange(count) * lengths / count).long()
    rows = torch.arange(len(data)).unsqueeze(1)
    return data[rows, order.gather(1, picks)]


def share_of_variance(squared: Tensor, variance: Tensor) -> Tensor:
    """Squared errors over the variance of what was to be predicted, mean over the outputs that vary, `[...]`.

    Args:
        squared: squared errors `[..., S]`, in the outputs' units squared.
        variance: of the true changes `[S]`; outputs that do not vary (a planar body's place off its plane) are left out.
            NaN where none varies.
    """
    varies = _varies(variance)
    return (squared[..., varies] / variance[varies]).mean(-1)


def _varies(variance: Tensor) -> Tensor:
    return variance > NOISE**2 * variance.max()


@torch.no_grad()
def one_step_error(dynamics: Dynamics, targets: TensorDict, belief: TensorDict) -> dict[str, Tensor]:
    """Error of the predicted change of the observation, per task.

    Args:
        dynamics: the model.
        targets: real transitions `[M, N]`.
        belief: batch `[M]`.

    Returns:
        `[M]` each: `mse` (raw units, mean over the S outputs), `nmse` (each output's error over the variance of its change
        in all targets, then the mean; see `share_of_variance`), and `null_mse`, `null_nmse` of a model that predicts no
        change. `outputs` `[S]`: normalised error by output, mean over tasks; NaN of an output that never changes.
    """
    observation, following = targets["observation"], targets["next", "observation"]
    predicted = dynamics.predict(observation, targets["action"], belief)
    spec = dynamics.spec
    change = spec.change(observation, following)
    error = (spec.change(observation, predicted) - change).square()
    variance = change.flatten(0, 1).var(0, correction=0)
    return {
        "mse": error.mean((1, 2)),
        "nmse": share_of_variance(error, variance).mean(1),
        "null_mse": change.square().mean((1, 2)),
        "null_nmse": share_of_variance(change.square(), variance).mean(1),
        "outputs": torch.where(_varies(variance), error.mean((0, 1)) / variance, torch.nan),
    }


@torch.no_grad()
def multi_step_error(dynamics: Dynamics, episodes: TensorDict, belief: TensorDict) -> Tensor:
    """Normalised error after ten open-loop steps along real actions, `[M]`; NaN where an episode is shorter.

    Args:
        dynamics: the model.
        episodes: real episodes `[M, T]`.
        belief: batch `[M]`.
    """
    steps = min(MULTI_STEPS, episodes.shape[1])
    count = max(min(50, (episodes.shape[1] - steps) // steps), 1)
    first = torch.arange(count) * steps
    observation = start = episodes["observation"][:, first]
    for t in range(steps):
        observation = dynamics.predict(observation, episodes["action"][:, first + t], belief)
    truth = episodes["next", "observation"][:, first + steps - 1]
    change = dynamics.spec.change(start, truth)
    valid = episodes["valid"][:, first + steps - 1]  # rows after the end of an episode stand still
    error = torch.where(valid.unsqueeze(-1), (dynamics.spec.change(start, observation) - change).square(), 0.0)
    return share_of_variance(error, change[valid].var(0, correction=0)).sum(1) / valid.sum(1)


def adaptation_errors(dynamics: AdaptiveDynamics, episodes: TensorDict, past: int, future: int) -> dict[str, Tensor]:
    """Errors on the next K transitions before and after adapting to the last M, along real episodes, per task.

    Args:
        dynamics: the model.
        episodes: `[T, E, H]` of T tasks; only cuts with all M steps before and K after them inside the episode count.
        past: M.
        future: K.

    Returns:
        Of `[T]` each, mean over outputs and transitions, NaN where a task has no episode long enough: `nmse_before` and
        `nmse_after`, squared errors of the predicted change over its variance in these episodes, of outputs that vary;
        `loss_before` and `loss_after`, those of the standardised target, over its variance in the data of training: L itself,
        in which an output that moved in training and hardly moves here weighs no more than any other.
    """
    change = dynamics.spec.change(episodes["observation"], episodes["next", "observation"])
    of_change, of_target = output_errors(dynamics, episodes, past, future)
    nmse = share_of_variance(of_change, change[episodes["valid"]].var(0, correction=0))
    loss = of_target.mean(-1)
    return {"nmse_before": nmse[0], "nmse_after": nmse[1], "loss_before": loss[0], "loss_after": loss[1]}


@torch.no_grad()
def output_errors(dynamics: AdaptiveDynamics, episodes: TensorDict, past: int, future: int) -> tuple[Tensor, Tensor]:
    """Squared errors of each output, first before adapting, then after; arguments as for `adaptation_errors`.

    Returns:
        Mean over transitions, NaN where a task has no episode long enough: of the change `[2, T, S]`, in the observation's
        units squared, and of the standardised target `[2, T, Y]`.
    """
    tasks, spec = len(episodes), dynamics.spec
    first = torch.arange(0, episodes.shape[-1] - past - future + 1, future)
    first = first[torch.linspace(0, len(first) - 1, min(MOST_CUTS, len(first))).long()]
    rows = episodes.select("observation", "action", ("next", "observation"), "valid").flatten(0, 1)
    owner = torch.arange(tasks, device=rows.device).repeat_interleave(episodes.shape[1])
    count = rows["observation"].new_zeros(tasks)
    of_change = count.new_zeros(2, tasks, spec.observation_dim)
    of_target = count.new_zeros(2, tasks, spec.target_dim)
    for cuts in first.split(max(CUTS_AT_ONCE // len(rows), 1)):
        index = cuts.unsqueeze(1) + torch.arange(past + future)
        part, mine = rows[:, index].flatten(0, 1), owner.repeat_interleave(len(cuts))  # [rows x cuts, M + K]
        before, after = part[:, :past], part[:, past:]
        observation, following, whole = after["observation"], after["next", "observation"], after["valid"][:, -1]
        truth, target, used = spec.change(observation, following), dynamics.targets(after), whole.unsqueeze(1)
        count.index_add_(0, mine, whole.to(count))
        beliefs = TensorDict({}, batch_size=before.shape[:1]), dynamics.infer(before)
        for when, belief in enumerate(beliefs):
            predicted = dynamics.predict(observation, after["action"], belief)
            missed = (spec.change(observation, predicted) - truth).square().mean(1)
            guess = dynamics.target_norm(spec.target(observation, predicted))
            of_change[when].index_add_(0, mine, torch.where(used, missed, 0.0))
            of_target[when].index_add_(0, mine, torch.where(used, (guess - target).square().mean(1), 0.0))
    return of_change / count.unsqueeze(1), of_target / count.unsqueeze(1)


def linear_probe(latent: Tensor, parameters: Tensor, test_latent: Tensor, test_parameters: Tensor) -> Tensor:
    """Ridge regression of the parameters on the latent; R^2 on held-out tasks.

    Args:
        latent: `[N, Z]`.
        parameters: `[N, P]`.
        test_latent: `[M, Z]`.
        test_parameters: `[M, P]`.

    Returns:
        `[P]`; 1 is perfect, 0 the mean, below 0 worse.
    """
    if latent.shape[1] == 0:
        return torch.zeros(parameters.shape[1])
    loc, scale = latent.double().mean(0), latent.double().std(0).clamp_min(1e-12)
    ones = torch.ones(len(latent), 1, dtype=torch.float64)
    design = torch.cat([(latent.double() - loc) / scale, ones], 1)
    gram = design.T @ design + 1e-3 * len(latent) * torch.eye(design.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, design.T @ parameters.double())
    test = torch.cat([(test_latent.double() - loc) / scale, torch.ones(len(test_latent), 1, dtype=torch.float64)], 1)
    residual = (test @ weights - test_parameters.double()).square().sum(0)
    total = (test_parameters.double() - test_parameters.double().mean(0)).square().sum(0)
    return 1 - residual / total.clamp_min(1e-12)


def model_nll(log_prob: Tensor) -> float:
    """Model error as M3PO's Fig. 11 has it: mean negative log-likelihood of held-out transitions, in nats.

    A density, so it depends on units and may be below 0; no total variation distance (see `guarantees`).

    Args:
        log_prob: of each transition (and member), summed over the predicted entries, `[...]`.
    """
    return -float(log_prob.double().mean())


def policy_divergence(loc: Tensor, scale: Tensor, cloned_loc: Tensor, cloned_scale: Tensor) -> float:
    """Policy divergence as M3PO's Fig. 12 has it: mean KL(pi || pi_D) over states, in nats.

    pi_D is a policy of the same architecture fitted to the collected actions by maximum likelihood. Both are Gaussians
    followed by the same one-to-one map (tanh), which leaves the divergence as it is before the map.

    Args:
        loc: pi's means before tanh, `[N, A]`.
        scale: pi's deviations, > 0, broadcastable to `[N, A]`.
        cloned_loc: pi_D's means before tanh, `[N, A]`.
        cloned_scale: pi_D's deviations, > 0, broadcastable to `[N, A]`.
    """
    columns = (part.double() for part in (loc, scale, cloned_loc, cloned_scale))
    return float(kl_divergence(*columns).mean())
