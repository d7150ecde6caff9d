"""The pinned versions: those beside packages that want an older MuJoCo, and that they install and run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BESIDE = {"dm_control": ("dm_control", "shimmy"), "metaworld": ("metaworld",)}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", BESIDE)
def test_pins_beside_another_package_differ_in_mujoco_alone(name):
    ours, beside = pins("constraints.txt"), pins(f"constraints-{name}.txt")
    shared = {package: version for package, version in ours.items() if not package.startswith("mujoco")}
    assert shared.items() <= beside.items()
    assert beside["mujoco"] != ours["mujoco"]


@pytest.mark.slow
@pytest.mark.parametrize("name", BESIDE)
def test_they_install_and_the_adapter_runs(name, tmp_path):
    """In an environment of its own, from pip's configured index; skipped where there is none."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python, quiet = tmp_path / "env/bin/python", ["-q", "--no-input", "--disable-pip-version-check"]
    pip = [python, "-m", "pip", "install", *quiet]
    torch = f"torch=={pins('constraints.txt')['torch'].partition('+')[0]}"
    if subprocess.run([*pip, "--no-deps", torch], check=False).returncode:
        pytest.skip("no index that has PyTorch")
    beside = f"constraints-{name}.txt"
    subprocess.run([*pip, "-c", beside, ".", *BESIDE[name], "pytest"], check=True, cwd=ROOT)
    word = {**os.environ, "PYTHONPATH": ""}
    test = ROOT / f"tests/envs/test_{name}.py"
    ran = subprocess.run(
        [python, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider", test],
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        env=word,
    )
    assert ran.returncode == 0, ran.stdout
    assert "skipped" not in ran.stdout
