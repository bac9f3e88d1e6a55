"""Runs what is missing of the study and prints its tables; `examples/paper_study/run.sh` calls it."""

from __future__ import annotations

import argparse
import subprocess
import sys

from examples.paper_study.material import TEXT, make_material
from examples.paper_study.plan import Study, read_study
from examples.paper_study.runs import Chosen, count, search
from examples.paper_study.tables import COLUMNS, comparison, markdown, plot
from examples.paper_study.text import make_text
from nemo_xtoken.errors import XTokenError


def main() -> int:
    """Run or print; 1 with one line on stderr where something is wrong."""
    arguments = _arguments()
    try:
        study = read_study()
        chosen = choose(study, arguments.setting, arguments.loss)
        if arguments.action == "run":
            make_material(study, [loss for _, loss in chosen], arguments.seeds)
            search(study, chosen, arguments.jobs)
            count(study, chosen, arguments.seeds, arguments.jobs)
        make_text(TEXT)  # results are found by its hash
        if arguments.action == "compare":
            for measure, difference in comparison(study, *arguments.pair).items():
                print(f"{COLUMNS[measure].heading:48}{difference}")
            return 0
        for setting in dict.fromkeys(setting for setting, _ in chosen):
            print(f"\n{setting}\n\n{markdown(study, setting)}")
            plot(study, setting)
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(map(str, error.cmd))} failed; its log is in paper_study/", file=sys.stderr)
        return 1
    except XTokenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def choose(study: Study, settings: list[str] | None, losses: list[str] | None) -> Chosen:
    """The losses of these names in the settings of these names; None for all. Raises XTokenError for an unknown one."""
    known = {name for named in study.settings.values() for name in named}
    for what, names, allowed in (("setting", settings, set(study.settings)), ("loss", losses, known)):
        unknown = set(names or ()) - allowed
        if unknown:
            raise XTokenError(
                f"no such {what}: {', '.join(sorted(unknown))}; expected one of {', '.join(sorted(allowed))}"
            )
    return [
        (setting, loss)
        for setting, named in study.settings.items()
        for loss in named.values()
        if (not settings or setting in settings) and (not losses or loss.name in losses)
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="examples/paper_study/run.sh", description="The paper's statements, on a CPU."
    )
    parser.add_argument("action", choices=("run", "table", "compare"), nargs="?", default="run")
    parser.add_argument("pair", nargs="*", metavar="SETTING/LOSS", help="compare: the first less the second, by seed")
    parser.add_argument("--setting", action="append", metavar="NAME", help="only this setting; may be given again")
    parser.add_argument("--loss", action="append", metavar="NAME", help="only this loss; may be given again")
    parser.add_argument("--seeds", type=int, default=5, help="the first so many seeds (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a core each (default: %(default)s)")
    arguments = parser.parse_args()
    if len(arguments.pair) != (2 if arguments.action == "compare" else 0):
        parser.error("expected two of SETTING/LOSS after compare, and none elsewhere")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
