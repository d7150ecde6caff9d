"""Configuration: composition, types, ranges, hostile input. Faults 14 to 17 of the reliability list."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mbrl_lightning.config import available, compose, differences, load_config, read_run_config, to_yaml
from mbrl_lightning.config import files as config_files
from mbrl_lightning.config.schema import FIELDS, Config, get
from mbrl_lightning.config.usage import help_text
from mbrl_lightning.errors import ConfigError

CONF_ROOT = config_files.conf_root


def flatten(tree):
    return {f"{section}.{name}": value for section, own in tree.items() for name, value in own.items()}


def message(*words):
    with pytest.raises(ConfigError) as caught:
        load_config(words)
    return str(caught.value)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A conf folder of our own in place of the shipped one."""
    files = {
        "mine.yaml": "env: {name: cartpole}\n"
        "loop: {keep: 2, model_steps: 2, first_model_steps: 2, last_model_steps: 2}\n"
        "algorithms:\n"
        "  gssm_aps: {loop: {first_model_steps: 4, last_model_steps: 4}}\n"
        "  gssm: {loop: {last_model_steps: 6}}\n"
        "  dr_ppo: {search: {epochs: 99}}\n",
        "like_mine.yaml": "like: mine\nloop: {keep: 3}\nalgorithms: {gssm_aps: {loop: {first_model_steps: 7}}}",
        "cartpole.yaml": "env: {name: cartpole}",
        "algorithm/gssm_aps.yaml": "reads: {loop: [model_steps, first_model_steps, last_model_steps], dynamics: all, "
        "search: all, policy: all, evaluation: all, branch: all, history: all, sac: all}\n"
        "loop: {model_steps: 3, first_model_steps: 3, last_model_steps: 3}",
        "algorithm/gssm.yaml": "like: gssm_aps\nreads: {sac: [], branch: [-beta]}\nloop: {first_model_steps: 5}",
        "algorithm/dr_ppo.yaml": "reads: {search: [lr, epochs]}\nsearch: {epochs: 9}",
        "preset/big.yaml": "gssm_aps: {loop: {last_model_steps: 8}}",
    }
    folder = tmp_path / "conf"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(config_files, "conf_root", lambda: folder)
    return folder


@pytest.mark.parametrize("preset", available("preset"))
def test_every_preset_stands_on_top_of_the_conf_and_below_the_command_line(preset, monkeypatch):
    monkeypatch.setattr(config_files, "conf_root", CONF_ROOT)
    blocks = OmegaConf.to_container(OmegaConf.load(CONF_ROOT() / "preset" / f"{preset}.yaml"))
    for algorithm, block in blocks.items():
        own = block.pop("conf", {})
        for conf in ("half_cheetah_fwd_bwd", *own):
            words = [f"conf={conf}", f"algorithm={algorithm}", f"preset={preset}"]
            config = load_config(words)
            wanted = flatten(block) | flatten(own.get(conf, {}))
            assert {key: get(config, key) for key in wanted} == wanted
            assert load_config([*words, "loop.iterations=7"]).loop.iterations == 7
    with pytest.raises(ConfigError, match=f"did you mean '{preset}'"):
        load_config(["conf=cartpole", f"preset={preset}x"])


@pytest.mark.parametrize(
    ("words", "values"),  # keep, model_steps, first_model_steps, last_model_steps
    [
        ("conf=mine", (2, 3, 4, 4)),
        ("conf=mine algorithm=gssm", (2, 3, 5, 6)),
        ("conf=mine preset=big", (2, 3, 4, 8)),
        ("conf=mine algorithm=gssm preset=big loop.model_steps=9", (2, 9, 5, 8)),
        ("conf=like_mine algorithm=gssm", (3, 3, 5, 6)),
        ("conf=like_mine", (3, 3, 7, 4)),
        ("conf=mine algorithm=dr_ppo", (2, 400, 800, 0)),  # what a method does not read stays at its default
    ],
)
def test_layers_override_in_order(words, values):
    loop = load_config(words.split()).loop
    assert (loop.keep, loop.model_steps, loop.first_model_steps, loop.last_model_steps) == values


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("dynamics: {hidden: 3}", "dynamics belongs to a method"),
        ("algorithms: {any: {loop: {keep: 3}}}", "algorithms.any: unknown"),
        (
            "algorithms: {dr_ppo: {search: {tasks: 3}}}",
            "search.tasks is not read by algorithm=dr_ppo (algorithm=gssm reads it)",
        ),
    ],
)
def test_what_belongs_to_a_method_is_refused_elsewhere(text, part, tmp_path):
    assert "preset=big: has nothing for algorithm=dr_ppo" in message("conf=mine", "algorithm=dr_ppo", "preset=big")
    (tmp_path / "own.yaml").write_text("env: {name: cartpole}\n" + text)
    assert part in message(f"conf_file={tmp_path}/own.yaml", "algorithm=dr_ppo")
    assert "search.tasks is not read by algorithm=dr_ppo" in message("conf=mine", "algorithm=dr_ppo", "search.tasks=3")


def test_what_a_file_that_it_is_like_reads_can_be_taken_away():
    assert load_config(["conf=mine", "sac.batch=32"]).sac.batch == 32
    for word in ("sac.batch=32", "branch.beta=0.5"):
        refused = f"{word.partition('=')[0]} is not read by algorithm=gssm (algorithm=gssm_aps reads it)"
        assert refused in message("conf=mine", "algorithm=gssm", word)
    assert load_config(["conf=mine", "algorithm=gssm", "branch.length=2"]).branch.length == 2


def test_all_errors_at_once_with_the_nearest_names(tmp_path):
    names = ("conf=carpole", "algorithm=gsm_aps", "loop.iteration=3", "lr=1")
    text = message(*names, "seed=-1", "--seed", "search.lr=abc")
    for part in (
        "did you mean 'cartpole'",
        "did you mean 'gssm_aps'",
        "did you mean 'loop.iterations'",
        "did you mean dynamics.lr or search.lr",
        "seed=-1: must be at least 0",
        "write seed=VALUE",
        "search.lr=abc: a number is expected",
    ):
        assert part in text
    assert text.startswith("error[E-CFG]: 7 problems")
    assert "remedy:" in text


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("branch.length=0", "at least 1 (C_Th2 is for k >= 1: 0 imagines nothing)"),
        ("branch.beta=1.5", "at most 1"),
        ("branch.beta_from=3", "give both or neither"),
        ("dynamics.members=-1", "at least 1"),
        ("search.lr=.nan", "finite"),
        ("search.lr=0", "more than 0"),
        ("search.clip_epsilon=1", "less than 1"),
        ("policy.hidden=[64,0]", "at least 1"),
        ("policy.hidden=64", "policy.hidden"),
        ("evaluation.shots=[]", "at least one"),
        ("evaluation.shots=[.nan]", "finite"),
        ("seed=1.5", "a whole number is expected"),
        ("seed=true", "a whole number is expected"),
        ("seed=null", "a whole number is expected"),
        ("seed=0,1,2", "seeds=0..2"),
        ("seed=" + "9" * 5000, "not readable"),
        ("loop.iterations=" + "9" * 4000, "at most 1000000000"),
        ("loop.iterations=1e400", "a whole number is expected"),
        ("search.lr=" + "9" * 4000, "int too large"),
        ("search.lr=!!bool x", "not readable as YAML"),
        ("out=" + "[" * 5000, "not readable as YAML"),
        ("env.options.half=" + "[" * 30 + "]" * 30, "deep nesting"),
        ("policy.hidden=[[1]]", "a list is expected"),
        ("policy.hidden=[a]", "a whole number is expected"),
        ("overwrite=2", "true or false is expected"),
        ("device=cuda", "did you mean accelerator=cuda?"),
        ("loop.buffer=1000000000", "of memory"),
        ("dynamics.layers=100000000", "at most 100"),
        ("dynamics.targets=1000000000", "of memory"),
        ("env.options.haf=1", "no such option (did you mean 'half'?); its options: half, tip_sign"),
        ("strategy=dpp", "did you mean 'ddp'"),
        ("loop=5", "is a section"),
        ("devices=3", "dynamics.tasks"),
        ("dynamics.members=3", "dynamics.targets=64: not a multiple"),
        ("dynamics.members=5", "search.rollouts"),
        ("search.holdout=1", "leaves none"),
        ("seeds=4..0", "different numbers"),
        ("seeds=[1,1]", "different numbers"),
        ("env.options.x=.nan", "non-finite"),
        ("env.name=half_cheeta", "did you mean 'half_cheetah'"),
        ("env.file=nowhere.py", "no such file"),
        ("policy.hidden=" + "[" * 100_000, "nested too deep"),
        ("foo", "key=value is expected"),
        ("a[0]=1", "unknown key"),
        ("=1", "key=value is expected"),
        ("_target_=os.system", "unknown key"),
    ],
)
def test_wrong_values_are_refused(word, part):
    assert part in message("conf=cartpole", word)


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("seed=1e3", "seed", 1000),
        ("loop.iterations=1_000", "loop.iterations", 1000),
        ("search.horizon=2e1", "search.horizon", 20),
        ("search.horizon=null", "search.horizon", None),
        ("policy.hidden=[3.2e1,16]", "policy.hidden", [32, 16]),
        ("search.lr=1e-3", "search.lr", 1e-3),
        ("search.lr=1", "search.lr", 1.0),
        ("seeds=[0,3]", "seeds", "[0,3]"),
        ("seeds=0..2", "seeds", "0..2"),
        ("env.options.half=[1,{b: 2}]", "env.options", {"half": [1, {"b": 2}]}),
        ("out=a=b", "out", "a=b"),
        ("out=on", "out", "on"),
        ("out=1e3", "out", "1e3"),
        ("out=~/x", "out", str(Path.home() / "x")),
    ],
)
def test_accepted_values(word, key, value):
    given = get(load_config(["conf=cartpole", word]), key)
    assert given == value
    assert type(given) is type(value)


HOSTILE = ["../cartpole", "../../x", "/etc/passwd", "cartpole.yaml", "algorithm/gssm", "", ".", "a b", "x\0"]


@pytest.mark.parametrize("kind", ["conf", "algorithm"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_and_no_file_is_opened(kind, name, root, monkeypatch):
    opened = []
    load = config_files.OmegaConf.load
    monkeypatch.setattr(config_files.OmegaConf, "load", lambda path: opened.append(Path(path).resolve()) or load(path))
    with pytest.raises(ConfigError, match=r"not a name|missing"):
        compose({"conf": "cartpole"} | {kind: name})
    assert all(root.resolve() in path.parents for path in opened)


@pytest.mark.parametrize(
    ("word", "cause"), [("algorithm=PPO", "not a name"), ("algorithm=pppo", "unknown"), ("conf=X", "not a name")]
)
def test_a_wrong_name_is_told_once_and_rules_of_what_it_might_read_are_not(word, cause):
    with pytest.raises(ConfigError) as error:
        load_config(["conf=cartpole", word] if "conf" not in word else [word])
    assert cause in str(error.value).splitlines()[0]  # no list of several problems
    assert "did you mean" in str(error.value) or "X" in word


def test_link_out_of_the_conf_folder_is_not_followed(root, tmp_path):
    (tmp_path / "secret.yaml").write_text("seed: 7")
    (root / "linked.yaml").symlink_to(tmp_path / "secret.yaml")
    assert "conf=linked: unknown" in message("conf=linked")


def test_explicit_path(tmp_path):
    path, other = tmp_path / "own_task.yaml", tmp_path / "My-Cart.yaml"
    path.write_text("env: {name: cartpole}\nseed: 3\nalgorithm: dr_ppo")
    config = load_config([f"conf_file={path}"])
    assert (config.conf, config.seed, config.algorithm, config.search.epochs) == ("own_task", 3, "dr_ppo", 9)
    assert "exclude each other" in message(f"conf_file={path}", "conf=cartpole")
    assert "not readable" in message(f"conf_file={tmp_path}/absent.yaml")
    other.write_text("env: {name: cartpole}")
    assert load_config([f"conf_file={other}"]).conf == "my_cart"


def test_a_family_beside_its_conf_file_is_found_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("def family(): ...\n")
    (tmp_path / "own.yaml").write_text("env: {file: own.py}\n")
    monkeypatch.chdir("/")
    assert load_config([f"conf_file={tmp_path}/own.yaml"]).env.file == str(tmp_path / "own.py")
    (tmp_path / "own.py").unlink()
    assert "env.file=own.py: no such file" in message(f"conf_file={tmp_path}/own.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "out: ${oc.env:MBRL_TEST_SECRET}",
        "env: {name: cartpole, options: {x: ['${oc.env:MBRL_TEST_SECRET}']}}",
        "env: {name: cartpole, options: {'${oc.env:MBRL_TEST_SECRET}': 1}}",
        "out: '???'",
        "out: !!python/object/apply:os.system ['touch MARKER']",
        "env: {name: cartpole, _target_: os.system}",
        "seed: 1\nseed: 2",
        "- a list",
        "a: [1",
        "loop: {iterations: &x [*x]}",
        "algorithms: {gssm_app: {}}",
        "algorithms: 3",
        "\xff\x00",
    ],
)
def test_injection_and_broken_files_are_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MBRL_TEST_SECRET", "hunter2")
    Path("evil.yaml").write_text(text.replace("MARKER", "executed"), encoding="latin-1")
    assert "hunter2" not in message("conf_file=evil.yaml")
    assert not Path("executed").exists()
    if "${" in text:
        assert "hunter2" not in message("conf=cartpole", "out=${oc.env:MBRL_TEST_SECRET}")


def test_written_configuration_reads_back_equal(tmp_path):
    words = ["conf=cartpole", "seed=4", "env.options.half=[1,{b: 2}]", "search.horizon=7", "search.target_kl=null"]
    config = load_config(words)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_run_config(tmp_path) == config


def test_differences_name_what_may_not_change():
    old = load_config(["conf=cartpole", "loop.iterations=3"])
    same = load_config(["conf=cartpole", "out=elsewhere", "threads=2", "loop.keep=5", "loop.iterations=999"])
    assert differences(old, same) == []
    other = load_config(["conf=cartpole", "search.lr=0.5", "loop.iterations=2"])
    assert [line.partition(":")[0] for line in differences(old, other)] == ["loop.iterations", "search.lr"]


def test_a_falling_share_of_imagined_data_needs_an_end_after_its_beginning():
    text = message("conf=mine", "branch.beta_from=5", "branch.beta_to=5")
    assert "branch.beta_to=5: must be after branch.beta_from=5" in text
    assert load_config(["conf=mine", "branch.beta_from=5", "branch.beta_to=6"]).branch.beta_to == 6


def test_help_lists_every_key_conf_and_algorithm():
    text = help_text()
    for name in (*FIELDS, *available(), *available("algorithm"), *available("preset")):
        assert name in text


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("policy.feedback=[1.0] search.method=sac", "policy.feedback=[1.0]: give two gains"),
        ("policy.hold=3", "search.method=pathwise knows neither; choose search.method=sac"),
        ("policy.feedback=[1,0.1]", "search.method=pathwise knows neither; choose search.method=sac"),
    ],
)
def test_held_choices_and_feedback_need_a_search_that_knows_them(words, cause):
    assert cause in message("conf=mine", *words.split())


def test_defaults_need_no_mutable_sharing():
    first = Config()
    first.policy.hidden.append(1)
    first.env.options["x"] = 1
    assert Config().policy.hidden != first.policy.hidden
    assert Config().env.options == {}


def test_a_file_with_a_family_is_enough(tmp_path):
    file = tmp_path / "My-Arm 2.py"
    file.write_text("def family(size=1): ...")
    config = compose({"env": {"file": file, "options": {"size": 2}}, "seed": 3})
    assert (config.conf, config.env.name, config.algorithm, config.seed) == ("my_arm_2", "", "gssm_aps", 3)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_run_config(tmp_path) == config
    assert "sise" in message(f"env.file={file}", "env.options.sise=2")
    assert "no such file" in message("env.file=nowhere.py")
