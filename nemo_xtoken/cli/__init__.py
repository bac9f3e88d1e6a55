"""The `nemo-xtoken` command. A command reads options, calls its room, shows the result; rooms are imported on use."""

from nemo_xtoken.cli.app import main

__all__ = ["main"]
