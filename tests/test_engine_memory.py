"""A language model that does not fit into memory: one line, from a process that really has none left."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from tests.conftest import text_config
from vision_lm.bench.weights import counting_phi
from vision_lm.engine import make_decoder
from vision_lm.errors import VisionLMError
from vision_lm.skeleton import phi_shapes
mode = sys.argv[1] or None
small = text_config(hidden_size=128)
make_decoder(small, counting_phi(small, torch.float32), torch.device("cpu"), torch.float32, mode)  # what is loaded needs no more
config = text_config(hidden_size=4096, intermediate_size=16384, num_attention_heads=64, num_key_value_heads=64)
weights = {name: torch.zeros(1).expand(shape) for name, shape in phi_shapes(config).items()}
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (128 << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))
try:
    make_decoder(config, weights, torch.device("cpu"), torch.float32, mode)
except VisionLMError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is limited as Linux does it")
@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("", "weights in float32; give quantize int8 or int4, free some, or choose another device"),
        ("int8", "weights in int8; free some, or choose another device"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(mode: str, said: str) -> None:
    """It says how many weights there are, and what to do; no traceback."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, timeout=120, check=True
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("cpu has no memory for a language model of ")
    assert line.endswith(said)
