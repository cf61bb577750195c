"""Gathered over two processes a batch has the loss and the gradient that it has in one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_losses import columns, value_and_gradient
from two_processes import CASES, TEXTS, build


def test_duplicates_in_another_process_are_masked(tmp_path):
    file = tmp_path / "results"
    script = Path(__file__).with_name("two_processes.py")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script, file], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    halves = zip(*(torch.load(f"{file}.{rank}") for rank in range(2)), strict=True)
    for case, ((first, one), (second, two)) in zip(CASES, halves, strict=True):
        value, gradient = value_and_gradient(build(case), columns(*TEXTS))
        assert (first + second) / 2 == pytest.approx(value, abs=1e-5), case
        torch.testing.assert_close((one + two) / 2, gradient, atol=1e-5, rtol=1e-4)
