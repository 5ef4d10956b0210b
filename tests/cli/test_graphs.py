"""``pushsum graphs``: the table, the details, JSON, pictures, and errors in one line."""

from __future__ import annotations

import json

import pytest

from pushsum_opt import cli, graphs
from pushsum_opt.cli.graph_names import named_graph
from pushsum_opt.errors import GraphError
from pushsum_opt.installed import install_command


def run(capsys, *words):
    code = cli.main(["graphs", *words])
    out, err = capsys.readouterr()
    assert (code == 0) == (err == "")
    return out or err


def rows(text):
    """Return the first words of the table's rows, in order; the lines between them begin with --."""
    lines = text.splitlines()
    return [line.split("  ")[0] for line in lines[lines.index("") + 3 :]]


def test_the_table_has_every_family_the_affordable_ones_first_by_rounds(capsys):
    text = run(capsys, "--size", "32")
    names = rows(text)
    assert sorted(name for name in names if name[0] != "-") == sorted(map(repr, graphs.families(32)))
    assert names[0] == "-- 1 message per rank and round, best first"
    assert names[1] == "OnePeerExponential()", "the default comes first among equals"
    assert names.index("Ring()") < names.index("-- more than 1 message") < names.index("Complete()")
    line = next(line for line in text.splitlines() if line.startswith("StaticExponential"))
    assert line.split() == ["StaticExponential()", "18", "never", "5.00", "5", "512.0", "0.667", "1", "1"]
    assert max(map(len, text.splitlines())) <= 120


def test_the_budget_moves_the_line(capsys):
    names = rows(run(capsys, "--size", "32", "--budget", "5"))
    assert names[0] == "-- up to 5 messages per rank and round, best first"
    assert names.index("StaticExponential()") < names.index("-- more than 5 messages") < names.index("Hierarchical(8)")


def test_bytes_are_those_of_the_model(capsys):
    text = run(capsys, "--size", "4", "--parameters", "1e6", "--bytes", "2")
    assert "messages of 2 MB" in text
    assert next(line for line in text.splitlines() if line.startswith("Complete()")).split()[5] == "6.0"


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_small_sizes_work(capsys, size):
    assert "OnePeerExponential()" in run(capsys, "--size", str(size))


def test_one_graph_is_shown_in_detail(capsys):
    text = run(capsys, "--size", "6", "--graph", "basek(1)")
    assert "period                 4 rounds" in text
    assert "exact after            4" in text
    assert "3 > 5 (0.667)" in text
    assert "2 > nobody" in text


def test_details_show_what_unequal_data_weights_change(capsys):
    text = run(capsys, "--size", "4", "--graph", "OnePeerExponential", "--data-weights", "1,1,1,5")
    assert "push weight w          0.5 to 2.5" in text
    assert "steps scaled by a / w  0.333 to 2.5" in text
    assert "with equal data weights instead" in text
    assert text.count("rounds to 1e-3") == 2


def test_long_things_are_cut(capsys):
    text = run(capsys, "--size", "40", "--graph", "Complete")
    assert "0 > 1 (0.025), 2 (0.025), 3 (0.025), 4 (0.025), 5 (0.025), 6 (0.025) ..." in text
    assert "16 >" not in text


def test_several_graphs_make_a_table_of_these(capsys):
    names = rows(run(capsys, "--size", "12", "--graph", "ring", "--graph", "BaseK(1)"))
    assert names == ["-- 1 message per rank and round, best first", "BaseK(1)", "Ring()"]


def test_json_holds_all_measures(capsys):
    found = json.loads(run(capsys, "--size", "8", "--json"))
    by_name = {one["graph"]: one for one in found}
    assert len(by_name) == len(graphs.families(8))
    best = by_name["OnePeerExponential()"]
    assert (best["rounds_to_thousandth"], best["rounds_to_exact"], best["megabytes_per_round"]) == (3, 3, 102.4)
    assert best["errors"][0] == 1
    assert len(best["errors"]) == len(best["rounds"]) == 4
    assert by_name["RandomPeer(seed=0)"]["period"] is None


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--size", "0"), "expected at least 1 rank"),
        (("--size", "8", "--local-size", "0"), "expected at least 1 rank per host"),
        (("--size", "6", "--graph", "Hypercube"), "it is defined at powers of two, such as 4 and 8"),
        (("--size", "4", "--graph", "Rong"), "there is no family Rong; expected one of BaseK, "),
        (("--size", "4", "--graph", "KPeerExponential"), "a required argument: 'k'; expected KPeerExponential(k)"),
        (("--size", "4", "--graph", "Ring(sides=2)"), "expected Ring(peers=1)"),
        (("--size", "4", "--graph", "Ring(1 + 1)"), "1 + 1 is neither a literal nor a family"),
        (("--size", "4", "--graph", "Ring("), "expected a family, such as Ring or"),
        (("--size", "4", "--graph", "nowhere:ring"), "No module named 'nowhere'"),
        (("--size", "4", "--graph", "nowhere.py:ring"), "nowhere.py"),
        (("--size", "4", "--graph", "math:ring"), "math has no ring"),
        (("--size", "4", "--graph", "from_edges([[0, 9], [9, 0]])"), "its edges name rank 9"),
        (("--size", "4", "--data-weights", "1,2"), "expected 4 numbers above 0"),
        (("--size", "4", "--data-weights", "1,a,2,3"), "expected numbers, separated by commas"),
    ],
)
def test_errors_are_one_line_that_says_what_was_expected(capsys, words, complaint):
    text = run(capsys, *words)
    assert text.startswith("pushsum graphs: ")
    assert complaint in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ring", "Ring()"),
        (" ring(peers=2) ", "Ring(peers=2)"),
        ("KPEEREXPONENTIAL(3)", "KPeerExponential(3)"),
        ("Hierarchical(8, outer=BaseK(2), inner=Ring)", "Hierarchical(8, outer=BaseK(2), inner=Ring())"),
        ("RandomPeer(-5)", "RandomPeer(seed=-5)"),
        ("Schedule([(9, Complete), (None, BaseK)])", "Schedule([(9, Complete()), (None, BaseK(1))])"),
        ("from_edges([[0, 1], [1, 0]])", "from_edges: 2 edges"),
    ],
)
def test_names_are_read_without_running_code(text, expected):
    assert repr(named_graph(text)) == expected


def test_a_graph_of_the_user_is_found_in_a_file_or_module(capsys, tmp_path, monkeypatch):
    (tmp_path / "my_graphs.py").write_text(
        "def two_on(rank, size, round):\n    return (rank + 2) % size\nedges = [(0, 1), (1, 2), (2, 0)]\n"
    )
    assert "from_function(two_on)" in run(capsys, "--size", "5", "--graph", f"{tmp_path / 'my_graphs.py'}:two_on")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert repr(named_graph("my_graphs:edges")) == "from_edges: 3 edges"
    with pytest.raises(GraphError, match="has no three_on"):
        named_graph("my_graphs:three_on")
    assert "rank 0 never reaches" in run(capsys, "--size", "4", "--graph", "my_graphs.py:two_on")


def test_pictures_are_drawn(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    for name, words in {
        "all.png": ("--size", "12"),
        "one.svg": ("--size", "6", "--graph", "BaseK(1)"),
        "some.pdf": ("--size", "20", "--graph", "RandomPeer", "--graph", "Ring", "--graph", "OnePeerExponential"),
        "single.png": ("--size", "1"),
        "large.png": ("--size", "100", "--graph", "BaseK(1)"),
    }.items():
        run(capsys, *words, "--plot", str(tmp_path / name))
        assert (tmp_path / name).stat().st_size > 5000


def test_a_picture_that_cannot_be_written_is_an_error(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    assert "pushsum graphs: --plot" in run(capsys, "--size", "4", "--plot", str(tmp_path / "missing" / "a.png"))
    assert "pushsum graphs: --plot" in run(capsys, "--size", "4", "--plot", str(tmp_path / "a.doc"))


def test_without_matplotlib_the_error_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert install_command("plot") in run(capsys, "--size", "4", "--plot", "a.png")
