"""Metrics say what a run does: in a file, to TensorBoard and to Prometheus, which need packages only where used."""

from __future__ import annotations

import gc
import json
import re
import socket
import subprocess
import sys
import threading
import urllib.request
import weakref
from pathlib import Path

import numpy as np
import pytest
from support.ports import free_ports

import pushsum_opt as ps
from pushsum_opt.installed import install_command
from pushsum_opt.observe.metrics.collected import Collected
from pushsum_opt.push_sum.survival import Survival


def run(size=2, rounds=20, then=lambda comm, metrics: None, **options):
    """Run a push-sum with metrics on loopback; each rank's clock moves by 1 s per round."""

    def rank(comm):
        seconds = [0.0]
        with ps.PushSum([np.full(50, float(comm.rank))], graph=ps.graphs.Ring(), comm=comm) as push_sum:
            metrics = ps.observe.Metrics(push_sum, clock=lambda: seconds[0], **options)
            for step in range(rounds):
                with ps.observe.span("forward"):
                    seconds[0] += 0.25
                seconds[0] += 0.75
                metrics.log(loss=float(step))
                push_sum.mix()
            return then(comm, metrics)

    return ps.testing.run(size, rank)


def rows(folder, rank):
    return [row for row in lines(folder, rank) if "round" in row]


def lines(folder, rank):
    [file] = folder.glob(f"metrics-*-{rank:05d}.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_file_of_each_rank_holds_a_row_for_every_so_many_rounds(tmp_path):
    run(jsonl=tmp_path, every=5)
    for rank in range(2):
        first, *_, last = found = rows(tmp_path, rank)
        assert [row["round"] for row in found] == [4, 9, 14, 19, 19]  # the last one is what is left at the end
        assert first["step_seconds"] == {"mean": 1.0, "min": 1.0, "p50": 1.0, "p90": 1.0, "p99": 1.0, "max": 1.0}
        assert found[3]["span_seconds_total"] == {"forward": 5.0}
        assert [row["logged"].get("loss") for row in found] == [2.0, 7.0, 12.0, 17.0, None]
        assert (last["rank"], last["push_weight"], last["steps_total"]) == (rank, 1.0, 20)
        assert (last["chunks_skipped_total"], last["blocks_missed_total"]) == (0, 0)
        assert found[3]["sent_bytes_total"] == 4 * first["sent_bytes_total"] > 0
        assert set(found[3]["wait_seconds_total"]) <= {"all", str(1 - rank)}
        assert str(1 - rank) in found[3]["wait_seconds_total"]
        assert first["message_age"] == {"mean": 0.0, "max": 0.0}
        assert last["means"] == {"mass_held": 2.0, "mass_in_flight": 0.0, "consensus_distance": 0.0}


def test_a_file_begins_with_what_ran_and_ends_with_the_end(tmp_path):
    run(3, jsonl=tmp_path, every=5)
    first, *_, last = lines(tmp_path, 1)
    about = first["about"]
    assert (about["rank"], about["size"], about["every"], about["staleness"]) == (1, 3, 5, 0)
    assert about["graph"] == "Ring()"
    assert about["rounds"] == [[[2, 0.5]]]
    assert about["rounds_are_a_period"]
    assert about["versions"]["pushsum_opt"] == ps.__version__
    assert about["bytes_per_round"] > 400
    assert last["ended"] >= about["began"]


def test_of_a_graph_that_never_repeats_the_first_rounds_are_written(tmp_path):
    def rank(comm):
        with ps.PushSum([np.zeros(2)], graph=ps.graphs.RandomPeer(), comm=comm) as push_sum:
            ps.observe.Metrics(push_sum, jsonl=tmp_path)

    ps.testing.run(3, rank)
    about = lines(tmp_path, 0)[0]["about"]
    assert not about["rounds_are_a_period"]
    assert 1 < len(about["rounds"]) <= 64


def test_what_an_optimizer_adds_is_written_too(tmp_path):
    torch = pytest.importorskip("torch")

    def rank(comm):
        model = torch.nn.Linear(2, 1)
        optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, gossip_every=2, comm=comm)
        with optimizer:
            ps.observe.Metrics(optimizer, jsonl=tmp_path, every=1)
            for _ in range(4):
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()

    ps.testing.run(2, rank)
    about, *_, row, _, _ = lines(tmp_path, 0)
    assert (about["about"]["optimizer"], about["about"]["gossip_every"]) == ("SGD", 2)
    assert row["round_seconds_total"] > 0
    assert row["local_step_seconds_total"] > 0


def test_rounds_without_a_message_do_not_count_among_waits_for_messages(tmp_path):
    def now_and_then(rank, size, round):
        return ((1 - rank),) if round % 4 == 0 else ()

    def rank(comm):
        heard = Waits()
        graph = ps.graphs.from_function(now_and_then, period=4)
        with ps.PushSum([np.zeros(2)], graph=graph, comm=comm) as push_sum:
            metrics = ps.observe.Metrics(push_sum, jsonl=tmp_path, every=9)
            push_sum.subscribe(heard)
            for _ in range(9):
                push_sum.mix()
            del metrics
        return heard.rounds

    class Waits(ps.Listener):
        def __init__(self):
            self.rounds = {}

        def wait_ends(self, call, peer, round, seconds):
            if peer is not None:
                self.rounds[round] = self.rounds.get(round, 0.0) + seconds

    for place, waited in enumerate(ps.testing.run(2, rank)):
        found = rows(tmp_path, place)[0]["round_wait_seconds"]
        of_rounds = [waited.get(k, 0.0) for k in (4, 8)]  # the first round has none before it
        assert found["mean"] == pytest.approx(sum(of_rounds) / 2)
        assert (found["min"], found["max"]) == pytest.approx((min(of_rounds), max(of_rounds)))


def test_every_metric_on_the_dashboard_is_exported():
    client = pytest.importorskip("prometheus_client.parser")
    dashboard = json.loads((Path(__file__).parents[2] / "docs" / "grafana.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [variable["query"]["query"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    base = free_ports(2)

    def labels(comm, metrics):
        with urllib.request.urlopen(f"http://127.0.0.1:{base + comm.rank}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        samples = [sample for family in client.text_string_to_metric_families(text) for sample in family.samples]
        return {name: {label for one in samples if one.name == name for label in one.labels} for name in names(text)}

    def names(text):
        return set(re.findall(r"\bpushsum_\w+", text))

    exported = run(then=labels, prometheus=base)[0]
    assert len(set().union(*map(names, asked))) > 10
    for query in asked:
        assert names(query) <= exported.keys(), query
        for name, matched in re.findall(r"(pushsum_\w+)\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", matched)) <= exported[name], query
        grouped = set(", ".join(re.findall(r"(?:by|on) ?\(([^)]*)\)", query)).replace(" ", "").split(",")) - {""}
        assert grouped <= set().union(*(exported[name] for name in names(query))), query


def test_the_variable_makes_metrics_without_a_change_of_the_program(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("PUSHSUM_METRICS", str(tmp_path / "made" / "here"))

    def rank(comm):
        parameter = torch.nn.Parameter(torch.zeros(2))
        parameter.grad = torch.ones(2)
        with ps.PushSumOptimizer(torch.optim.SGD([parameter], lr=0.1), comm=comm) as optimizer:
            for _ in range(10):
                optimizer.step()

    ps.testing.run(2, rank)
    for number in range(2):
        about, row, *_ = lines(tmp_path / "made" / "here", number)
        assert (about["about"]["optimizer"], row["round"]) == ("SGD", 9)


def test_metrics_do_not_keep_an_optimizer_that_the_program_has_dropped(tmp_path):
    torch = pytest.importorskip("torch")

    def rank(comm):
        parameter = torch.nn.Parameter(torch.zeros(2))
        optimizer = ps.PushSumOptimizer(torch.optim.SGD([parameter], lr=0.1), comm=comm)
        ps.observe.Metrics(optimizer, jsonl=tmp_path, every=1)
        push_sum, dropped = optimizer.push_sum, weakref.ref(optimizer)
        del optimizer
        gc.collect()
        assert dropped() is None
        push_sum.mix()
        push_sum.close()

    ps.testing.run(1, rank)
    assert [row["round"] for row in rows(tmp_path, 0)] == [0, 0]


@pytest.mark.parametrize("means", [True, False])
def test_means_over_ranks_are_measured_unless_they_are_not_wanted(tmp_path, means):
    run(3, jsonl=tmp_path, means=means)
    found = rows(tmp_path, 0)[-1]["means"]
    assert found.get("mass_held") == (3.0 if means else None)


def test_after_close_nothing_is_heard_any_more(tmp_path):
    def rank(comm):
        with ps.PushSum([np.zeros(2)], comm=comm) as push_sum:
            metrics = ps.observe.Metrics(push_sum, jsonl=tmp_path, every=1)
            push_sum.mix()
            metrics.close()
            push_sum.mix()

    ps.testing.run(2, rank)
    assert {row["round"] for row in rows(tmp_path, 0)} == {0}


def test_a_loss_that_still_has_its_graph_is_logged_without_a_warning(tmp_path):
    torch = pytest.importorskip("torch")

    def rank(comm):
        with ps.PushSum([np.zeros(2)], comm=comm) as push_sum:
            metrics = ps.observe.Metrics(push_sum, jsonl=tmp_path, every=1)
            metrics.log(loss=torch.ones(1, requires_grad=True).sum())
            push_sum.mix()

    ps.testing.run(1, rank)
    assert rows(tmp_path, 0)[0]["logged"] == {"loss": 1.0}


@pytest.mark.parametrize("options", [{}, {"jsonl": "here", "every": 0}])
def test_arguments_that_cannot_be_used_are_refused(options):
    def rank(comm):
        with ps.PushSum([np.zeros(2)], comm=comm) as push_sum, pytest.raises(ps.errors.ConfigurationError):
            ps.observe.Metrics(push_sum, **options)

    ps.testing.run(1, rank)


def test_prometheus_reads_every_number_from_a_port_of_this_host_alone():
    client = pytest.importorskip("prometheus_client.parser")
    base = free_ports(2)

    def read(comm, metrics):
        with urllib.request.urlopen(f"http://127.0.0.1:{base + comm.rank}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        samples = [sample for family in client.text_string_to_metric_families(text) for sample in family.samples]
        return {(one.name, frozenset(one.labels.values())): one.value for one in samples}

    for rank, found in enumerate(run(then=read, prometheus=base, every=5)):
        me = str(rank)
        assert found["pushsum_steps_total", frozenset({me})] == 20
        assert found["pushsum_step_seconds", frozenset({me, "p50"})] == 1.0
        assert found["pushsum_span_seconds_total", frozenset({me, "forward"})] == 5.0
        assert found["pushsum_logged", frozenset({me, "loss"})] == 17.0
        assert found["pushsum_push_weight", frozenset({me})] == 1.0
        assert found["pushsum_means", frozenset({me, "mass_held"})] == 2.0
        assert ("pushsum_wait_seconds_total", frozenset({"0", "1"})) in found
    with socket.socket() as probe:  # closed with the optimizer
        assert probe.connect_ex(("127.0.0.1", base)) != 0


def test_the_port_is_not_open_on_other_addresses_unless_asked_for():
    pytest.importorskip("prometheus_client")
    base = free_ports(1)

    def look(comm, metrics):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.2", base))

    assert run(1, 1, look, prometheus=base) != [0]
    assert run(1, 1, look, prometheus=base, address="0.0.0.0") == [0]


def test_a_port_that_is_taken_is_an_error_that_names_it():
    pytest.importorskip("prometheus_client")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ps.testing.RankErrors, match=f"port {taken.getsockname()[1]} of 127.0.0.1"):
            run(1, 1, prometheus=taken.getsockname()[1])


def test_a_spare_that_nobody_took_in_leaves_no_file_of_a_run_of_its_own(tmp_path, monkeypatch):
    """It ends with the job, later than all others: its file would be that of the newest run."""

    def rank(comm):
        push_sum = ps.PushSum([np.zeros(2)], comm=comm)
        monkeypatch.setattr(Survival, "waits", True)
        ps.observe.Metrics(push_sum, jsonl=tmp_path)
        push_sum.close()

    ps.testing.run(1, rank)
    assert list(tmp_path.iterdir()) == []


def test_no_second_of_a_span_is_lost_where_two_threads_leave_it_at_once():
    begun, leaves, left = threading.Event(), threading.Event(), threading.Event()
    main, seconds = threading.get_ident(), [0.0]

    def clock():
        if seconds[0] > 0.0 and threading.get_ident() == main:
            leaves.set()
            assert left.wait(60)  # the other thread leaves it while this one looks at its clock
        return seconds[0]

    def other():
        collected.span_begins("data")
        begun.set()
        assert leaves.wait(60)
        collected.span_ends("data")
        left.set()

    collected = Collected(0, list, clock)
    thread = threading.Thread(target=other)
    thread.start()
    collected.span_begins("data")
    assert begun.wait(60)
    seconds[0] = 5.0
    collected.span_ends("data")
    thread.join(60)
    assert collected._row().span_seconds_total == {"data": 10.0}


def test_a_port_above_the_highest_is_an_error_that_names_it():
    """With many ranks on a host, port prometheus + r may not exist."""
    pytest.importorskip("prometheus_client")
    with pytest.raises(ps.testing.RankErrors, match=r"port 65536 of 127\.0\.0\.1 cannot be opened"):
        run(1, 1, prometheus=65536)


def test_tensorboard_reads_a_run_for_each_rank(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tensorboard=tmp_path, every=5)
    for rank in range(2):
        found = reading.EventAccumulator(str(tmp_path / f"rank-{rank:05d}"))
        found.Reload()
        assert [(one.step, one.value) for one in found.Scalars("loss")] == [(4, 2.0), (9, 7.0), (14, 12.0), (19, 17.0)]
        assert found.Scalars("pushsum/step_seconds/p50")[-1].value == 1.0
        assert found.Scalars("pushsum/push_weight")[-1].value == 1.0


@pytest.mark.parametrize(
    ("argument", "module"), [("tensorboard='here'", "tensorboard"), ("prometheus=9000", "prometheus_client")]
)
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(argument, module):
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "import numpy as np, pushsum_opt as ps\n"
        "def rank(comm):\n"
        "    push_sum = ps.PushSum([np.zeros(1)], comm=comm)\n"
        f"    ps.observe.Metrics(push_sum, {argument})\n"
        "ps.testing.run(1, rank)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert "ConfigurationError: rank 0: Metrics(" in done.stderr
    assert install_command("observe") in done.stderr
