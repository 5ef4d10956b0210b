"""Resume on another number of ranks: everybody starts from the exact weighted average."""

from __future__ import annotations

import itertools

import pytest
import torch
from checkpoint.common import SIZES, Run, running
from optimizer.common import flat

import pushsum_opt as ps

PAIRS = [(old, new) for old, new in itertools.product(SIZES, SIZES) if old != new]


def double(**options):
    """All in float64, so that an average can be told from almost an average."""
    return {"dtype": torch.float64, **options}


def save(tmp_path, size, **options):
    """Return each rank's part of the truth: (w, a, z, floating buffers, inner state) and all messages in flight."""

    def rank(comm):
        with running(comm, **options) as run:
            run.steps(0, 5)
            ps.checkpoint.save(tmp_path, run.optimizer, extra=comm.rank, **run.beside)
            push_sum = run.optimizer.push_sum
            flying = [
                (message["mass"], message["tensors"])
                for item in push_sum.member.mode.state()
                for message in item["messages"]
            ]
            return {
                "w": push_sum.push_weight,
                "a": push_sum.initial_weight,
                "z": {name: p.detach().clone() for name, p in run.model.named_parameters()},
                "r": push_sum.state()["residuals"],
                "mean": run.model.norm.running_mean.clone(),
                "count": run.model.norm.num_batches_tracked.clone(),
                "inner": flat(run.optimizer.optimizer.state_dict()),
                "flying": flying,
            }

    return ps.testing.run(size, rank)


def real(tensor):
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()


def average(saved, name):
    total = sum(one["w"] * real(one["z"][name]) for one in saved)
    total = total + sum(one["r"][name].double() for one in saved if name in one["r"])
    total = total + sum(mass * tensors[name].double() for one in saved for mass, tensors in one["flying"])
    return total / (sum(one["w"] for one in saved) + sum(mass for one in saved for mass, _ in one["flying"]))


def load(tmp_path, size, **options):
    def rank(comm):
        with running(comm, **options) as run:
            found = ps.checkpoint.load(tmp_path, run.optimizer, **run.beside)
            push_sum = run.optimizer.push_sum
            result = {
                "found": found,
                "w": push_sum.push_weight,
                "a": push_sum.initial_weight,
                "z": {name: p.detach().clone() for name, p in run.model.named_parameters()},
                "r": push_sum.state()["residuals"],
                "mean": run.model.norm.running_mean.clone(),
                "count": run.model.norm.num_batches_tracked.clone(),
                "inner": flat(run.optimizer.optimizer.state_dict()),
                "tied": run.model.alias is run.model.last.weight,
            }
            run.steps(5, 8)
        return {**result, "end": run.optimizer.push_weight}

    return ps.testing.run(size, rank)


@pytest.mark.parametrize(("old", "new"), PAIRS)
@pytest.mark.parametrize("staleness", [0, 2, "unbounded"])
def test_every_rank_starts_at_the_exact_weighted_average_with_its_data_weight_as_mass(tmp_path, old, new, staleness):
    options = double(staleness=staleness)
    saved = save(tmp_path, old, **options)
    loaded = load(tmp_path, new, **options)
    for name in saved[0]["z"]:
        exact = average(saved, name)
        for one in loaded:
            torch.testing.assert_close(real(one["z"][name]), exact, rtol=1e-6 if name == "wave" else 1e-13, atol=1e-15)
    assert [one["w"] for one in loaded] == [one["a"] for one in loaded]
    assert sum(one["w"] for one in loaded) == pytest.approx(new, rel=1e-13)
    assert sum(one["end"] for one in loaded) == pytest.approx(new, rel=1e-13)
    assert all(one["found"].round == 5 and not one["found"].exact for one in loaded)


@pytest.mark.parametrize(("old", "new"), [(2, 3), (5, 2)])
def test_all_ranks_start_with_the_same_bits(tmp_path, old, new):
    save(tmp_path, old, staleness=2)
    loaded = load(tmp_path, new, staleness=2)
    assert all(flat([one["z"], one["mean"]]) == flat([loaded[0]["z"], loaded[0]["mean"]]) for one in loaded)
    assert all(one["tied"] for one in loaded)


@pytest.mark.parametrize(("old", "new"), [(2, 5), (5, 2)])
def test_floating_buffers_are_averaged_with_data_weights_and_the_rest_is_of_rank_modulo_old_size(tmp_path, old, new):
    saved = save(tmp_path, old, **double())
    loaded = load(tmp_path, new, **double())
    exact = sum(one["a"] * one["mean"] for one in saved) / old
    for rank, one in enumerate(loaded):
        torch.testing.assert_close(one["mean"], exact, rtol=1e-13, atol=1e-15)
        assert one["count"] == saved[rank % old]["count"]
        assert one["inner"] == saved[rank % old]["inner"]
        assert one["found"].extra == rank % old
    assert saved[0]["inner"] != saved[1]["inner"], "the test can tell them apart"


def test_half_precision_keeps_in_its_residual_what_it_cannot_hold_of_the_average(tmp_path):
    options = {"dtype": torch.bfloat16, "staleness": 1, "kind": lambda p: torch.optim.SGD(p, lr=0.05)}
    saved = save(tmp_path, 3, **options)
    loaded = load(tmp_path, 2, **options)
    assert any(residual.any() for residual in loaded[0]["r"].values())
    for name in set(saved[0]["z"]) - {"wave"}:  # complex64 has none
        exact = average(saved, name)
        for one in loaded:
            held = (one["w"] * one["z"][name].double() + one["r"][name].double()) / one["w"]
            torch.testing.assert_close(held, exact, rtol=1e-7, atol=1e-9)


def test_run_on_another_number_of_ranks_can_be_saved_and_resumed_exactly(tmp_path):
    save(tmp_path / "old", 3, staleness=2)

    def rank(comm, stops):
        run = Run(comm, staleness=2)
        ps.checkpoint.load(tmp_path / "old", run.optimizer, **run.beside)
        run.steps(5, 8)
        if stops:
            ps.checkpoint.save(tmp_path / "new", run.optimizer, **run.beside)
            run.close()
            run = Run(comm, staleness=2)
            assert ps.checkpoint.load(tmp_path / "new", run.optimizer, **run.beside).exact
        run.steps(8, 10)
        run.close()
        return run.everything()

    assert ps.testing.run(2, lambda comm: rank(comm, True)) == ps.testing.run(2, lambda comm: rank(comm, False))
