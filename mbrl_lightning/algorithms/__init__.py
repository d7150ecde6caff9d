"""The table of contents: one file per paper or method."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tensordict import TensorDictBase

from mbrl_lightning.algorithms.acktr import ACKTR
from mbrl_lightning.algorithms.admrl import AdMRL
from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.algorithms.cadm import CaDM
from mbrl_lightning.algorithms.ddpg import DDPG
from mbrl_lightning.algorithms.dr_ppo import DRPPO
from mbrl_lightning.algorithms.famle import FAMLE
from mbrl_lightning.algorithms.gssm_aps import GSSM, GSSMAPS
from mbrl_lightning.algorithms.guided import Guided
from mbrl_lightning.algorithms.l2a import L2A
from mbrl_lightning.algorithms.m3po import M3PO
from mbrl_lightning.algorithms.m_dpilco import MDPILCO
from mbrl_lightning.algorithms.maml import MAML, Reptile
from mbrl_lightning.algorithms.mb_mpo import MBMPO
from mbrl_lightning.algorithms.mier import MIER
from mbrl_lightning.algorithms.pe_ppo import PEPPO
from mbrl_lightning.algorithms.pearl import PEARL
from mbrl_lightning.algorithms.rl2 import RL2
from mbrl_lightning.algorithms.sac import SoftActorCritic
from mbrl_lightning.algorithms.trpo import TRPO
from mbrl_lightning.algorithms.variational import GHPMDP, Variational
from mbrl_lightning.beliefs.encoders import AttentiveEncoder, MeanEncoder
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.seeds import Streams
from mbrl_lightning.envs import users_function
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.guard import Guard
from mbrl_lightning.errors import ConfigError, did_you_mean

ALGORITHMS: dict[str, Callable[[TaskFamily, Config], Algorithm]] = {
    "gssm_aps": GSSMAPS,  # Wang & van Hoof, ICML 2022: amortized policy search
    "gssm": GSSM,  # the same model, unconditioned policy, fine-tuned at meta-test
    "mlsm_v0": partial(GSSM, encoder=MeanEncoder),  # Galashov et al. 2019: GSSM's rival, a neural process
    "mlsm_v1": partial(GSSM, encoder=AttentiveEncoder),  # the same with attention (Kim et al., ICLR 2019)
    "mlsm_v0_aps": partial(GSSMAPS, encoder=MeanEncoder),  # their policies given the belief, which no paper has
    "mlsm_v1_aps": partial(GSSMAPS, encoder=AttentiveEncoder),
    "m_dpilco": MDPILCO,  # deep PILCO (Gal et al. 2016) over tasks: dropout, the policy fine-tuned in a refreshed network
    "m3po": M3PO,  # Hiraoka et al. 2020: hidden tasks that switch; recurrent model and policy, branched rollouts
    "m3po_h": M3PO,  # the same, imagined data giving way to real data
    "m2po": M3PO,  # the same, the model without history
    "recurrent_sac": M3PO,  # the same without imagination: SAC on real histories
    "pearl": PEARL,  # Rakelly et al., ICML 2019: model-free; a latent inferred from a context, SAC given the latent
    "mb_mpo": MBMPO,  # Clavera et al., CoRL 2018: a policy one gradient step away from good ones in each of K models
    "me_trpo": MBMPO,  # Kurutach et al., ICLR 2018: no inner step, every imagined step in a random model
    "grbal": L2A,  # Nagabandi et al., ICLR 2019: a model adapted by gradient at every control step, and a planner in it
    "grbal_sac": Guided,  # the same, whose plans a soft actor-critic proposes and values (LOOP: Sikchi et al. 2021)
    "rebal": L2A,  # the same, adapted by a recurrent state
    "mb_mpc": L2A,  # the same, not adapted (Nagabandi et al., ICRA 2018)
    "maml": MAML,  # Finn et al., ICML 2017: model-free; a policy one gradient step away from good ones in each task
    "reptile": Reptile,  # Nichol et al. 2018: the same without derivatives of the steps
    "variational": Variational,  # Belkhale et al. 2021: a free Gaussian a task, inferred by gradient at test; CEM
    "ghp_mdp": GHPMDP,  # Perez et al. 2020: the same with an ensemble of probabilistic networks
    "rl2": RL2,  # Duan et al. 2016: model-free; a recurrent policy that keeps its state over the episodes of a task
    "pe_ppo": PEPPO,  # GSSM's other model-free rival: PPO given a latent, whose encoder the critic trains
    "cadm": CaDM,  # Lee et al., ICML 2020: a context read off the last transitions, told forwards and backwards
    "mier": MIER,  # Mendonca et al. 2020: a context vector found by gradient in a model; SAC given it, on relabelled data at test
    "admrl": AdMRL,  # Lin et al., NeurIPS 2020: tasks that differ in reward, moved in the model to where the policy is worst
    "famle": FAMLE,  # Kaushik et al., IROS 2020: an embedding of each training situation; online the most likely one, adapted
    "trpo": TRPO,  # Schulman et al., ICML 2015, in the true simulator: their model-free rival
    "acktr": ACKTR,  # Wu et al., NeurIPS 2017, likewise: Kronecker-factored natural gradients of actor and critic
    "ddpg": DDPG,  # Lillicrap et al., ICLR 2016, likewise
    "sac": SoftActorCritic,  # Haarnoja et al. 2018, likewise: on real data alone
    "ppo": DRPPO,  # Schulman et al. 2017, likewise: the next one where nothing varies
    "dr_ppo": DRPPO,  # the model-free rival: PPO with domain randomisation
}

GIVES = {"begin": TensorDictBase, "adapt": TensorDictBase, "act": tuple}  # others give numbers by name


def make_algorithm(cfg: Config, family: TaskFamily) -> Algorithm:
    """Build `cfg.algorithm` with weights drawn from the `init` stream of `cfg.seed`.

    A user's own is what `algorithm(family, cfg)` of `cfg.algorithm_file` returns; what its methods raise is an EnvError that
    says where.

    Raises:
        ConfigError: no such algorithm.
    """
    if cfg.algorithm_file is not None:
        return _users(family, cfg, cfg.algorithm_file)
    if cfg.algorithm not in ALGORITHMS:
        raise ConfigError(
            f"no algorithm '{cfg.algorithm}'{did_you_mean(cfg.algorithm, ALGORITHMS)}",
            f"choose one of {', '.join(ALGORITHMS)}",
        )
    Streams(cfg.seed).seed_globals()
    return ALGORITHMS[cfg.algorithm](family, cfg)


def _users(family: TaskFamily, cfg: Config, file: str) -> Algorithm:
    guard = Guard(
        file, remedy="mend the method; what each of its functions is given and gives stands in algorithms/base.py"
    )
    make = users_function(file, "algorithm", "algorithm_file", guard)
    Streams(cfg.seed).seed_globals()
    found = guard.call("algorithm()", make, family, cfg)
    if not isinstance(found, Algorithm):
        cause = f"algorithm_file: algorithm() of {file} returned a {type(found).__name__}."
        raise ConfigError(cause, "Return a mbrl_lightning.algorithms.base.Algorithm.")
    for name in ("begin", "adapt", "act", "collect", "fit", "improve"):
        setattr(found, name, partial(_given, guard, name, getattr(found, name)))
    return found


def _given(guard: Guard, name: str, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    value, kind = guard.call(f"{name}()", method, *arguments, **named), GIVES.get(name, dict)
    if not isinstance(value, kind):
        raise guard.refuse(f"{name}()", f"a {type(value).__name__}", f"a {kind.__name__}, see algorithms/base.py")
    return value
