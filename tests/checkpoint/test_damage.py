"""Files that are not what they should be: one clear error on every rank, and nothing is changed."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess

import pytest
import torch
from checkpoint.common import running, train_and_save
from optimizer.common import KINDS, network

import pushsum_opt as ps
from pushsum_opt.errors import CheckpointError

SIZE = 3


def failing_load(directory, size=SIZE, changed=None, staleness=1):
    """Return the error, which is the same on every rank, and make sure that training goes on as if nothing happened."""

    def rank(comm, loads):
        with running(comm, staleness=staleness) as run:
            run.steps(0, 2)
            run.optimizer.drain()  # as loading does
            text = None
            if loads:
                with pytest.raises(CheckpointError) as error:
                    ps.checkpoint.load(directory, run.optimizer, **(run.beside if changed is None else changed))
                text = str(error.value)
            run.steps(2, 4)
        return text, run.everything()

    disturbed = ps.testing.run(size, lambda comm: rank(comm, True), timeout=60)
    undisturbed = ps.testing.run(size, lambda comm: rank(comm, False), timeout=60)
    assert [one[1] for one in disturbed] == [one[1] for one in undisturbed]
    assert len({text for text, _ in disturbed}) == 1
    return disturbed[0][0]


@pytest.fixture
def saved(tmp_path):
    path, _ = train_and_save(tmp_path / "runs", SIZE, staleness=1)
    return path


@pytest.mark.parametrize("size", [3, 2])
def test_file_of_a_later_release_is_refused_before_anything_changes(tmp_path, monkeypatch, size):
    """By load on the same and on another number of ranks, and by consolidate."""
    monkeypatch.setattr("pushsum_opt.push_sum.saving.FORMAT", 2)
    path, _ = train_and_save(tmp_path / "runs", SIZE, staleness=1)
    monkeypatch.undo()
    refused = r"rank-0000\d.pt: the push-sum state has format 2, and this pushsum_opt reads up to 1: .* that version$"
    assert re.search(refused, failing_load(path.parent, size).split(";")[0])
    with pytest.raises(CheckpointError, match=refused):
        ps.checkpoint.consolidate(path.parent)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.9999])
@pytest.mark.parametrize("size", [3, 2])
def test_file_that_was_cut_off(saved, rank, part, size):
    file = saved / f"rank-0000{rank}.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    text = failing_load(saved.parent, size)
    assert f"{file}: expected {len(whole)} bytes, got {int(part * len(whole))}" in text


@pytest.mark.parametrize("place", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("size", [3, 5])
def test_file_in_which_one_bit_has_changed(saved, place, size):
    file = saved / "rank-00001.pt"
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1
    file.write_bytes(data)
    text = failing_load(saved, size)
    assert f"{file}: expected sha256" in text
    assert "changed" in text


def test_file_that_is_missing(saved):
    (saved / "rank-00002.pt").unlink()
    text = failing_load(saved.parent)
    assert f"rank 2: {saved / 'rank-00002.pt'}: expected" in text
    assert "got no file" in text


def test_file_of_another_rank(saved):
    shutil.copy(saved / "rank-00000.pt", saved / "rank-00001.pt")
    text = failing_load(saved)
    assert f"{saved / 'rank-00001.pt'}: expected" in text
    assert "rank 0 of 3, round 4)" in text, "it says whose it is"


def test_file_of_another_run(saved, tmp_path):
    other, _ = train_and_save(tmp_path / "others", SIZE, staleness=1)
    shutil.copy(other / "rank-00001.pt", saved / "rank-00001.pt")
    run = json.loads((other / "manifest.json").read_text())["run"]
    assert f"(of run {run}, rank 1 of 3, round 4)" in failing_load(saved)


def test_files_of_several_runs_under_a_manifest_that_was_made_to_fit(saved, tmp_path):
    """Sizes and hashes are right; what the files say of themselves is not."""
    other, _ = train_and_save(tmp_path / "others", SIZE, staleness=1)
    shutil.copy(other / "rank-00001.pt", saved / "rank-00001.pt")
    mend(saved, lambda fields: fields["files"].update({"rank-00001.pt": entries(other)["rank-00001.pt"]}))
    assert "files of several runs were mixed" in failing_load(saved)


def test_parts_of_several_rounds_whose_mass_does_not_sum_to_n(saved, tmp_path):
    """All of one run, and each file whole: rank 1's is two rounds older, so mass is there twice or not at all."""
    path, _ = train_and_save(tmp_path / "runs", SIZE, staleness=1, steps=2, saves=2)
    older = sorted(path.parent.iterdir())[-2]
    shutil.copy(older / "rank-00001.pt", path / "rank-00001.pt")
    mend(path, lambda fields: fields["files"].update({"rank-00001.pt": entries(older)["rank-00001.pt"]}))
    assert "expected a mass of 3 in all, got" in failing_load(path)
    assert "expected a mass of 3 in all, got" in failing_load(path, 2)


def test_foreign_file_that_would_run_code(saved, tmp_path):
    class Evil:
        def __reduce__(self):
            return subprocess.call, (["touch", str(tmp_path / "was run")],)

    file = saved / "rank-00001.pt"
    torch.save({"format": 1, "evil": Evil()}, file, pickle_module=pickle)
    data = file.read_bytes()
    import hashlib

    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    mend(saved, lambda fields: fields["files"].update({"rank-00001.pt": entry}))
    assert f"{file}: torch cannot read it" in failing_load(saved)
    with pytest.raises(CheckpointError, match="torch cannot read it"):
        ps.checkpoint.consolidate(saved)
    assert not (tmp_path / "was run").exists()


# ---------------------------------------------------------------------- the manifest


def entries(path):
    return json.loads((path / "manifest.json").read_text())["files"]


def mend(path, change):
    """Change a manifest as its writer would have written it."""
    from pushsum_opt.checkpoint.directory import Manifest

    file = path / "manifest.json"
    fields = json.loads(file.read_text())
    del fields["checksum"]
    change(fields)
    file.write_text(Manifest(**fields).to_json())


@pytest.mark.parametrize("part", [0.0, 0.3, 0.95])
def test_manifest_that_was_cut_off(saved, part):
    file = saved / "manifest.json"
    text = file.read_text()
    file.write_text(text[: int(part * len(text))])
    assert f"{file}: expected the manifest of a checkpoint" in failing_load(saved.parent)


@pytest.mark.parametrize("text", ["[]", "{}", '"manifest"', "\0\1\2", '{"format": "x", "checksum": 1}'])
def test_foreign_manifest(saved, text):
    (saved / "manifest.json").write_text(text)
    assert "manifest.json: expected" in failing_load(saved.parent)


def test_manifest_that_was_changed(saved):
    file = saved / "manifest.json"
    file.write_text(file.read_text().replace('"size": 3', '"size": 2'))
    assert "the manifest was changed after it was written" in failing_load(saved.parent, 2)


def test_manifest_of_a_newer_format(saved):
    mend(saved, lambda fields: fields.update(format=2))
    text = failing_load(saved.parent)
    assert "expected format 1 or older, got 2" in text
    assert "Update pushsum_opt" in text


def test_manifest_that_leaves_a_rank_out(saved):
    mend(saved, lambda fields: fields["files"].pop("rank-00001.pt"))
    assert "expected an entry for rank-00001.pt of 3 ranks" in failing_load(saved)


def test_directory_without_a_manifest(saved):
    (saved / "manifest.json").unlink()
    text = failing_load(saved.parent)
    assert f"only {saved.name} without manifest.json: saving was interrupted" in text


def test_directory_without_a_checkpoint(tmp_path):
    assert "expected a checkpoint (a directory save-... with manifest.json), got none" in failing_load(tmp_path)
    assert "expected a directory of checkpoints, got nothing" in failing_load(tmp_path / "nowhere")


# ---------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.nn.Linear(6, 5), "alias: expected float32[2, 5], got nothing"),
        (lambda: network().double(), "expected"),
    ],
)
def test_another_model_is_refused_by_name(saved, size, make, said):
    def rank(comm):
        model = make()
        with ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm) as optimizer:
            with pytest.raises(CheckpointError) as error:
                ps.checkpoint.load(saved, optimizer)
            return str(error.value)

    texts = ps.testing.run(size, rank)
    assert len(set(texts)) == 1
    assert "the model is not the one that was saved" in texts[0]
    assert said in texts[0]


def test_other_parameter_groups_are_refused(tmp_path):
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm) as optimizer:
            ps.checkpoint.save(tmp_path, optimizer)
        groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]
        refused = pytest.raises(CheckpointError, match=r"groups of \[4\] parameters, as saved, got \[2, 2\]")
        with ps.PushSumOptimizer(torch.optim.SGD(groups, lr=0.1), model, comm=comm) as optimizer, refused:
            ps.checkpoint.load(tmp_path, optimizer)

    ps.testing.run(2, rank)


def test_what_was_saved_beside_the_optimizer_must_be_passed_to_load(saved):
    text = failing_load(saved, changed={})
    assert "expected what was saved beside the optimizer (scheduler 0), got nothing" in text


def test_an_optimizer_that_is_not_wrapped_is_refused(tmp_path):
    model = network()
    plain = KINDS["SGD"](model.parameters())
    with pytest.raises(ps.errors.ConfigurationError, match="expected a PushSumOptimizer, got SGD"):
        ps.checkpoint.save(tmp_path, plain)
    with pytest.raises(ps.errors.ConfigurationError, match="expected a PushSumOptimizer, got SGD"):
        ps.checkpoint.load(tmp_path, plain)
