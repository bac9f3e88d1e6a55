"""NeMo on CPU: the device layer comes first, before anything imports megatron."""

from __future__ import annotations

import logging
import os
import warnings

from nemo_xtoken.integrations.megatron import cpu_device

warnings.filterwarnings("ignore")
os.environ.setdefault("ONE_LOGGER_JOB_CATEGORY", "test")
cpu_device.install()

from nemo.utils import logging as nemo_logging  # noqa: E402

nemo_logging.setLevel(logging.ERROR)
