"""The command line's edge: what is refused, with which exit code and which words."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from redline import bench
from redline.bench.serving import free_ports
from redline.cli import main
from redline.page import Section, drawing, figure_svg, render
from redline.verdict import Verdict

_URL = "http://127.0.0.1:1"


@pytest.fixture
def ask(tmp_path: Path) -> str:
    np.savez(tmp_path / "ask.npz", **{"0/in/x": np.zeros((1, 2), np.float32)})
    np.savez(tmp_path / "other.npz", **{"x": np.zeros(2)})
    return str(tmp_path / "ask.npz")


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([_URL, "--rate", "9"], 2, "Give --requests"),
        ([_URL, "--requests", "ASK", "--rate", "9"], 2, "wanted a model's name"),
        ([_URL, "--requests", "ASK", "--model", "m"], 2, "wanted --rate R"),
        ([_URL, "--requests", "ASK", "--model", "m", "--rate", "0"], 2, "above 0"),
        ([_URL, "--requests", "ASK", "--model", "m", "--rate", "-5"], 2, "above 0"),
        ([_URL, "--requests", "ASK", "--model", "m", "--rate", "nan"], 2, "above 0"),
        ([_URL, "--requests", "ASK", "--model", "m", "--rate", "many"], 2, "invalid float"),
        ([_URL, "--requests", "ASK", "--model", "m", "--rate", "9", "--p99", "50"], 2, "with a unit"),
        ([_URL, "--requests", "ASK", "--model", "m", "--rate", "9", "--p99", "0ms"], 2, "above 0"),
        ([_URL, "--requests", "ASK", "--model", "m", "--rate", "9", "--duration", "soon"], 2, "with a unit"),
        ([_URL, "--requests", "ASK", "--model", "m", "--rate", "9", "--protocol", "smoke"], 2, "invalid choice"),
        ([_URL, "--requests", "ASK", "--model", "m", "--rate", "9", "--arrivals", "never"], 2, "invalid choice"),
        ([_URL, "--requests", "ASK", "--model", "m", "--rate", "9", "--seed", "-1"], 2, "--seed 0 or more"),
        ([_URL, "--requests", "ASK", "--model", "m", "--rate", "9", "--report", "ASK"], 2, "name a folder"),
        (["ftp://x", "--requests", "ASK", "--model", "m", "--rate", "9"], 2, "wanted http://host:port"),
        ([_URL + "/v2", "--requests", "ASK", "--model", "m", "--rate", "9"], 2, "no path"),
        ([_URL, "--requests", "OTHER", "--model", "m", "--rate", "9"], 2, '"0/in/NAME"'),
        ([_URL, "--requests", "NONE.npz", "--model", "m", "--rate", "9"], 2, "NONE.npz"),
        ([_URL, "--requests", "/nowhere", "--model", "m", "--rate", "9"], 2, "not an artifact"),
        (["/nowhere", "--rate", "9"], 2, "not an artifact"),
        ([_URL, "--requests", "ASK", "--model", "m", "--rate", "9"], 1, "broken: "),
        ([_URL, "--requests", "ASK", "--model", "m", "--search"], 1, "connection refused"),
    ],
)
def test_bad_command_lines(
    argv: list[str], code: int, message: str, ask: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"ASK": ask, "OTHER": ask.replace("ask", "other")}
    try:
        got = main(["bench", *(places.get(a, a) for a in argv)])
    except SystemExit as e:  # argparse's own
        got = int(e.code or 0)
    out = capsys.readouterr()
    assert (got, message in out.out + out.err) == (code, True), out


def test_json_is_all_that_is_printed(ask: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (port,) = free_ports(1)
    argv = ["bench", f"http://127.0.0.1:{port}", "--requests", ask, "--model", "m", "--rate", "9", "--json"]
    assert main([*argv, "--report", str(tmp_path / "out")]) == 1
    (report,) = json.loads(capsys.readouterr().out)["reports"]
    assert report["status"] == "broken"
    assert json.loads((tmp_path / "out" / "report.json").read_text())["reports"] == [report]


def test_a_page_escapes_what_it_is_given_and_plots_keep_their_ids_apart() -> None:
    svgs = []
    for top in (1, 2):
        with drawing() as (fig, ax):
            ax.plot([0, 1], [0, top])
            ax.set_title("<b>")
            svgs.append(figure_svg(fig, 'a "plot"'))
    page = render(
        "<i>", Verdict(False, "5 > 4"), "broken", [("a", "<u>")], [Section("s", figure=svgs[0], rows=[("<", 1)])]
    )
    assert not any(tag in page for tag in ("<i>", "<u>", "<b>", "5 > 4"))
    assert "5 &gt; 4" in page
    ids = [{part.split('"')[0] for part in svg.split('id="')[1:]} for svg in svgs]
    assert not ids[0] & ids[1]


def test_the_command_line_imports_nothing_heavy_and_the_public_names_are_there() -> None:
    heavy = "locust matplotlib scipy tritonclient uvloop torch kserve grpc"
    code = f"import sys, redline.bench.command; print([m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert sorted(bench.__all__) == bench.__all__
    assert all(hasattr(bench, name) for name in bench.__all__)
