"""Distributed tests run real megatron-core on CPU: the device layer comes first, before anything imports megatron."""

from __future__ import annotations

import warnings

from nemo_xtoken.integrations.megatron import cpu_device

warnings.filterwarnings("ignore", module="megatron")
cpu_device.install()
