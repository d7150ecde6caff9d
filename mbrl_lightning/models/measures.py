"""What is measured of a model and a latent on unseen tasks: pure functions of tensors."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.base import Model
from mbrl_lightning.networks import NOISE

MULTI_STEPS = 10


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
    picks = (torch.arange(count, device=lengths.device) * lengths / count).long()
    rows = torch.arange(len(data), device=lengths.device).unsqueeze(1)
    return data[rows, order.gather(1, picks)]


def share_of_variance(squared: Tensor, variance: Tensor) -> Tensor:
    """Squared errors `[..., S]` over the variance `[S]` of what was to be predicted, mean over the outputs that vary, `[...]`.

    Outputs that do not vary (a planar body's place off its plane) are left out; NaN where none does.
    """
    varies = _varies(variance)
    return (squared[..., varies] / variance[varies]).mean(-1)


def _varies(variance: Tensor) -> Tensor:
    return variance > NOISE**2 * variance.max()


@torch.no_grad()
def one_step_error(dynamics: Model, targets: TensorDict, belief: TensorDict) -> dict[str, Tensor]:
    """Error of the predicted change of the observation in real transitions `[M, N]`, per task.

    Returns:
        `[M]` each: `mse` (raw units, mean over the S outputs), `nmse` (see `share_of_variance`), and `null_mse`, `null_nmse`
        of a model that predicts no change. `outputs` `[S]`: `nmse` by output; NaN of one that never changes.
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
def multi_step_error(dynamics: Model, episodes: TensorDict, belief: TensorDict) -> Tensor:
    """Normalised error after ten open-loop steps along the actions of real episodes `[M, T]`: `[M]`; NaN if one is shorter."""
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


def model_errors(
    episodes: TensorDict, fresh: TensorDict, beliefs: dict[str, tuple[Model, TensorDict]]
) -> dict[str, Tensor]:
    """One-step errors of models on the policy's transitions and on fresh exploration, and the error over ten steps.

    Args:
        episodes: the policy's `[M, episodes, T]`; used up to a fall.
        fresh: exploration `[M, K]` that no belief was made from.
        beliefs: a model and its belief `[M]` by name; "" is the one that all is measured of.

    Returns:
        `model/<name>` for `one_step_error` on the policy's transitions, `model/<name>_random` on `fresh`; the same of the
        other models, `model/<other>_<name>`, but for what is no model's own; `model/multi_step_nmse`. `[M]` each, and one
        number each for `model/nmse/<output>`.
    """
    own, belief = beliefs[""]
    episodes = until_fall(episodes, own.spec)
    found: dict[str, Tensor] = {}
    for suffix, targets in (("", first_valid(episodes.flatten(1, 2), 1000)), ("_random", fresh)):
        for name, (model, told) in beliefs.items():
            errors = one_step_error(model, targets, told)
            outputs = errors.pop("outputs")
            if name == "":
                names = (f"model/nmse{suffix}/{output}" for output in own.spec.observation_names)
                found |= dict(zip(names, outputs.cpu(), strict=True))
            kept = errors if name == "" else {key: errors[key] for key in ("mse", "nmse")}
            found |= {f"model/{name}_{key}{suffix}".replace("/_", "/"): value.cpu() for key, value in kept.items()}
    return found | {"model/multi_step_nmse": multi_step_error(own, episodes[:, 0], belief).cpu()}


def linear_probe(latent: Tensor, parameters: Tensor, test_latent: Tensor, test_parameters: Tensor) -> Tensor:
    """Ridge regression of the parameters `[N, P]` on the latent `[N, Z]`; R^2 on held-out tasks, `[P]`.

    1 is perfect, 0 the mean, below 0 worse.
    """
    if latent.shape[1] == 0:
        return torch.zeros(parameters.shape[1])
    loc, scale, truth = latent.double().mean(0), latent.double().std(0).clamp_min(1e-12), test_parameters.double()
    design, test = (
        torch.cat([(rows.double() - loc) / scale, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        for rows in (latent, test_latent)
    )
    gram = design.T @ design + 1e-3 * len(latent) * torch.eye(design.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, design.T @ parameters.double())
    residual, total = (test @ weights - truth).square().sum(0), (truth - truth.mean(0)).square().sum(0)
    return 1 - residual / total.clamp_min(1e-12)
