"""Scripts run as they are under torchrun, and under what frameworks start ranks with."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from optimizer.common import KINDS, bits, closure_of, network, star, values
from support.started import ROOT
from torchrun.launch import HERE, agents, environment, run, start_ranks, torchrun, torchrun_command
from warm.python import FOR_EXAMPLES, warm_python

import pushsum_opt as ps

STEPS = 14
FRAMEWORKS = ROOT / "examples" / "frameworks"
TRAINING = ["--epochs", "8", "--accumulate", "2"]


def accuracies(output):
    return [float(text) for text in re.findall(r"test accuracy ([\d.]+)%", output)]


def test_digits_reaches_97_percent_under_torchrun(tmp_path):
    words = [*warm_python(*FOR_EXAMPLES), str(ROOT / "examples" / "digits.py"), "--staleness", "1"]
    done = torchrun(4, "--no-python", *words, "--state", str(tmp_path))
    assert done.returncode == 0, done.stdout[-4000:]
    assert accuracies(done.stdout)[-1] >= 97.0
    assert "4 ranks on 1 host" in done.stdout
    assert "memory over torch.distributed (gloo), started by torchrun" in done.stdout


def test_the_manifest_for_kubernetes_starts_ranks_that_find_each_other(tmp_path):
    manifest = yaml.safe_load((ROOT / "examples" / "pytorchjob.yaml").read_text())
    master, worker = (manifest["spec"]["pytorchReplicaSpecs"][kind] for kind in ("Master", "Worker"))
    assert master["replicas"] == 1
    assert worker["template"] == master["template"]
    (container,) = master["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"
    (mount,) = container["volumeMounts"]
    assert container["command"][0] == "python"
    script = [word.replace(mount["mountPath"], str(tmp_path)) for word in container["command"][1:]]
    size = 1 + worker["replicas"]
    codes, outputs = start_ranks(size, [*warm_python(*FOR_EXAMPLES), *script, "--epochs", "1"])
    assert codes == [0] * size, outputs
    assert f"{size} ranks on 1 host" in outputs[0]
    assert "(gloo), RANK, WORLD_SIZE and MASTER_ADDR are set" in outputs[0]


def undisturbed(comm):
    model = network()
    optimizer = ps.PushSumOptimizer(KINDS["SGD"](model.parameters(), lr=0.01), model, graph=star, comm=comm)
    for step in range(STEPS):
        optimizer.step(closure_of(model, step, comm.rank))
    optimizer.close()
    return b"".join(bits(values(model))).hex()


@pytest.mark.parametrize("sizes", [[3], [2, 1]], ids=["one torchrun", "two torchruns, as on two hosts"])
def test_what_torchrun_starts_again_goes_on_with_the_bits_of_a_run_that_never_stopped(sizes, tmp_path):
    program = str(HERE / "programs" / "restarted.py")
    words = ["--max-restarts", "1", "--no-python", *warm_python(), program, str(tmp_path), str(STEPS)]
    all_done = agents(sizes, *words) if len(sizes) > 1 else [torchrun(sizes[0], *words)]
    output = "".join(done.stdout for done in all_done)
    assert [done.returncode for done in all_done] == [0] * len(sizes), output[-6000:]
    assert re.search(r"PeerFailed: rank [02]: rank [012] (has died|stopped): ", output)
    assert "resumed exactly from" in output
    ends = [(tmp_path / f"end-{rank}").read_text().split() for rank in range(3)]
    assert [end[1] for end in ends] == ["8"] * 3
    assert ends[1][0] == "1"  # where rank 1 was killed; another torchrun may only have been told of it
    assert [end[3] for end in ends] == ps.testing.run(3, undisturbed)


def test_sigterm_to_torchrun_saves_one_round_on_all_ranks(tmp_path):
    """As a cluster ends a pod: torchrun passes the signal on, and waits."""
    program = str(HERE / "programs" / "stopped.py")
    command = torchrun_command(2, "--no-python", *warm_python(), program, str(tmp_path))
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True
    )
    try:
        deadline = time.monotonic() + 100
        while not all((tmp_path / f"started-{rank}").exists() for rank in range(2)):
            assert time.monotonic() < deadline, "the ranks did not start"
            assert child.poll() is None, "torchrun has ended"
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        output, _ = child.communicate(timeout=100)
    except BaseException:
        child.kill()
        print(child.communicate()[0])
        raise
    assert len(list(tmp_path.glob("checkpoints/*/manifest.json"))) == 1, output
    assert [(tmp_path / f"code-{rank}").read_text() for rank in range(2)] == ["75", "75"], output


@pytest.mark.slow
def test_accelerate_trains_under_its_own_launcher():
    start = [*warm_python(*FOR_EXAMPLES), "-c", "from accelerate.commands.accelerate_cli import main; main()", "launch"]
    # On a machine without GPUs, this option means torchrun's way to start processes.
    options = ["--multi-gpu", "--num-processes", "2", "--num-machines", "1", "--mixed-precision", "no"]
    script = [*warm_python(*FOR_EXAMPLES), str(FRAMEWORKS / "accelerate_launch.py"), *TRAINING]
    check(run([*start, *options, "--dynamo-backend", "no", "--no-python", *script]))


@pytest.mark.slow
def test_the_hugging_face_trainer_trains_under_torchrun(tmp_path):
    script = [*warm_python(*FOR_EXAMPLES), str(FRAMEWORKS / "hf_torchrun.py"), *TRAINING, "--out", str(tmp_path)]
    check(torchrun(2, "--no-python", *script, HF_HUB_OFFLINE="1"))


@pytest.mark.slow
def test_lightning_starts_the_ranks_itself():
    check(run([sys.executable, str(FRAMEWORKS / "lightning_devices.py"), *TRAINING, "--devices", "2"]))


def check(done):
    assert done.returncode == 0, done.stdout[-6000:]
    assert "2 ranks on 1 host" in done.stdout
    assert "over torch.distributed (gloo)" in done.stdout
    assert accuracies(done.stdout)[-1] > 90
