"""One plain model out of a checkpoint, in a single process without MPI."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from checkpoint.common import SIZES, Network, running, train_and_save
from optimizer.common import flat, network

import pushsum_opt as ps
from pushsum_opt.cli import main


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("staleness", [0, 1, 3, "unbounded"])
def test_it_is_the_exact_average_that_averaged_shows(tmp_path, size, staleness):
    _, mean = train_and_save(tmp_path, size, dtype=torch.float64, staleness=staleness)
    model = ps.checkpoint.consolidate(tmp_path)
    assert list(model) == list(mean)
    for key in set(mean) - {"wave", "norm.num_batches_tracked"}:
        torch.testing.assert_close(model[key], mean[key], rtol=1e-14, atol=1e-16)
    torch.testing.assert_close(model["wave"], mean["wave"])
    assert model["norm.num_batches_tracked"] == 4


def test_it_is_what_another_number_of_ranks_starts_from(tmp_path):
    train_and_save(tmp_path, 3, staleness=2)

    def rank(comm):
        with running(comm, staleness=2) as run:
            ps.checkpoint.load(tmp_path, run.optimizer, **run.beside)
            return flat(run.model.state_dict())

    model = ps.checkpoint.consolidate(tmp_path)
    loaded = ps.testing.run(1, rank)[0]
    model["norm.num_batches_tracked"] = torch.tensor(4)
    assert flat(model) == loaded


class KeepsItsStart(torch.optim.SGD):
    """SGD whose state has a point in parameter space, as some optimizers' has."""

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("z", p.detach().clone())
        return loss


def test_without_a_model_it_has_the_parameters_that_averaged_shows_and_no_optimizer_state(tmp_path):
    def rank(comm):
        p = torch.nn.Parameter(torch.full((3,), float(comm.rank)))
        with ps.PushSumOptimizer(KeepsItsStart([p], lr=0.1), comm=comm, gossip_state=("z",)) as optimizer:
            p.grad = torch.ones(3)
            optimizer.step()
            assert optimizer.points == ["group 0 parameter 0 (state 'z')"]
            ps.checkpoint.save(tmp_path, optimizer)
            return optimizer.averaged_state_dict(rank=None)

    shown = ps.testing.run(2, rank)[0]
    model = ps.checkpoint.consolidate(tmp_path)
    assert list(model) == list(shown) == ["group 0 parameter 0"]
    torch.testing.assert_close(model, shown)


def test_half_parameters_and_their_residuals(tmp_path):
    train_and_save(tmp_path, 3, dtype=torch.bfloat16, kind=lambda p: torch.optim.SGD(p, lr=0.05))
    parts = [torch.load(path, weights_only=True) for path in sorted(tmp_path.glob("*/rank-*.pt"))]
    masses = [part["optimizer"]["push_sum"] for part in parts]
    key = "first.weight"
    exact = sum(
        mass["push_weight"] * part["model"][key].double() + mass["residuals"][key].double()
        for part, mass in zip(parts, masses, strict=True)
    ) / sum(mass["push_weight"] for mass in masses)
    assert any(mass["residuals"][key].any() for mass in masses)
    assert torch.equal(ps.checkpoint.consolidate(tmp_path)[key], exact.to(torch.bfloat16))


def test_tied_parameters_stay_tied_and_a_plain_model_takes_it(tmp_path):
    train_and_save(tmp_path, 2)
    model = ps.checkpoint.consolidate(tmp_path)
    assert model["alias"] is model["last.weight"]
    plain = Network()
    plain.load_state_dict(model)
    assert flat(plain.state_dict()) == flat(model)


def test_of_an_optimizer_without_a_model_it_has_the_parameters_by_name(tmp_path):
    def rank(comm):
        tensor = torch.nn.Parameter(torch.tensor([float(comm.rank)]))
        with ps.PushSumOptimizer(torch.optim.SGD([tensor], lr=1.0), comm=comm) as optimizer:
            tensor.grad = torch.tensor([-1.0 * comm.rank])
            optimizer.step()
            ps.checkpoint.save(tmp_path, optimizer)

    ps.testing.run(3, rank)
    model = ps.checkpoint.consolidate(tmp_path)
    assert list(model) == ["group 0 parameter 0"]
    assert model["group 0 parameter 0"].item() == pytest.approx(1.0)


def test_neither_mpi_nor_mpi4py_is_needed(tmp_path):
    train_and_save(tmp_path, 2)
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "import pushsum_opt as ps, torch\n"
        f"model = ps.checkpoint.consolidate({str(tmp_path)!r})\n"
        "from pushsum_opt.cli import main\n"
        f"assert main(['consolidate', {str(tmp_path)!r}, {str(tmp_path / 'o')!r}]) == 0\n"
        "print(len(model))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[-1] == str(len(Network().state_dict()))


def test_command_writes_a_file_that_a_plain_script_loads(tmp_path, capsys):
    path, _ = train_and_save(tmp_path / "runs", 2)
    out = tmp_path / "out.pt"
    for source in (path, path.parent):
        assert main(["consolidate", str(source), str(out)]) == 0
        assert f"{out}: " in capsys.readouterr().out
        assert flat(torch.load(out, weights_only=True)) == flat(ps.checkpoint.consolidate(path))
        out.unlink()


def test_command_says_what_is_wrong(tmp_path, capsys):
    assert main(["consolidate", str(tmp_path / "nothing"), str(tmp_path / "out.pt")]) == 1
    assert "nothing: expected a directory of checkpoints, got nothing" in capsys.readouterr().err
    path, _ = train_and_save(tmp_path, 2)
    assert main(["consolidate", str(tmp_path), str(tmp_path / "no" / "out.pt")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    (path / "rank-00001.pt").unlink()
    assert main(["consolidate", str(tmp_path), str(tmp_path / "out.pt")]) == 1
    assert "rank-00001.pt: expected" in capsys.readouterr().err
    assert not (tmp_path / "out.pt").exists()


def test_parts_are_read_by_torch_alone_without_running_code(tmp_path):
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(torch.optim.AdamW(model.parameters()), model, comm=comm) as optimizer:
            path = ps.checkpoint.save(tmp_path, optimizer, extra={"epoch": 1, "indices": torch.arange(3)})
        return path / f"rank-{comm.rank:05d}.pt"

    for file in ps.testing.run(2, rank):
        part = torch.load(file, weights_only=True)
        network().load_state_dict(part["model"])
        torch.optim.AdamW(network().parameters()).load_state_dict(part["optimizer"])
        assert part["extra"]["epoch"] == 1
