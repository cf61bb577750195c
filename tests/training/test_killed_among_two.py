"""SIGKILL of one of two processes under torchrun, at random moments: nothing is lost, to the bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from two_trainings import recipe, write_data

KILLS = 6


def command(config, directory):
    config.to_yaml(directory / "recipe.yaml")
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("-m", "lacos_st.cli", "train", "--config", directory / "recipe.yaml"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killing_either_process_loses_nothing(tiny_bloom, tmp_path):
    write_data(tmp_path)
    options = {"lora_dropout": 0.1, "epochs": 12, "eval_steps": 6, "quantization": "int8", "optimizer": "adamw_8bit"}
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    whole = recipe(tmp_path, str(tiny_bloom), "whole", **options)
    subprocess.run(command(whole, tmp_path), env=environment, check=True, capture_output=True)
    killed = recipe(tmp_path, str(tiny_bloom), "killed", **options)
    checkpoints = tmp_path / "killed.run" / "checkpoints"
    moments, kills = random.Random(0), []
    while not (tmp_path / "killed" / "modules.json").exists():
        known = set(checkpoints.glob("checkpoint-*"))
        process = subprocess.Popen(command(killed, tmp_path), env=environment, stderr=subprocess.DEVNULL)
        if len(kills) < KILLS:
            while process.poll() is None and set(checkpoints.glob("checkpoint-*")) <= known:
                time.sleep(0.05)
            time.sleep(moments.uniform(0, 1))
            workers = [child for child in psutil.Process(process.pid).children() if "lacos_st.cli" in child.cmdline()]
            if process.poll() is None and len(workers) == 2:
                rank = moments.randrange(2)
                victim = next(child for child in workers if child.environ()["RANK"] == str(rank))
                victim.send_signal(signal.SIGKILL)
                kills.append(rank)
        process.wait()
    assert len(kills) >= 3
    print(f"{len(kills)} kills, of ranks {kills}")
    one, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not Path(f"{tmp_path / 'killed'}.run").exists()
