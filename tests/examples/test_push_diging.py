"""Push-DIGing on PushSum is the paper's algorithm; it converges linearly where SGP stalls, on loopback and MPI."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.oracle import irregular_column_stochastic
from support.problems import Irregular, problem
from warm.python import FOR_EXAMPLES, warm_python

import pushsum_opt as ps

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "push_diging.py"
RATE = 0.3


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("push_diging", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------- the paper's algorithm


def algorithm_2(x, a, matrices, gradient, rate, rounds):
    """Nedic, Olshevsky and Shi (2017), Algorithm 2, in its own symbols; u(0), v(0), y(0) scaled by the data weights."""
    u, v = a[:, None] * x, a.copy()
    y = a[:, None] * gradient(x)
    path = []
    for k in range(rounds):
        c = matrices(k)
        u, v = c @ (u - rate * y), c @ v
        before, x = x, u / v[:, None]
        y = c @ y + a[:, None] * (gradient(x) - gradient(before))
        path.append(x)
    return np.stack(path)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_every_round_is_that_of_the_paper_on_any_graph_and_with_any_data_weights(example, size):
    start, data_weights, gradient = problem(size)

    def rank(comm):
        options = {"graph": Irregular(3), "data_weight": data_weights[comm.rank], "comm": comm}
        z = start[comm.rank].copy()
        return example.push_diging(z, lambda z: gradient(comm.rank, 0, z), 0.05, 30, **options)

    everyone = lambda x: np.stack([gradient(i, 0, x[i]) for i in range(size)])  # noqa: E731
    matrices = lambda k: irregular_column_stochastic(size, k, 3)[1]  # noqa: E731
    path = algorithm_2(start, size * data_weights / data_weights.sum(), matrices, everyone, 0.05, 30)
    np.testing.assert_allclose(np.stack(ps.testing.run(size, rank), 1), path, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------- what it is for


def on_loopback(example, algorithm, size, rounds, staleness=0):
    return ps.testing.run(size, lambda comm: example.distances(algorithm, RATE, rounds, staleness, comm))[0]


@pytest.mark.parametrize("size", [3, 8])
def test_sgp_stalls_at_a_floor(example, size):
    found = on_loopback(example, example.sgp, size, 600)
    early, late = found[300:330], found[570:600]  # a graph with a period makes it go round in a circle there
    assert late.min() > 0.03
    assert late.mean() == pytest.approx(early.mean(), rel=0.02)


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize(("staleness", "goal"), [(0, 1e-8), (1, 1e-4)])
def test_push_diging_converges_linearly(example, size, staleness, goal):
    """The distance falls by about the same factor in every hundred rounds."""
    found = on_loopback(example, example.push_diging, size, 601, staleness)
    factors = found[200:601:100] / found[100:501:100]
    assert found[-1] < goal
    assert factors.max() < 0.35
    assert factors.min() > 1e-3


def test_the_shards_are_uneven_and_hold_everything(example):
    classes = np.repeat(np.arange(10), 50)
    shards = example.uneven_shards(classes, 8)
    assert sorted(np.concatenate(shards)) == list(range(500))
    counts = np.stack([np.bincount(classes[shard], minlength=10) for shard in shards])
    assert counts.sum(1).min() >= 1
    assert counts.sum(1).max() > 2 * counts.sum(1).min()
    assert (counts == 0).mean() > 0.2, "many classes are missing on many ranks"


# ---------------------------------------------------------------------- as a user starts it


def run(*words: str) -> str:
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    ranks, *words = words
    start = [sys.executable, "-m", "pushsum_opt", "run", "-np", ranks]
    command = [*start, *warm_python(*FOR_EXAMPLES), *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_under_mpi_rank_0_shows_the_stall_and_the_convergence():
    shown = re.findall(r"round (\d+): .* SGP (\S+), Push-DIGing (\S+)", run("4", str(EXAMPLE)))
    assert [int(k) for k, _, _ in shown] == [100, 200, 300, 400, 500, 600]
    assert float(shown[-1][1]) > 0.03
    assert float(shown[-1][2]) < 1e-8


def test_real_ranks_have_the_bits_of_loopback_ranks(example, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(EXAMPLE.parent)!r})\n"
        "import numpy, push_diging, pushsum_opt as ps\n"
        f"found = push_diging.distances(push_diging.push_diging, {RATE}, 60, 1)\n"
        f"numpy.save({str(tmp_path)!r} + f'/{{ps.rank()}}.npy', found)\n"
    )
    run("3", str(program))
    expected = on_loopback(example, example.push_diging, 3, 60, 1)
    for rank in range(3):
        np.testing.assert_array_equal(np.load(tmp_path / f"{rank}.npy"), expected)


def test_all_of_it_is_sixty_lines_of_code():
    """Beside blank lines and docstrings."""
    text = EXAMPLE.read_text()
    documented = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Module, ast.FunctionDef))]
    docstrings = [node.body[0] for node in documented if ast.get_docstring(node)]
    words = {line for one in docstrings for line in range(one.lineno, one.end_lineno + 1)}
    code = [line for number, line in enumerate(text.splitlines(), 1) if line.strip() and number not in words]
    assert len(code) <= 60
