"""`redline prove ARTIFACT --out NEW`: load-test an artifact on this machine; the old one stays as it is."""

import argparse
import dataclasses
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from redline import artifact, machine
from redline.artifact import seal, writing


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="folder written by `redline optimize`")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="NEW", help="new folder: the artifact with its proof"
    )


def run(args: argparse.Namespace) -> int:
    from redline.optimize.artifact import write_json
    from redline.optimize.progress import Progress
    from redline.optimize.prove import prove
    from redline.optimize.report import render

    found = artifact.load(args.artifact)
    with writing(args.out) as folder, Progress(1) as progress, progress.step("proof") as say:
        proof = prove(found.path, None, say)
        say(f"{proof.status}: {proof.why}")
        shutil.copytree(found.path, folder, dirs_exist_ok=True)
        write_json(folder / "evidence" / "sla.json", proof.table)
        (folder / "report.html").write_text(render(found.evidence("leaderboard"), proof.table))
        here: dict[str, Any] = {
            "isa": machine.isa() if found.manifest.target == "cpu" else "portable",
            "versions": machine.versions(),
            "command": shlex.join(["redline", *sys.argv[1:]]),
        }
        manifest = dataclasses.replace(found.manifest, proof=proof.proof, proof_why=proof.why, **here)
        seal(folder, manifest)
    print(f"{proof.status}: {proof.why}\nartifact: {args.out}")
    return proof.exit_code
