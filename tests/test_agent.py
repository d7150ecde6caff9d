"""The agent that a run becomes: every method begins, acts, adapts and predicts; what cannot be its own is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import VARIANTS, fingerprint
from gymnasium.wrappers import TimeLimit

import mbrl_lightning
from mbrl_lightning import load
from mbrl_lightning.data.collect import collect, consecutive, episode_returns
from mbrl_lightning.errors import ConfigError, DivergedError, EnvError, StorageError
from mbrl_lightning.evaluate import load_run
from mbrl_lightning.fit import main
from mbrl_lightning.runs import checkpoint

CONTEXT = ("gssm", "gssm_aps", "mlsm_v0", "mlsm_v1_aps", "m_dpilco", "pearl", "mb_mpo", "maml", "reptile", "pe_ppo")
STEP = ("m3po", "m3po_h", "m2po", "recurrent_sac", "grbal", "rebal", "pearl-hidden", "rl2")


def steps(agent, n: int, count: int | None = None) -> dict:
    """Made-up transitions of n environments as arrays, `count` in a row or one."""
    draws, spec, lead = np.random.default_rng(0), agent.spec, (n,) if count is None else (n, count)
    actions = draws.uniform(-1, 1, (*lead, spec.action_dim)).astype(np.float32)
    states = draws.normal(size=(n, (count or 1) + 1, spec.observation_dim)).astype(np.float32)
    before, after = (states[:, 0], states[:, 1]) if count is None else (states[:, :-1], states[:, 1:])
    chosen = actions.argmax(-1) if spec.discrete else actions
    return {"observation": before, "action": chosen, "next": {"observation": after}}


def as_context(agent, steps: dict):
    """Arrays of a context as an algorithm takes them."""
    actions = torch.tensor(steps["action"])
    if agent.spec.discrete:
        actions = torch.nn.functional.one_hot(actions, agent.spec.action_dim).float()
    parts = torch.tensor(steps["observation"]), actions, torch.tensor(steps["next"]["observation"])
    return consecutive(agent.spec, *parts)


def differ(first, second) -> bool:
    return fingerprint(first.to_dict()) != fingerprint(second.to_dict())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_method_begins_acts_adapts_predicts_and_imagines_or_says_that_it_cannot(trained, name):
    loop, folder = trained(name)
    torch.manual_seed(7)
    drawn = torch.get_rng_state()
    agent = load(folder)
    assert torch.equal(torch.get_rng_state(), drawn)
    context, step = steps(agent, 2, 5), steps(agent, 2)
    now, then = step["observation"], step["next"]["observation"]
    belief = agent.adapt(agent.begin(2), context)
    held = fingerprint(belief.to_dict())
    action, told = agent.act(belief, now)
    assert action.shape == ((2,) if agent.spec.discrete else (2, agent.spec.action_dim))
    after = agent.adapt(told, step)
    agent.act(after, now, torch.Generator().manual_seed(0))
    assert fingerprint(belief.to_dict()) == held
    # as the documents say which methods learn from what
    if name in (*CONTEXT, *STEP):
        assert differ(belief, agent.begin(2)) or name == "pearl-hidden"
        assert differ(after, told) == (name in STEP) or name in ("pearl", "pe_ppo")  # which count their steps

    # arrays for arrays, tensors for tensors, and both what the algorithm does
    own = loop.algorithm.adapt(loop.algorithm.begin(2), as_context(agent, context))
    choice, _ = loop.algorithm.act(own, torch.tensor(now))
    choice = choice.argmax(-1) if agent.spec.discrete else choice.clamp(-1, 1)
    np.testing.assert_array_equal(action, choice.numpy())
    assert torch.equal(agent.act(belief, torch.tensor(now))[0], choice)

    # a row that begins anew acts as a new one does, the other as it would in a loop
    first, state = agent.predict(now, deterministic=True)
    second, _ = agent.predict(then, state, np.array([False, True]), deterministic=True)
    taken = {"observation": now, "action": first, "next": {"observation": then}}
    looped, _ = agent.act(agent.adapt(agent.act(agent.begin(2), now)[1], taken), then)
    np.testing.assert_allclose(second[0], looped[0], atol=1e-5)
    # plans are made of draws that go by the age of the oldest row, and a trial goes on over its episodes
    if not {"plan", "trial"} & {*belief.keys()}:
        np.testing.assert_allclose(second[1], agent.act(agent.begin(2), then)[0][1], atol=1e-5)
    assert agent.predict(now[0])[0].shape == action.shape[1:]

    if loop.algorithm.model is None:
        with pytest.raises(ConfigError, match="no model to imagine with"):
            agent.imagine(belief, now, context["action"])
        return
    imagined = agent.imagine(belief, now, context["action"])
    assert imagined["observation"].shape == imagined["spread"].shape == (2, 5, agent.spec.observation_dim)
    assert np.isfinite(imagined["members"]).all()
    assert imagined["reward"].shape == imagined["members"].shape[:-1]


# -- the model


def test_each_member_goes_its_own_way(trained):
    _, folder = trained("gssm_aps-ensemble")
    agent = load(folder)
    given, actions = steps(agent, 3, 4), torch.tensor(steps(agent, 3, 4)["action"])
    belief = agent.adapt(agent.begin(3), given)
    start = torch.tensor(given["observation"][:, 0])
    imagined = agent.imagine(belief, start, actions)
    seen = start.unsqueeze(1).expand(-1, 2, -1)  # a row for each member
    for step in range(4):
        before, action = seen, actions[:, step].unsqueeze(1).expand(-1, 2, -1)
        seen = agent.algorithm.dynamics.imagine(seen, action, belief)
        members = imagined["members"][:, :, step].transpose(0, 1)
        torch.testing.assert_close(members, seen, atol=1e-5, rtol=1e-4)
        reward = agent.spec.reward(before, action, seen).transpose(0, 1)
        torch.testing.assert_close(imagined["reward"][:, :, step], reward, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(imagined["observation"], imagined["members"].mean(0))
    assert imagined["spread"].mean() > 0.01
    half = (imagined["members"][0] - imagined["members"][1]).abs() / 2  # the deviation of two
    torch.testing.assert_close(imagined["spread"], half, atol=1e-6, rtol=1e-4)


def test_a_history_goes_on_with_what_is_imagined_and_an_adapted_model_stays(trained):
    _, folder = trained("m3po")
    agent = load(folder)
    given = steps(agent, 1, 3)
    belief, start = agent.adapt(agent.begin(1), given), given["observation"][:, 0]
    imagined = agent.imagine(belief, start, given["action"])
    member, told, seen = imagined["members"][:1], belief, start
    for step in range(3):
        action = given["action"][:, step]
        asked = torch.tensor(seen).unsqueeze(1), torch.tensor(action).unsqueeze(1), told
        following = agent.algorithm.dynamics.predictions(*asked)[0, :, 0]
        following = following.clamp(agent.algorithm.dynamics.low, agent.algorithm.dynamics.high).numpy()
        np.testing.assert_allclose(member[0, :, step], following, atol=1e-5)
        told = agent.adapt(told, {"observation": seen, "action": action, "next": {"observation": following}})
        seen = following

    _, folder = trained("grbal")
    agent = load(folder)
    agent.algorithm.dynamics.low.fill_(-torch.inf)
    agent.algorithm.dynamics.high.fill_(torch.inf)
    given = steps(agent, 1, 6)
    belief, start = agent.adapt(agent.begin(1), given), given["observation"][:, 0]
    imagined = agent.imagine(belief, start, given["action"])["members"]
    _, told = agent.act(belief, start)  # with theta'
    asked = torch.tensor(start).unsqueeze(1), torch.tensor(given["action"][:, :1])
    adapted, plain = (agent.algorithm.dynamics.predictions(*asked, of)[:, :, 0].detach() for of in (told, belief))
    np.testing.assert_allclose(imagined[:, :, 0], adapted, atol=1e-5)
    assert abs(adapted - plain).max() > 1e-4


# -- in an environment


def played(agent, env, episodes: int, belief=None) -> list[float]:
    """Returns of a plain loop that tells the agent every step."""
    returns = []
    for _ in range(episodes):
        begun = agent.begin(1) if belief is None else belief
        (observation, _), total, done = env.reset(), 0.0, False
        while not done:
            action, begun = agent.act(begun, observation[None])
            following, reward, terminated, truncated, _ = env.step(action[0])
            step = {"observation": observation[None], "action": action, "next": {"observation": following[None]}}
            begun = agent.adapt(begun, step)
            observation, total, done = following, total + reward, terminated or truncated
        returns.append(total)
    return returns


@pytest.mark.parametrize("name", ["gssm_aps", "m3po", "gssm_aps-discrete"])
def test_stable_baselines_evaluates_it(trained, name):
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    vectors = pytest.importorskip("stable_baselines3.common.vec_env")
    monitor = pytest.importorskip("stable_baselines3.common.monitor")
    _, folder = trained(name)
    agent = load(folder)
    env = TimeLimit(agent.family.make(agent.family.test[0]), 30)
    belief = agent.adapt(agent.begin(1), agent.explore(agent.family.test[:1], 20))
    env.reset(seed=3)
    expected = played(agent, env, 2, belief)
    env.reset(seed=3)
    wrapped = vectors.DummyVecEnv([lambda: monitor.Monitor(env)])
    returns, lengths = evaluation.evaluate_policy(
        agent.believing(belief), wrapped, 2, deterministic=True, return_episode_rewards=True
    )
    np.testing.assert_allclose(returns, expected, rtol=1e-4)
    assert all(length <= 30 for length in lengths)
    drawn = evaluation.evaluate_policy(agent, wrapped, 1, deterministic=False, return_episode_rewards=True)[0]
    assert np.isfinite(drawn).all()


def test_a_loop_earns_what_the_librarys_own_does(trained):
    """In many tasks at once, told by the simulator, against one after the other in plain environments."""
    _, folder = trained("m3po-hidden")
    agent = load(folder)
    task = agent.family.test[:1]
    env = agent.family.make(task[0])
    env.reset(seed=1)
    draws = env.np_random.bit_generator.state
    (earned,) = played(agent, env, 1)
    env.np_random.bit_generator.state = draws
    start = torch.Generator().manual_seed(int(env.np_random.integers(2**62)))
    algorithm, simulator = agent.algorithm, agent.family.simulate(task)
    episode = collect(simulator, agent.spec, algorithm, algorithm.begin(1), 20, start, training=False)
    total = episode_returns(episode, agent.spec) * (agent.spec.horizon if agent.spec.unit == "step" else 1)
    assert earned == pytest.approx(float(total), abs=1e-4)


def test_the_readme_shows_it(trained):
    _, folder = trained("gssm_aps")
    readme = (Path(mbrl_lightning.__file__).parents[1] / "README.md").read_text()
    (block,) = (text for text in re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S) if "import load" in text)
    assert len([line for line in block.splitlines() if line]) <= 14
    names: dict = {}
    exec(re.sub(r'load\("[^"]*"\)', f"load({str(folder)!r})", block), names)
    assert np.isfinite(names["total"])
    assert names["done"]


# -- what is refused


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="not a run folder"):
        load(tmp_path)


def test_half_a_checkpoint(trained):
    _, folder = trained("dr_ppo")
    (state,) = folder.glob("checkpoints/step_*/state.pt")
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    with pytest.raises(StorageError, match="another size"):
        load(folder)


def rewritten(loop, folder: Path, **changes) -> None:
    """The run with a newer checkpoint in which something is different."""
    state = {key: value for key, value in (loop.state_dict() | changes).items() if value is not None}
    checkpoint.save(folder / "checkpoints", 9, state, keep=1)


def test_a_run_of_an_older_version(trained, caplog, capsys):
    loop, folder = trained("dr_ppo")
    (folder / "manifest.json").write_text(json.dumps({"mbrl_lightning": "0.0.9"}))
    load(folder)
    load_run(folder)
    assert caplog.text.count("written by mbrl_lightning 0.0.9") == 2
    weights = loop.state_dict()["algorithm"]
    old = {name.replace("policy.net", "policy.network"): value for name, value in weights.items()}
    rewritten(loop, folder, algorithm=old)
    with pytest.raises(ConfigError, match=r"(?s)policy.net.*absent.*policy.network.*0\.0\.9, this is") as caught:
        load(folder)
    assert "use version 0.0.9" in caught.value.remedy
    with (folder / "config.yaml").open("a") as file:
        file.write("a_key_of_old: 1\n")
    assert main([f"resume={folder}"]) == 2
    assert "a_key_of_old" in (said := capsys.readouterr().err)
    assert "0.0.9, this is" in said
    with pytest.raises(ConfigError, match=r"(?s)a_key_of_old.*0\.0\.9"):
        load(folder)


def test_a_task_family_that_is_another_one_now(trained):
    loop, folder = trained("dr_ppo")
    before = loop.state_dict()["family"]
    rewritten(loop, folder, family=before | {"observation 1": "pole [deg]", "horizon": 77})
    with pytest.raises(ConfigError, match=r"(?s)horizon +77 +\d+\n +observation 1 +pole \[deg\]") as caught:
        load(folder)
    assert len(caught.value.cause.splitlines()) == 4
    rewritten(loop, folder.with_name("from before it was kept"), family=None)
    (folder.with_name("from before it was kept") / "config.yaml").write_text((folder / "config.yaml").read_text())
    load(folder.with_name("from before it was kept"))


@pytest.fixture
def agent(trained):
    return load(trained("gssm_aps")[1])


def test_observations_of_another_size_shape_or_kind_and_not_finite_ones(agent):
    belief, width = agent.begin(2), agent.spec.observation_dim
    for wrong in (np.zeros((2, width + 1)), [["a"] * width] * 2):
        with pytest.raises(ConfigError, match="observation"):
            agent.act(belief, wrong)
    with pytest.raises(ConfigError, match="no batch"):
        agent.act(belief, np.zeros(width))
    with pytest.raises(ConfigError, match="2 rows for 3"):
        agent.act(belief, np.zeros((3, width)))
    broken = np.zeros((2, width))
    broken[1, 2] = np.nan
    with pytest.raises(EnvError, match=re.escape(f"row 1 has a non-finite {agent.spec.observation_names[2]}")):
        agent.act(belief, broken)
    step = steps(agent, 2)
    step["next"]["observation"][0, 0] = np.inf
    with pytest.raises(EnvError, match="row 0"):
        agent.adapt(belief, step)
    with pytest.raises(ConfigError, match="action of shape"):
        agent.adapt(belief, steps(agent, 2) | {"action": np.zeros((2, 7))})
    with pytest.raises(ConfigError, match="action of shape"):
        agent.imagine(belief, np.zeros((2, width)), np.zeros((2, 0, 1)))


def test_nothing_to_adapt_to_and_nobody_to_begin(agent):
    with pytest.raises(ConfigError, match="0 transitions"):
        agent.adapt(agent.begin(2), agent.explore(agent.family.test[:2], 5)[:, :0])
    for nothing in ({}, [], steps(agent, 2) | {"next": {}}):
        with pytest.raises(ConfigError, match="transitions are a"):
            agent.adapt(agent.begin(2), nothing)
    with pytest.raises(ConfigError, match="begin"):
        agent.begin(0)


def test_what_is_of_no_use_is_named(agent):
    belief, seen, taken = agent.begin(2), np.zeros((2, agent.spec.observation_dim)), np.zeros((2, 3, 1))
    state, tasks = agent.predict(seen)[1], agent.family.test[:2]
    refused = {
        "begin: n='x'": lambda: agent.begin("x"),
        "begin: n=2.5": lambda: agent.begin(2.5),
        "a list is no array": lambda: agent.act(belief, [[1.0], [2.0, 3.0]]),
        "a str is no array": lambda: agent.imagine(belief, seen, "left"),
        "which is empty": lambda: agent.imagine(belief, seen, taken[:, :0]),
        "none of predict's": lambda: agent.predict(seen, (None, None)),
        "episode_start of shape": lambda: agent.predict(seen, state, np.zeros(3, bool)),
        "no batch": lambda: agent.predict(3.0),
        "explore: steps=0": lambda: agent.explore(tasks, 0),
        "explore: tasks=0": lambda: agent.explore(tasks[:0], 5),
        "do not fit parameters": lambda: agent.explore(tasks[0], 5),
        "the belief is none": lambda: agent.believing(None),
        "device=gpu": lambda: load("pretrained:point2d", device="gpu"),
        "run=3 is no path": lambda: load(3),
    }
    for text, use in refused.items():
        with pytest.raises(ConfigError, match=re.escape(text)):
            use()
    with pytest.raises(EnvError, match="an action is not finite"):
        agent.imagine(belief, seen, taken + np.nan)
    lost = belief.apply(lambda value: value * np.nan if value.is_floating_point() else value)
    with pytest.raises(DivergedError, match="action is not finite"):
        agent.act(lost, seen)
    # lists, half precision and tasks as arrays are taken as they are meant
    action, _ = agent.act(belief, seen.tolist())
    np.testing.assert_array_equal(agent.act(belief, torch.zeros(seen.shape, dtype=torch.bfloat16))[0].numpy(), action)
    assert agent.predict(seen[0].tolist())[0].shape == action.shape[1:]
    assert agent.explore(tasks.tolist(), 5).shape == (2, 5)


def test_a_belief_of_another_agent(agent, trained):
    other = load(trained("gssm_aps", seed=5)[1])
    seen = np.zeros((2, agent.spec.observation_dim))
    for wrong in (other.begin(2), agent.begin(2).exclude("owner"), None):
        for use in (agent.act, agent.adapt, agent.imagine):
            given = {agent.act: (seen,), agent.adapt: (steps(agent, 2),), agent.imagine: (seen, np.zeros((2, 3, 1)))}[
                use
            ]
            with pytest.raises(ConfigError, match="another agent"):
                use(wrong, *given)
    mixed = torch.cat([agent.begin(1), other.begin(1)])
    with pytest.raises(ConfigError, match="another agent"):
        agent.act(mixed, seen)
    agent.act(torch.cat([agent.begin(1), agent.begin(2)])[:2], seen)  # rows of one's own are picked and joined


def test_an_agent_that_believes_begins_with_it(agent):
    belief = agent.adapt(agent.begin(2), steps(agent, 2, 5))
    first, both = agent.believing(belief[:1]), agent.believing(belief)
    assert not differ(first.begin(1), belief[:1])
    assert not differ(first.begin(3)[2:], belief[:1])
    assert not differ(both.begin(2), belief)
    with pytest.raises(ConfigError, match="2 rows"):
        both.begin(3)
    assert differ(agent.begin(2), belief)


def test_discrete_actions_are_numbers_of_choices(trained):
    agent = load(trained("gssm_aps-discrete")[1])
    with pytest.raises(ConfigError, match="from 0 to"):
        agent.adapt(agent.begin(2), steps(agent, 2) | {"action": np.array([0, 9])})
