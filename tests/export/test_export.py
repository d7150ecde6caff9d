"""Exported files: every method is in them or says why not, they need no PyTorch, and what cannot be trusted is refused."""

from __future__ import annotations

import importlib.util
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import VARIANTS

import mbrl_lightning
from mbrl_lightning import load
from mbrl_lightning.errors import ConfigError, StorageError
from mbrl_lightning.export import NEEDED, export, main, parity

EXAMPLE = Path(mbrl_lightning.__file__).parents[1] / "examples" / "drive_onnx.py"
needs_onnx = pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in NEEDED), reason="extra export")
UNLIKE, ELITES = ("it believes nothing of", "mbrl_lightning.load"), ("actions of .* differ by", "FILE.pt2")
REFUSED = dict.fromkeys(("mb_mpo", "maml", "reptile", "m_dpilco"), UNLIKE)
REFUSED |= {"cadm": ELITES}  # which plans by CEM
REFUSED |= {"rl2": ("its adapt is nothing that ONNX has .aten.cummax", "FILE.pt2")}
# which take gradients
REFUSED |= dict.fromkeys(("grbal", "grbal_sac", "famle"), ("its act is nothing that ONNX has", "FILE.pt2"))
REFUSED |= dict.fromkeys(("variational", "ghp_mdp", "mier"), ("its adapt is nothing that ONNX has", "FILE.pt2"))


@pytest.mark.slow
@needs_onnx
@pytest.mark.filterwarnings("ignore")  # of PyTorch's exporter
@pytest.mark.parametrize("name", VARIANTS)
def test_every_method_is_exported_or_refused(trained, tmp_path, name):
    _, folder = trained(name)
    if name in REFUSED:
        why, instead = REFUSED[name]
        with pytest.raises(ConfigError, match=f"cannot be exported: {why}") as caught:
            export(folder, tmp_path / "policy.onnx")
        assert instead in caught.value.remedy
        return
    contract = export(folder, tmp_path / "policy.onnx")
    assert contract["difference"] <= parity.TOLERANCE
    assert all((tmp_path / file).is_file() for file in contract["parts"].values())
    assert {"action"} < {entry["name"] for entry in contract["outputs"]["act"]}


@pytest.fixture
def exported(trained, tmp_path):
    _, folder = trained("gssm_aps")
    return folder, tmp_path / "policy.pt2", export(folder, tmp_path / "policy.pt2", n=2)


def test_programs_of_pytorch_do_what_the_agent_does(exported):
    folder, file, contract = exported
    agent = load(folder)
    assert contract["parts"] == {"begin": "policy_begin.pt2", "adapt": "policy_adapt.pt2", "act": "policy.pt2"}
    assert contract["difference"] <= parity.TOLERANCE
    told = {"mbrl_lightning": ""}
    programs = {
        part: torch.export.load(file.with_name(name), extra_files=told) for part, name in contract["parts"].items()
    }
    act = json.loads(told["mbrl_lightning"])
    assert act["part"] == "act"
    assert act["observation"]["names"] == list(agent.spec.observation_names)
    assert act["observation"]["seen_low"][0] < act["observation"]["seen_high"][0]
    assert act["action"] == {"low": -1.0, "high": 1.0, "size": 1}
    shapes = {entry["name"]: entry["shape"] for entry in act["inputs"]["adapt"]}
    assert shapes["observation"] == [2, "K", 4]
    # contexts of lengths that none was traced with, one after the other
    context = agent.explore(agent.family.test[:2], 9)
    belief = {entry["name"]: None for entry in act["inputs"]["adapt"] if entry["name"].startswith("belief.")}
    values = programs["begin"].module()()
    own = agent.begin(2)
    for rows in (slice(0, 4), slice(4, 9)):
        seen = [context[name][:, rows] for name in ("observation", "action", ("next", "observation"))]
        values = programs["adapt"].module()(*seen, *values)
        own = agent.adapt(own, context[:, rows])
    action = programs["act"].module()(context["observation"][:, 0], *values)[0]
    torch.testing.assert_close(action, agent.act(own, context["observation"][:, 0])[0], atol=1e-6, rtol=0)
    assert len(values) == len(belief)


@pytest.mark.parametrize("name", ["m3po-hidden", "gssm_aps-discrete"])
def test_steps_and_numbers_of_discrete_actions(trained, tmp_path, name):
    _, folder = trained(name)
    contract = export(folder, tmp_path / "policy.pt2")
    assert contract["difference"] <= parity.TOLERANCE
    assert ("step" in contract["parts"]) == (name == "m3po-hidden")
    if name == "gssm_aps-discrete":
        assert contract["action"] == {"numbers": 3}
        assert contract["outputs"]["act"][0]["type"] == "int64"


def test_the_check_notices_another_policy(exported):
    _, file, contract = exported
    with np.load(parity.check_file(file)) as record:
        steps = {name: record[name] for name in record}
    assert len(steps["observation"]) == 100

    def call(part, inputs):
        out = {entry["name"]: np.zeros(1) for entry in contract["outputs"][part]}
        return out | {"action": np.full((2, 1), 0.25)} if part == "act" else out

    found = parity.differences(call, contract, steps)
    np.testing.assert_allclose(found, np.abs(steps["action"] - 0.25).max((1, 2)), atol=1e-12)


def test_a_run_that_was_trained_on_a_gpu_is_exported_where_there_is_none(trained, tmp_path):
    _, folder = trained("dr_ppo")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("accelerator: cpu", "accelerator: gpu"))
    assert export(folder, tmp_path / "policy.pt2")["difference"] <= parity.TOLERANCE


def test_what_cannot_be_exported_is_said(trained, tmp_path, monkeypatch, capsys):
    with pytest.raises(ConfigError, match="algorithm=mb_mpo cannot be exported: it believes nothing of"):
        export("pretrained:point2d", tmp_path / "policy.pt2")  # which is tested without a context, and learns from one
    _, folder = trained("maml")
    with pytest.raises(ConfigError, match=r"algorithm=maml cannot be exported: it believes nothing of policy"):
        export(folder, tmp_path / "policy.pt2")
    for out in ("policy", "policy.txt", ".onnx"):
        assert main([f"run={folder}", f"out={tmp_path / out}"]) == 2
    monkeypatch.setattr("mbrl_lightning.export.importlib.util.find_spec", lambda name: None)
    assert main([f"run={folder}", f"out={tmp_path / 'policy.onnx'}"]) == 2
    assert "mbrl_lightning[export]" in capsys.readouterr().err
    (folder / "manifest.json").write_text(json.dumps({"mbrl_lightning": "0.0.9"}))
    (state,) = folder.glob("checkpoints/step_*/state.pt")
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    with pytest.raises(StorageError, match=r"(?s)another size.*0\.0\.9, this is"):
        export(folder, tmp_path / "policy.pt2")
    assert not list(tmp_path.glob("policy*"))


@needs_onnx
@pytest.mark.filterwarnings("ignore")
def test_the_example_drives_a_body_with_numpy_and_onnxruntime_alone(trained, tmp_path, capsys, monkeypatch):
    _, folder = trained("gssm_aps")
    export(folder, tmp_path / "policy.onnx")
    source = EXAMPLE.read_text()
    assert "torch" not in source
    assert "import mbrl_lightning" not in source
    assert "from mbrl_lightning" not in source
    monkeypatch.setattr("sys.argv", ["drive_onnx.py", str(tmp_path / "policy.onnx")])
    told = runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "mean reward" in capsys.readouterr().out
    after, (across, below) = torch.tensor(told["after"][0]), told["tip"]  # and it is the family's reward
    paid = mbrl_lightning.load(folder).spec.reward(after, after[:, :1], after)
    np.testing.assert_allclose(np.expm1(-(across**2 + below**2) / 0.125), paid, atol=1e-5)
