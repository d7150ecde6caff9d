"""How far a return in the model can be from the true one: the discrepancies of M3PO's theorems.

T. Hiraoka, T. Imagawa, V. Tangkaratt, T. Osa, T. Onishi and Y. Tsuruoka, "Meta-Model-Based Meta-Policy Optimization", ACML
2021; section 5, Table 1 and appendix A. For the true return J and the return J_model of the same policy in the model,
`J >= J_model - C`, with C_Th1 where rollouts are imagined from the initial state on and C_Th2 where k imagined steps branch
off real histories.

eps_m and eps_pi are total variation distances in [0, 1]: of the model's next history from the true one, and of the policy
from the one that collected the data. r_max bounds the size of the expected reward, so returns lie within r_max / (1 - gamma)
of 0 and a discrepancy beyond `vacuous_above` says nothing.

Everything is vectorised: arguments are numbers or arrays that broadcast against each other (`...`); only numpy is needed.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mbrl_lightning.errors import ConfigError

Array = NDArray[np.float64]
Form = Literal["exact", "printed"]


def full_rollout_discrepancy(gamma: ArrayLike, eps_m: ArrayLike, eps_pi: ArrayLike, r_max: ArrayLike = 1.0) -> Array:
    """C_Th1, for rollouts imagined from the initial state to the end (Theorem 1).

    Table 1 has `r_max [2 gamma (eps_m + 2 eps_pi) / (1 - gamma)^2 + 4 eps_pi / (1 - gamma)]`, which is
    `r_max (2 gamma eps_m + 4 eps_pi) / (1 - gamma)^2`. (Eq. 23 prints its last term with eps_m; Corollary 1 and the
    theorem it builds on agree with the table.)

    Args:
        gamma: discount in [0, 1), `...`.
        eps_m: model error in [0, 1], `...`.
        eps_pi: policy divergence in [0, 1], `...`.
        r_max: bound of the expected reward, > 0, `...`.

    Returns:
        `...`, in units of the return.

    Raises:
        ConfigError: arguments out of range, all named at once.
    """
    gamma, eps_m, eps_pi, r_max = _checked(gamma=gamma, eps_m=eps_m, eps_pi=eps_pi, r_max=r_max)
    return r_max * (2 * gamma * eps_m + 4 * eps_pi) / (1 - gamma) ** 2


def branched_rollout_discrepancy(
    gamma: ArrayLike,
    eps_m: ArrayLike,
    eps_pi: ArrayLike,
    k: ArrayLike = 1,
    r_max: ArrayLike = 1.0,
    form: Form = "exact",
) -> Array:
    """C_Th2, for k imagined steps that branch off real histories (Theorem 2).

    With eps = eps_m + eps_pi, Table 1 prints `r_max [2 eps_pi (1 + gamma^2) / (1 - gamma)^2
    + eps (gamma - k gamma^k + (k - 1) gamma^(k + 1)) / (1 - gamma)^2 + eps (gamma^k - gamma) / (gamma - 1)
    + eps (k + 1) gamma^k / (1 - gamma)]`. The sum at the end of the proof is smaller: its terms in 2 eps_pi alone are
    `1 + sum_t t gamma^t = (1 - gamma + gamma^2) / (1 - gamma)^2`, of which the printed form drops `- gamma`. So

    - exact: `r_max [2 eps_pi (1 - gamma + gamma^2) / (1 - gamma)^2 + eps g(k)]`, where
      `g(k) = 2 gamma / (1 - gamma) + gamma^2 (1 - gamma^(k - 1)) / (1 - gamma)^2` grows with k, so that k = 1 is best;
    - printed: exact + `2 gamma eps_pi r_max / (1 - gamma)^2`; it holds too, but says less.

    Args:
        gamma: discount in [0, 1), `...`.
        eps_m: model error in [0, 1], `...`.
        eps_pi: policy divergence in [0, 1], `...`.
        k: imagined steps of a branch, whole, at least 1, `...`.
        r_max: bound of the expected reward, > 0, `...`.
        form: "exact" or "printed".

    Returns:
        `...`, in units of the return.

    Raises:
        ConfigError: arguments out of range, all named at once; k = 0, for which there is no theorem.
    """
    gamma, eps_m, eps_pi, k, r_max = _checked(gamma=gamma, eps_m=eps_m, eps_pi=eps_pi, k=k, r_max=r_max)
    if form not in ("exact", "printed"):
        raise ConfigError(f"form={form!r}: no such form of the bound", "choose 'exact' or 'printed'")
    rest = 1 - gamma
    branch = 2 * gamma / rest + gamma**2 * (1 - gamma ** (k - 1)) / rest**2
    policy = 1 + gamma**2 - (gamma if form == "exact" else 0.0)
    return r_max * (2 * eps_pi * policy / rest**2 + (eps_m + eps_pi) * branch)


def vacuous_above(gamma: ArrayLike, r_max: ArrayLike = 1.0) -> Array:
    """`2 r_max / (1 - gamma)`, the most by which any two returns can differ: beyond it a discrepancy says nothing.

    Args:
        gamma: discount in [0, 1), `...`.
        r_max: bound of the expected reward, > 0, `...`.

    Raises:
        ConfigError: arguments out of range.
    """
    gamma, r_max = _checked(gamma=gamma, r_max=r_max)
    return 2 * r_max / (1 - gamma)


def pinsker(divergence: ArrayLike) -> Array:
    """Total variation that a Kullback-Leibler divergence allows, `min(sqrt(KL / 2), 1)` (Pinsker's inequality).

    Args:
        divergence: KL in nats, `...`; below 0 (an estimate may be) counts as 0, and what is not a number as unbounded.

    Returns:
        `...`, in [0, 1].
    """
    divergence = np.nan_to_num(np.asarray(divergence, dtype=np.float64), nan=np.inf, posinf=np.inf)
    return np.minimum(np.sqrt(np.maximum(divergence, 0.0) / 2), 1.0)


def range_problems(**arguments: ArrayLike) -> list[str]:
    """What is wrong with arguments of the functions above, in words; empty if they are all in range.

    Args:
        arguments: any of `gamma`, `eps_m`, `eps_pi`, `k`, `r_max`.
    """
    problems = []
    for name, value in arguments.items():
        values = np.asarray(value, dtype=np.float64)
        allowed, inside = {
            "gamma": ("at least 0 and below 1", (values >= 0) & (values < 1)),
            "eps_m": ("a total variation distance, from 0 to 1", (values >= 0) & (values <= 1)),
            "eps_pi": ("a total variation distance, from 0 to 1", (values >= 0) & (values <= 1)),
            "r_max": ("above 0 and finite", (values > 0) & np.isfinite(values)),
            "k": ("a whole number, at least 1", (values >= 0) & (values == np.floor(values)) & np.isfinite(values)),
        }[name]
        if not inside.all():
            problems.append(f"{name}={values[~inside].flat[0]:g}: must be {allowed}")
        elif name == "k" and (values == 0).any():
            problems.append(
                "k=0: Theorem 2 holds for k >= 1 only; without an imagined step there is no return in the model to bound"
            )
    return problems


def _checked(**arguments: ArrayLike) -> tuple[Array, ...]:
    problems = range_problems(**arguments)
    if problems:
        raise ConfigError("; ".join(problems), "give values in range; see python -m mbrl_lightning.bounds --help")
    return tuple(np.asarray(value, dtype=np.float64) for value in arguments.values())
