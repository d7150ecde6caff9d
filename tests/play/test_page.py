"""The page in a browser: the body is to be seen, and what is moved there moves the physics. What is refused before that."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import mbrl_lightning
from mbrl_lightning.agent import Agent
from mbrl_lightning.config import to_yaml
from mbrl_lightning.play import main
from mbrl_lightning.runs import checkpoint


@pytest.fixture
def run(make_loop, tmp_path):
    """Folder of a run whose only checkpoint is of before it learned anything."""
    loop = make_loop(folder=tmp_path / "run")
    (tmp_path / "run").mkdir(exist_ok=True)
    checkpoint.save(tmp_path / "run" / "checkpoints", 0, loop.state_dict(), keep=1)
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(loop.cfg))
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"mbrl_lightning": mbrl_lightning.__version__}))
    return tmp_path / "run"


def refused(capsys, *words: str) -> str:
    """What the command says that ends with status 2 at once."""
    began = time.monotonic()
    assert main([*words]) == 2
    assert time.monotonic() - began < 1
    return capsys.readouterr().err


def test_a_folder_that_is_no_run_or_an_option_that_is_none(capsys, tmp_path):
    assert "not a run folder" in refused(capsys, f"run={tmp_path}")
    assert "run= is missing" in refused(capsys)
    assert "did you mean 'port'" in refused(capsys, "run=x", "prt=1")
    assert "at most 65535" in refused(capsys, "run=x", "port=99999")


def test_without_viser_the_extra_is_named(capsys, run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'mbrl_lightning[play]'" in refused(capsys, f"run={run}")


def test_a_port_in_use_and_an_address_of_somebody_else(capsys, run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(capsys, f"run={run}", f"port={port}")
        assert f"port={port}: Address already in use" in said
        assert "port=0" in said
    assert "host=192.0.2.1" in refused(capsys, f"run={run}", "host=192.0.2.1")


@pytest.fixture
def browser(tmp_path):
    """`browser()`: a new page of a headless Chromium."""
    pytest.importorskip("viser")
    if shutil.which("chromium") is None:
        pytest.skip("no browser")
    from play.browser import Browser

    opened = []

    def start() -> Browser:
        opened.append(Browser(tmp_path / f"profile{len(opened)}"))
        return opened[-1]

    yield start
    for each in opened:
        each.__exit__()


@pytest.mark.timeout(280)
@pytest.mark.parametrize("name", ["cartpole", "half_cheetah_wide"])
def test_the_body_is_seen_and_a_slider_moves_its_physics(name, browser, make_loop, tmp_path):
    import viser

    from mbrl_lightning.play.page import Page
    from mbrl_lightning.play.session import Session

    pillow = pytest.importorskip("PIL.Image")
    session = Session(Agent(make_loop(env={"name": name, "options": {}}).algorithm))
    server = viser.ViserServer("127.0.0.1", 0, verbose=False)
    page, seen = Page(server, session, "title"), browser()

    def go_on(done, seconds: float = 60.0) -> None:
        """Steps until something has come about."""
        seen.until(lambda: page.advance() or done(), seconds)

    try:
        seen.open(f"http://127.0.0.1:{server.get_port()}")
        go_on(lambda: page.steps > 5 and seen.ask("document.querySelectorAll('[role=slider]').length") == 3)
        task, masses = session.task.clone(), getattr(session.env._simulator, "_models", None)
        mass = masses and masses[0].body_mass[1]
        seen.ask("document.querySelector('[role=slider]').focus()")
        seen.press("ArrowRight", 3)
        go_on(lambda: session.task[0] > task[0])
        if masses:  # twice as heavy where the mass scale is twice as large
            assert masses[0].body_mass[1] / mass == pytest.approx(float(session.task[0] / task[0]))
        else:
            assert torch.equal(session.env._simulator._tasks[0], session.task)

        assert "title" in seen.text()
        go_on(lambda: len(page._seen) > 30)
        picture = np.asarray(pillow.open(io.BytesIO(seen.picture())).convert("RGB")).astype(int)
        middle = picture[150:-100, 320:-330]
        coloured = (middle.max(-1) - middle.min(-1) > 40).mean()  # which floor and background are not
        assert 0.002 < coloured < 0.5
        assert seen.ask("document.querySelectorAll('.uplot canvas').length") == 3
    finally:
        server.stop()
        session.close()


def test_curves_are_of_what_there_is_and_beliefs_may_change_their_size(make_loop):
    viser = pytest.importorskip("viser")
    from mbrl_lightning.play.page import Page
    from mbrl_lightning.play.session import BELIEFS, Session

    for name, curves in (("maml", {"reward", "belief"}), ("mb_mpo", {"reward", "error"})):
        session, server = Session(Agent(make_loop(name).algorithm)), viser.ViserServer("127.0.0.1", 0, verbose=False)
        try:
            page = Page(server, session, "title")
            assert page._plots.keys() == curves
            for choice in BELIEFS[::-1]:
                session.believe(choice)
                page._drawn = 0.0
                page.advance()
        finally:
            server.stop()
            session.close()


@pytest.mark.timeout(200)
def test_a_page_opened_twice_shows_the_same_and_ctrl_c_ends_it(run, browser, elsewhere):
    words = [sys.executable, "-m", "mbrl_lightning.play", f"run={run}", "port=0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("gssm_aps on debug: open http://127.0.0.1:")
            for page in (browser(), browser()):
                page.open(line.split()[4])
                page.until(lambda page=page: "steps a second" in page.text())
            process.send_signal(signal.SIGINT)
            told = process.communicate(timeout=60)
            assert process.returncode == 0
            assert told[0].startswith("closed")
            assert told[1] == ""
        finally:
            process.kill()
