"""What a run will need of a number of GPUs: memory, time and bytes from the shapes of its models, and which teacher."""

from nemo_xtoken.planning.hardware import HARDWARE, Hardware
from nemo_xtoken.planning.plan import Plan, make_plan

__all__ = ["HARDWARE", "Hardware", "Plan", "make_plan"]
