"""Tables of hidden-task families: rewards under each task and after a switch, the model of histories, medians."""

from __future__ import annotations

import pytest

from mbrl_lightning.report import make_tables, tables
from mbrl_lightning.report.curves import by_algorithm, choose
from mbrl_lightning.report.kinds import HISTORY, RETURN, REWARD
from mbrl_lightning.report.tables import build
from mbrl_lightning.runs.results import Results, Row

WORST = "the worst of these, of each seed"
RETURNS = {0: 300.0, 1: 290.0, 2: 20.0}


def rows_of(
    algorithm: str = "m3po", values: tuple[int, ...] = (1, -1), split: str = "test", shot: int = 0
) -> list[Row]:
    """Three seeds, of which the last has learned the first task only; an earlier, worse evaluation of each."""
    rows = []
    for seed, total in RETURNS.items():
        results = Results(None, algorithm, "point_switch", seed)
        for iteration in (1, 2):
            at = {"iteration": iteration, "real_steps": 100 * iteration, "split": split, "shot": shot}
            for task in (0, 1):
                results.add("return/policy", total * iteration / 2, task=task, **at)
            for index, value in enumerate(values):
                learned = seed < 2 or index == 0
                results.add(f"reward/direction={value}", (1.5 if learned else -0.5) * iteration / 2, **at)
            results.add("reward/before_switch", 1.75, **at)
            results.add("reward/since_0_10", -0.25, **at)
            results.add("model/nmse", 0.3, **at)
            results.add("model/nll", -4.0 + seed, **at)
            results.add("model/slope", 0.9, **at)
        rows += results.rows
    return rows


def column(table: tables.Table | None, name: str) -> list[str]:
    return [row[table.header.index(name)] for row in table.rows]


def test_rewards_stand_in_the_order_of_the_tasks_with_the_worse_one_of_each_seed():
    table = build(rows_of(), "point_switch", "test", REWARD)
    assert table.header[4:7] == ["direction=-1", "direction=1", WORST]
    assert column(table, "direction=1") == ["1.5 +- 0"]
    assert column(table, "direction=-1") == ["0.833 +- 1.2"]  # 1.5, 1.5, -.5
    assert column(table, WORST) == ["0.833 +- 1.2"]
    assert column(table, "0-9 steps after one") == ["-0.25 +- 0"]
    assert column(table, "real steps") == ["200"]
    assert "10-24" not in table.text()  # never measured: no empty column


def test_the_worse_direction_is_of_each_seed():
    other = [row._replace(seed=row.seed + 3) for row in rows_of(values=(-1, 1)) if row.seed == 2]
    table = build([row for row in rows_of() if row.seed == 2] + other, "point_switch", "test", REWARD)
    assert column(table, "direction=1") == ["0.5 +- 1.4"]
    assert column(table, WORST) == ["-0.5 +- 0"]


def test_every_seed_has_a_line():
    table = build(rows_of(), "point_switch", "test", REWARD, each_seed=True)
    assert column(table, "seed") == ["0", "1", "2"]
    assert column(table, "direction=-1") == ["1.5", "1.5", "-0.5"]
    assert column(table, WORST) == ["1.5", "1.5", "-0.5"]


def test_four_tasks_have_a_worst_one():
    table = build(rows_of(values=(2, 0, 10, 1)), "point_switch", "test", REWARD)
    assert table.header[4:9] == ["direction=0", "direction=1", "direction=2", "direction=10", WORST]


def test_context_lengths_at_which_no_reward_was_measured_are_left_out():
    longer = [row._replace(shot=50) for row in rows_of() if row.metric == "return/policy"]
    assert column(build(rows_of() + longer, "point_switch", "test", REWARD), "context") == ["0"]


def test_the_model_of_histories_has_a_table_of_its_own():
    table = build(rows_of(), "point_switch", "test", HISTORY)
    assert column(table, "nMSE") == ["0.3 +- 0"]
    assert column(table, "NLL [nats]") == ["-3 +- 1"]
    assert column(table, "slope, worst head") == ["0.9 +- 0"]


def test_the_median_of_the_seeds_stands_beside_their_mean_where_a_task_is_hidden():
    table = build(rows_of(), "point_switch", "test", RETURN)
    assert (column(table, "mean +- sd"), column(table, "median")) == (["203 +- 159"], ["290"])
    known = [row for row in rows_of() if not row.metric.startswith("reward/")]
    assert column(build(known, "point_switch", "test", RETURN), "median") == ["-"]


def test_a_report_holds_them_and_families_without_a_hidden_task_do_not():
    titles = [table.title for table in make_tables(rows_of(), "point_switch")]
    assert [title.split(": ")[1].split(" [")[0] for title in titles[:3]] == [
        "return",
        "reward per step",
        "error of the model of histories",
    ]
    known = [row for row in rows_of() if row.metric == "return/policy"]
    assert build(known, "point_switch", "test", REWARD) is None
    assert build(known, "point_switch", "test", HISTORY) is None
    assert build(rows_of(), "point_switch", "extreme", REWARD) is None


def test_methods_stand_in_their_order_and_variants_behind_their_method():
    names = ["pearl", "visible", "m3po_k3", "recurrent_sac", "gssm", "m2po", "m3po_h", "m3po", "dr_ppo", "m3po_full"]
    ordered = list(by_algorithm([rows_of(name)[0] for name in names]))
    expected = ["dr_ppo", "gssm", "m3po", "m3po_full", "m3po_k3", "m3po_h", "m2po", "recurrent_sac", "pearl", "visible"]
    assert ordered == expected


@pytest.mark.parametrize(("shot", "expected"), [(None, {("m3po", 0), ("pearl", 50)}), (50, {("pearl", 50)})])
def test_methods_with_and_without_a_context_are_in_one_curve(shot, expected):
    chosen = choose(rows_of() + rows_of("pearl", shot=50), "return/policy", shot=shot)
    assert {(row.algorithm, row.shot) for row in chosen} == expected
