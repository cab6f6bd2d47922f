"""The command line: one parser a room, each in that room's `command.py`; errors become one line and an exit code."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from redline.errors import RedlineError

# command → its room's module with `configure(parser)` and `run(args) -> exit code`. Read from left to right: the road.
_COMMANDS = {
    "optimize": ("redline.optimize.command", "trained model → judged, load-proven artifact"),
    "prove": ("redline.optimize.reprove", "load-test an artifact on this machine, into a new one"),
    "inspect": ("redline.inspect", "what an artifact is, where it came from, whether it is whole"),
    "serve": ("redline.runtimes.command", "serve an artifact (KServe; embedded engine or Triton)"),
    "bench": ("redline.bench.command", "open-loop load test with a pass/fail verdict on the SLA"),
    "deploy": ("redline.model_repo_templates.deploy", "write the manifests that roll an artifact out on KServe"),
}
_EPILOG = (
    "exit codes: 0 done and held; 1 a gate or the SLA broke; 2 bad usage or input; 3 this machine can't (what is "
    "missing, how to get it); 4 the measurement is invalid"
)


def _parser(command: str | None) -> argparse.ArgumentParser:
    """The whole command line, but only the asked command's room is imported."""
    about = "Trained PyTorch model in, load-proven artifact out."
    parser = argparse.ArgumentParser(prog="redline", description=about, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"redline {version('redline')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, line) in _COMMANDS.items():
        sub = commands.add_parser(name, help=line, description=line, epilog=_EPILOG)
        if name == command:
            room = import_module(module)
            room.configure(sub)
            sub.set_defaults(run=room.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = _parser(argv[0] if argv else None).parse_args(argv)
    try:
        return int(args.run(args))
    except RedlineError as e:
        print(f"redline {args.command}: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        return 130


def optimize_main() -> int:
    return main(["optimize", *sys.argv[1:]])
