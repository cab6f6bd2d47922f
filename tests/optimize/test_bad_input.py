"""Whatever is handed over wrong ends in one line that says what, and in the right exit code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_job import write_job

from redline.cli import main

DRAW = "    arrays = draw(4000, 0)\n"
FORWARD = "return torch.sigmoid(self.body(torch.cat([*rows, dense], dim=1)).squeeze(1))"
SCORE = 'predict(arrays)["score"]'
REQUESTS = "return [draw(rows, 100 + i) for i in range(count)]"


# what: (changes to the job, part of the message)
JOBS: dict[str, tuple[list[tuple[str, str]], str]] = {
    "no job in it": ([("job = Job(", "jobs = Job(")], "has no `job = Job(...)`: found NoneType"),
    "syntax error": ([("class Net(nn.Module):", "class Net(nn.Module)")], "fails to import: SyntaxError"),
    "missing module": ([("import torch\n", "import torchy\n")], "No module named 'torchy'"),
    "bad name": ([('name="tiny"', 'name="ti/ny"')], "job name 'ti/ny': letters, digits"),
    "a name twice": ([('outputs=("score",)', 'outputs=("ids",)')], "need distinct names"),
    "bad tensor": ([('shape=("rows", 4)', "shape=(4000, 4)")], "must name its batch axis first"),
    "no gate": ([("gate=Gate(max_drop=0.005),", "")], "missing 1 required keyword-only argument: 'gate'"),
    "SLA without unit": ([('p99="50ms"', 'p99="50"')], "wanted a duration with a unit"),
    "calibration is data": ([("calibration=calibration", "calibration={}")], "calibration must be a function"),
    "calibration fails": ([(DRAW, "    1 / 0\n")], "calibration failed at job.py:"),
    "calibration of nothing": ([("return arrays\n", "return None\n")], "calibration gave NoneType, wanted"),
    "calibration lacks one": ([(DRAW, DRAW + "    del arrays['ids']\n")], "calibration gave ['dense'], the job's"),
    "calibration dtype": ([(DRAW, DRAW + "    arrays['ids'] = arrays['ids'] * 1.0\n")], "wanted int64, got float64"),
    "calibration NaN": ([(DRAW, DRAW + "    arrays['dense'][7, 2] = np.nan\n")], "nan at row 7, column 2"),
    "calibration ids": (
        [(DRAW, DRAW + "    arrays['ids'][5, 1] = 30\n")],
        "id 30 at row 5, column 1 (item) is not in 0..29",
    ),
    "calibration counts": (
        [(DRAW, DRAW + "    arrays['ids'] = arrays['ids'][1:]\n")],
        "[3999, 4000] rows, wanted one count",
    ),
    "calibration empty": ([("draw(4000, 0)", "draw(0, 0)")], "wanted one count above 0"),
    "metric NaN": ([("return float(auc)", "return float('nan')")], "evaluate gave nan on validation"),
    "metric None": ([("return float(auc)", "pass")], "evaluate gave None on validation, wanted a finite number"),
    "evaluate fails": ([(SCORE, SCORE.replace("score", "scores"))], "KeyError: 'scores'"),
    "requests of other sizes": (
        [(REQUESTS, "return [draw(rows + 1, i) for i in range(count)]")],
        "wanted 1 to 1 rows, got 2",
    ),
    "too few requests": ([(REQUESTS, "return [draw(rows, 0)]")], "requests(16, 1) gave requests of [1] rows"),
    "requests fail": ([(REQUESTS, "return None")], "requests(16, 1) gave NoneType"),
    "requests with bad ids": (
        [("draw(rows, 100 + i)", "draw(rows, 100 + i) | {'ids': np.full((rows, 3), 50)}")],
        "requests(16, 1): input 'ids': id 50 at row 0, column 0 (user)",
    ),
    "model is a lambda": ([("model=load_model", "model=lambda: load_model()")], "must be a function at module level"),
    "model is no module": ([("    return net\n", "    return 'net'\n")], "model() gave str, wanted a torch.nn.Module"),
    "model fails": ([("    net = Net()\n", "    raise OSError('no weights')\n")], "model failed at job.py:"),
    "job that exits": ([("import torch\n", "import torch\n\nraise SystemExit(0)\n")], "fails to import: SystemExit: 0"),
    "evaluate exits": ([("return float(auc)", "raise SystemExit(0)")], "evaluate failed at job.py:"),
    "model of a dict": (
        [(FORWARD, FORWARD.replace("return ", "return dict(score=") + ")")],
        "a tensor for each of ['score']",
    ),
    "model of more inputs": (
        [("self, ids, dense)", "self, ids, dense, more)")],
        "missing 1 required positional argument",
    ),
    "model of more outputs": ([(FORWARD, FORWARD + ", dense")], "a tensor for each of ['score']: ValueError"),
    "model of other shapes": ([("nn.Linear(28", "nn.Linear(27")], "shapes cannot be multiplied"),
    "answers not finite": ([(FORWARD, FORWARD + " / (0 * dense[:, 0])")], "not finite: ['score']"),
    "untraceable": (
        [(FORWARD, f"if dense.sum() > 0:\n            dense = dense * 2\n        {FORWARD}")],
        "torch.export can't trace job tiny's model: job.py:19: if dense.sum() > 0:",
    ),
    "wrong batch axis": (
        [(FORWARD, FORWARD.replace(".squeeze(1)", ".mean(0)")), (SCORE, f"np.resize({SCORE}, 4000)")],
        "output 'score': wrong batch axis: ",
    ),
    "named as an operator": (
        [('outputs=("score",)', 'outputs=("embedding",)'), ('["score"]', '["embedding"]')],
        "rename ['embedding']",
    ),
}

# what: (options, part of the message)
OPTIONS: dict[str, tuple[list[str], str]] = {
    "unknown recipe": (["--recipes", "onnxruntime-fp32,warp"], "no recipe 'warp'; known: auto, all, onnxruntime-fp32"),
    "duration without unit": (["--p99", "50"], "wanted a duration with a unit (ns, us, ms, s, min, h), got '50'"),
    "no time at all": (["--p99", "0ms"], "must be above zero, got '0ms'"),
    "negative rate": (["--rate", "-5"], "must be above zero"),
    "no rate": (["--rate", "nan"], "must be above zero"),
    "infinite rate": (["--rate", "inf"], "above zero"),
    "no rows": (["--rows", "0"], "must be above zero"),
    "no gate at all": (["--max-drop", "nan"], "max_drop and floor must be numbers"),
    "not a number": (["--rate", "fast"], "invalid float value: 'fast'"),
    "unknown option": (["--fast"], "unrecognized arguments: --fast"),
    "out under a file": (["--out", "job.py/out"], "can't write to job.py: "),
    "out is a file": (["--out", "job.py"], "job.py exists already; artifacts are never edited"),
}

# what: (the job's own recipe, exit code, part of the message)
RECIPES: dict[str, tuple[str, int, str]] = {
    "unknown engine": ("name='mine', passes=(), engine='warp'", 2, "unknown engine 'warp'; known: onnxruntime"),
    "unknown engine option": (
        "name='mine', passes=(), engine='torch_eager', options={'thread': 1}",
        2,
        "unknown options ['thread']; known: ['threads']",
    ),
    "a recipe named as another": (
        "name='openvino-fp32', passes=(), engine='torch_eager'",
        2,
        "recipes need names of their own",
    ),
    "passes in the wrong order": ("name='mine', passes=(QuantizeStatic(),), engine='onnxruntime'", 1, "nearest miss"),
    "bounds of a pass": (
        "name='mine', passes=(QuantizeStatic(rows=0),), engine='onnxruntime'",
        2,
        "rows must be above 0, got 0",
    ),
}


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    try:
        code: object = main(["optimize", *arguments])
    except SystemExit as e:
        code = e.code
    said = capsys.readouterr()
    assert isinstance(code, int)
    return code, said.err + said.out


def check(what: str, found: int, said: str, code: int, message: str, folder: Path) -> None:
    assert (found, message in " ".join(said.split())) == (code, True), said
    assert "Traceback" not in said
    left = {p.name for p in folder.rglob("*") if p.suffix != ".pyc"} - {"job.py", "__pycache__", "out"}
    assert not left or code == 1, f"{what} left something behind"


@pytest.mark.parametrize("what", JOBS)
def test_a_bad_job(what: str, clean_process: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, message = JOBS[what]
    job = write_job(clean_process, *changes)
    code, said = run([job.name, "--no-prove", "--recipes", "onnxruntime-fp32"], capsys)
    check(what, code, said, 2, message, clean_process)
    *steps, error = said.splitlines()
    assert error.startswith("redline optimize: ")
    assert all(re.match(r" *\d+\.\d s  ", line) for line in steps)  # and nothing a library had to say


@pytest.mark.parametrize("what", OPTIONS)
def test_a_bad_option(what: str, clean_process: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, message = OPTIONS[what]
    code, said = run([write_job(clean_process).name, "--no-prove", *options], capsys)
    check(what, code, said, 2, message, clean_process)


@pytest.mark.parametrize("what", RECIPES)
def test_a_bad_recipe(what: str, clean_process: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, code, message = RECIPES[what]
    imports = "from redline.optimize.passes import QuantizeStatic\n"
    job = write_job(
        clean_process, ("import torch\n", f"import torch\n{imports}"), ("recipes=()", f"recipes=(Recipe({mine}),)")
    )
    found, said = run([job.name, "--no-prove", "--recipes", "mine"], capsys)
    check(what, found, said, code, message, clean_process)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "no job at nowhere.py; wanted a Python file"),
        (["."], "no job at ."),
        (["job.txt"], "job.txt: wanted a Python file"),
        ([], "the following arguments are required: JOB"),
    ],
)
def test_no_job(arguments: list[str], message: str, clean_process: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clean_process / "job.txt").write_text("job = 1")
    code, said = run(arguments, capsys)
    assert code == 2
    assert message in said


def test_an_absent_extra_is_answered_with_the_pip_line(tmp_path: Path) -> None:
    (tmp_path / "onnxscript.py").write_text("raise ModuleNotFoundError('no', name='onnxscript')")
    job = write_job(tmp_path)
    found = subprocess.run(
        [sys.executable, "-m", "redline", "optimize", job.name],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 3
    assert found.stderr.strip().endswith("needs `pip install 'redline[optimize]'`")
    assert "onnxscript" in found.stderr
    assert not (tmp_path / "out").exists()
