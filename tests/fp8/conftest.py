"""Transformer Engine's own code is the oracle; megatron-core finds it as well, and asks CUDA for nothing."""

from __future__ import annotations

import warnings

from nemo_xtoken.integrations.megatron import cpu_device
from tests.fp8 import te_on_cpu

warnings.filterwarnings("ignore", module="megatron")
cpu_device.install()
te_on_cpu.install()
