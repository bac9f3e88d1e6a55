"""What this machine has, and which features of the package can run on it."""

from nemo_xtoken.doctor.features import Status, statuses
from nemo_xtoken.doctor.machine import Gpu, Machine, examine

__all__ = ["Gpu", "Machine", "Status", "examine", "statuses"]
