"""Recorded data: what a run holds comes back as it was, and what does not fit is named."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from fakes import counter_family, fingerprint, random_steps

from mbrl_lightning import fit
from mbrl_lightning.data.buffer import COLUMNS, TaskBuffer
from mbrl_lightning.data.recordings import pieces, read, write
from mbrl_lightning.errors import ConfigError, EnvError, StorageError
from mbrl_lightning.evaluate import load_run
from mbrl_lightning.fit import main as fitting
from mbrl_lightning.fit_model import fit_model, main, parsed
from mbrl_lightning.record import main as recording
from mbrl_lightning.record import record
from mbrl_lightning.runs import checkpoint

minari = pytest.importorskip("minari")
from gymnasium import spaces  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of Minari, about authors that are not told


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """Minari's store in a folder of its own."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def made(name: str, seen=None, taken=None, episodes: int = 3, steps: int = 12, change=None, told: bool = True):
    """A dataset of made-up numbers; `change` gets the arrays of the second episode."""
    draws, seen = np.random.default_rng(len(name)), seen or spaces.Box(-np.inf, np.inf, (2,), np.float64)
    taken, buffers = taken or spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 1.0]), dtype=np.float64), []
    for number in range(episodes):
        observations = draws.normal(size=(steps + 1, *seen.shape)).astype(seen.dtype)
        actions = np.stack([taken.sample() for _ in range(steps)])
        columns = {"observations": observations, "actions": actions, "rewards": draws.normal(size=steps)}
        columns |= {"terminations": np.zeros(steps, bool), "truncations": np.arange(steps) == steps - 1}
        if change and number == 1:
            change(columns)
        buffers.append(minari.data_collector.EpisodeBuffer(id=number, **columns))
    data = minari.create_dataset_from_buffers(name, buffers, observation_space=seen, action_space=taken)
    if told:
        data.storage.update_episode_metadata([{"task": np.array([float(number)])} for number in range(episodes)])
        data.storage.update_metadata({"mbrl_lightning": json.dumps({"parameters": ["mass"]})})
    return buffers


def test_a_buffer_comes_back_as_it_was():
    family = counter_family(8)
    real, other = TaskBuffer(1, 1000), TaskBuffer(1, 1000)
    tasks = torch.tensor([[2.0], [4.0]], dtype=torch.float64)
    real.extend(
        random_steps(family, tasks, 20, torch.Generator().manual_seed(1)), real.add_tasks(tasks), exploratory=True
    )
    assert write(real, family, "counter/all-v0", {"family": "counter"}) == (6, 40)
    found = read(["counter/all-v0"], family.spec, family.parameters)
    assert found.horizon == 8
    found.fill(other)
    one, two = real.transitions(), other.transitions()
    one = one[torch.cat(pieces(one))]  # one episode after the other
    for key in COLUMNS:
        torch.testing.assert_close(one[key], two[key])
    for key in ("age", "initial", "exploratory"):
        assert torch.equal(one[key], two[key])
    assert torch.equal(real.tasks[one["task"]], other.tasks[two["task"]])
    with pytest.raises(ConfigError, match="already exists"):
        write(real, family, "counter/all-v0", {})


def test_actions_are_scaled_and_tasks_are_told_by_metadata_or_by_dataset():
    (first, *_) = made("told-v0")
    found = read(["told-v0"])
    assert (found.parameters, [episode.task for episode in found.episodes]) == (("mass",), [(0.0,), (1.0,), (2.0,)])
    expected = np.stack([first.actions[:, 0] / 2, 2 * first.actions[:, 1] - 1], 1)
    np.testing.assert_allclose(found.episodes[0].data["action"][0], expected, atol=1e-6)
    made("one-v0", told=False)
    made("other-v0", told=False)
    both, buffer = read(["one-v0", "other-v0"]), TaskBuffer(1, 1000)
    both.fill(buffer)
    assert buffer.transitions()["task"].unique().tolist() == [0, 1]
    made("choices-v0", taken=spaces.Discrete(3))
    assert read(["choices-v0"]).episodes[0].data["action"].sum(-1).eq(1).all()


def spoiled(column: str):
    def change(columns):
        columns[column][3] = np.nan

    return change


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"change": spoiled("observations")}, EnvError, r"episode 1, step 3: observations .* not finite"),
        ({"change": spoiled("rewards")}, EnvError, r"episode 1, step 3: rewards"),
        ({"seen": spaces.Box(0, 255, (4, 4), np.uint8)}, ConfigError, "observations are Box.*uint8"),
        ({"seen": spaces.Box(0, 9, (2,), np.int64)}, ConfigError, "not a row of floating-point numbers"),
        ({"taken": spaces.MultiDiscrete([2, 2])}, ConfigError, "actions are MultiDiscrete"),
        ({"taken": spaces.Box(-np.inf, np.inf, (1,))}, ConfigError, "neither bounded"),
        ({"episodes": 1}, ConfigError, "1 episode in all"),
        (
            {"change": lambda columns: columns.update(actions=columns["actions"][:-5])},
            ConfigError,
            "1 has 7 actions for 12",
        ),
    ],
)
def test_what_cannot_be_used_is_named(changes, kind, text):
    made("bad-v0", **changes)
    with pytest.raises(kind, match=f"(?s)bad-v0.*{text}"):
        read(["bad-v0"])


def test_a_name_that_minari_would_choke_on_writes_nothing(tmp_path):
    for name in ("bad name", "nov", "a/-v0", "x/../y-v0"):
        with pytest.raises(ConfigError, match="no name of a dataset"):
            write(TaskBuffer(1, 10), counter_family(), name, {})
    assert not (tmp_path / "minari").exists()


def test_datasets_that_do_not_fit_or_are_not_there(tmp_path):
    made("here-v0")
    with pytest.raises(ConfigError, match="no such dataset here; there are: here-v0"):
        read(["there-v0"])
    with pytest.raises(ConfigError, match="here-v0: a dataset is named twice"):
        read(["here-v0", "here-v0"])
    with pytest.raises(ConfigError, match="data=nothing"):
        read(["nothing of the kind"])
    made("wide-v0", seen=spaces.Box(-1, 1, (3,), np.float32))
    with pytest.raises(ConfigError, match="wide-v0: it has observations 3, not 2"):
        read(["here-v0", "wide-v0"])
    with pytest.raises(
        ConfigError, match=r"here-v0: it has actions 2, not 1; parameters \('mass',\), not \('number',\)"
    ):
        read(["here-v0"], counter_family().spec, counter_family().parameters)
    about = tmp_path / "minari" / "here-v0" / "data" / "metadata.json"
    about.write_text(about.read_text().replace(f'"{minari.__version__}"', '"0.1.0"'))
    with pytest.raises(ConfigError, match=f"0.1.0(?s:.*)minari {minari.__version__} is here"):
        read([str(tmp_path / "minari" / "here-v0")])
    rows = tmp_path / "minari" / "wide-v0" / "data" / "main_data.hdf5"
    rows.write_bytes(rows.read_bytes()[: rows.stat().st_size // 2])
    with pytest.raises(StorageError, match="wide-v0: cannot be read"):
        read(["wide-v0"])
    (tmp_path / "minari" / "bad name" / "data").mkdir(parents=True)
    for name in ("metadata.json", "main_data.hdf5"):
        shutil.copy(tmp_path / "minari" / "here-v0" / "data" / name, tmp_path / "minari" / "bad name" / "data")
    with pytest.raises(ConfigError, match="no such dataset here; there are: what `minari list local` shows"):
        read(["there-v0"])


def test_the_command_fits_and_says_how_far_it_errs(tmp_path, capsys):
    made("body-v0", episodes=6, steps=20)
    words = ["data=body-v0", f"out={tmp_path / 'fit'}", "dynamics=ensemble", "steps=5", "dynamics.hidden=8"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "tested on 1 of 6 tasks" in out
    assert "within 2 spreads" in out
    assert (tmp_path / "fit" / "calibration.png").stat().st_size > 5000
    assert main([*words, "algorithm=dr_ppo"]) == 2
    assert main(["data=body-v0", f"out={tmp_path / 'fit'}", "algorithm=dr_ppo"]) == 2
    assert "fits no model" in capsys.readouterr().err
    assert main(["dynamics=graf"]) == 2
    assert "did you mean 'graph'" in capsys.readouterr().err


def test_spread_and_error_of_a_model_are_those_of_its_members(tmp_path):
    made("body-v0", episodes=4)
    _, cfg = parsed(["data=x", "dynamics=ensemble", "dynamics.hidden=8"])
    found = fit_model("body-v0", cfg, tmp_path / "fit", steps=1)
    assert found["truth"].shape == (12, 2)
    row = found["table"].rows[1]
    error = (found["mean"] - found["truth"])[:, 1]
    assert float(row[2]) == pytest.approx(float(error.square().mean().sqrt()), rel=1e-2)
    assert float(row[4]) == pytest.approx(float(found["spread"][:, 1].square().mean().sqrt()), rel=1e-2)
    first = checkpoint.load(tmp_path / "fit" / "checkpoints")[1]["algorithm"]
    cfg.seed = 5
    fit_model("body-v0", cfg, tmp_path / "fit", steps=1)  # into the same folder
    assert fingerprint(checkpoint.load(tmp_path / "fit" / "checkpoints")[1]["algorithm"]) != fingerprint(first)


def test_a_run_is_recorded_a_model_fitted_to_it_and_a_run_begun_with_both(trained, tmp_path):
    loop, folder = trained("gssm_aps", env={"name": "cartpole"})
    episodes, transitions = record(folder, "cartpole/debug-v0")
    assert transitions == len(loop.real)
    _, cfg = parsed(["data=x", "conf=debug", "dynamics=graph"])
    fitted = fit_model("cartpole/debug-v0", cfg, tmp_path / "fit", steps=2)
    assert fitted["truth"].shape[1] == 4
    begun = {"conf": "debug", "data": ["cartpole/debug-v0"], "init_from": str(tmp_path / "fit"), "out": str(tmp_path)}
    fit(**begun, loop={"iterations": 1, "evaluate_every": 0}, evaluation={"shots": [0]})
    again = load_run(tmp_path / "debug" / "gssm_aps" / "seed0")
    assert again.real.num_steps > transitions
    seen = [run.real.transitions()["observation"] for run in (again, loop)]
    assert torch.equal(seen[0][:transitions].sort(0)[0], seen[1].sort(0)[0])
    assert episodes >= 2


def test_without_minari_the_extra_is_named(tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "minari" else found(name, *rest)
    )
    for command in (
        lambda: main(["data=a-v0", f"out={tmp_path}"]),
        lambda: recording(["run=runs/x", "out=a-v0"]),
        lambda: fitting(["conf=debug", "data=a-v0", f"out={tmp_path}"]),
    ):
        assert command() == 2
        assert "mbrl_lightning[offline]" in capsys.readouterr().err
