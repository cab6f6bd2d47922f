"""Which look-ups and dots become one EmbeddingInteraction: each way to write them, each graph that is left, and why."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from redline.kernels.embedding_interaction.operator import NAME, lower_triangle
from redline.optimize.passes import FuseKernels, apply
from redline.runtimes import engines
from redline.tensors import Arrays
from redline.verdict import Verdict

# A dense vector, two tables that were merged, one of its own; as vectors [rows, 4, 3].
STACKED = """
    picked = Gather <axis = 1> (ids, columns)
    at = Add (picked, offsets)
    merged = Gather (tables, at)
    id = Gather <axis = 1> (ids, last)
    looked = Gather (table, id)
    row = Unsqueeze (looked, axis)
    own = Unsqueeze (dense, axis)
    v = Concat <axis = 1> (own, merged, row)
    vt = Transpose <perm = [0, 2, 1]> (v)
    dots = MatMul (v, vt)
    flat = Reshape (dots, square)
    chosen = Gather <axis = 1> (flat, pairs)
    y = Concat <axis = 1> (dense, chosen)
"""
FLAT = (
    ("v = Concat <axis = 1> (own, merged, row)", "f = Concat <axis = 1> (dense, m, looked)\n v = Reshape (f, vectors)"),
    ("merged = Gather (tables, at)", "merged = Gather (tables, at)\n m = Reshape (merged, two)"),
)
INPUTS = (
    "int64[rows, 3] ids, int64[rows, 3] others, int64[rows, 1] single, float[rows, 3] dense, float[rows, 1, 3] third"
)
Change = tuple[str, str]


def constants() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    ints = {
        "columns": [0, 1], "last": 2, "minus": -1, "one": [2], "fixed": np.ones((7, 2)),
        "offsets": [0, 5], "none": [0], "down": [5, 0], "same": [5, 5], "before": [-1, 4], "after": 5,
        "axis": [1], "back": [-2], "behind": [2],
        "vectors": [-1, 4, 3], "halves": [-1, 2, 3], "nines": [-1, 3, 3], "bent": [-1, 6, 1],
        "two": [0, -1], "square": [-1, 16], "half": [-1, 8], "mixed": [1, -1],
        "negative": [-15, 8], "diagonal": [4, 5], "few": [2], "three": [3, 6, 7],
    }  # fmt: skip
    floats = {"tables": (9, 3), "table": (4, 3), "wide": (4, 6), "deep": (4, 1, 3)}
    return {
        **{name: np.array(value, np.int64) for name, value in ints.items()},
        **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in floats.items()},
        "precise": rng.standard_normal((4, 3)),
        "pairs": lower_triangle(4),
    }


def graph(*changes: Change) -> onnx.ModelProto:
    """STACKED with texts replaced and of all constants those that it names."""
    text = STACKED
    for old, new in changes:
        assert old in text, f"{old!r} is not in the graph"
        text = text.replace(old, new)
    head = '< ir_version: 10, opset_import: [ "" : 20 ] >'
    model = parser.parse_model(f"{head} g ({INPUTS}) => (float[rows_out, width] y) {{ {text} }}")
    for node in model.graph.node:
        node.name = node.output[0]
    named = {i for node in model.graph.node for i in node.input}
    asked = [value for value in model.graph.input if value.name in named]
    del model.graph.input[:]
    model.graph.input.extend(asked)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants().items() if n in named)
    return model


def request(model: onnx.ModelProto, rows: int = 7) -> Arrays:
    rng = np.random.default_rng(1)
    inputs: Arrays = {
        "ids": rng.integers(0, 4, (rows, 3), np.int64),
        "others": rng.integers(0, 4, (rows, 3), np.int64),
        "single": rng.integers(0, 4, (rows, 1), np.int64),
        "dense": rng.standard_normal((rows, 3)).astype(np.float32),
        "third": rng.standard_normal((rows, 1, 3)).astype(np.float32),
    }
    return {value.name: inputs[value.name] for value in model.graph.input}


def fuse(model: onnx.ModelProto, folder: Path) -> tuple[Path, Path, Verdict]:
    """Before, after, and what the pass said."""
    before, after = folder / "before.onnx", folder / "after" / "model.onnx"
    after.parent.mkdir()
    onnx.save(model, before)
    return before, after, apply(FuseKernels(), before, cast(Any, None), after)


def answers(path: Path, model: onnx.ModelProto) -> NDArray[np.float32]:
    return engines.load("onnxruntime", path, {}).infer(request(model))["y"]


@pytest.mark.parametrize(
    "changes",
    [
        (),
        FLAT,
        (("axis)\n    v", "back)\n    v"),),
        (("(flat, pairs)", "(flat, negative)"),),
        (("Gather <axis = 1> (flat", "Gather <axis = -1> (flat"),),
        (("Reshape (dots, square)", "Flatten (dots)"),),
        (("Reshape (dots, square)", "Reshape (dots, two)"),),
        (("(ids, last)", "(ids, minus)"),),
        (("(dense, chosen)", "(chosen)"),),
        (("y = Concat <axis = 1> (dense, chosen)", "y = Identity (chosen)"),),
        (("Concat <axis = 1> (dense, chosen)", "Concat <axis = -1> (dense, chosen)"),),
        (("(ids, last)", "(ids, one)"), ("Unsqueeze (looked, axis)", "Identity (looked)"), ("row)", "looked)")),
    ],
    ids=lambda changes: "; ".join(new.replace("\n", "") for _, new in changes) or "as it is",
)  # fmt: skip
def test_ways_to_write_it(changes: tuple[Change, ...], tmp_path: Path) -> None:
    model = graph(*changes)
    before, after, said = fuse(model, tmp_path)
    assert said.ok, said.why
    assert "dots of 4 vectors (3 tables, fp32) in one node" in said.why
    assert {n.op_type for n in onnx.load(after).graph.node} <= {NAME, "Identity"}
    np.testing.assert_allclose(answers(after, model), answers(before, model), rtol=1e-5, atol=1e-5)


def test_rows_of_a_computed_table_enter_as_a_dense_vector(tmp_path: Path) -> None:
    model = graph(("looked = Gather (table, id)", "turned = Neg (table)\n looked = Gather (turned, id)"))
    before, after, said = fuse(model, tmp_path)
    assert "6 dots of 4 vectors (2 tables, fp32) in one node" in said.why
    np.testing.assert_allclose(answers(after, model), answers(before, model), rtol=1e-5, atol=1e-5)


FEW = (("(dots, square)", "(dots, two)"), ("(flat, pairs)", "(flat, few)"))
ALONE = (*FEW, ("Concat <axis = 1> (dense, chosen)", "Identity (chosen)"))
STACK, LOOK_UP, VIEW = "Concat <axis = 1> (own, merged, row)", "Gather (table, id)", "Unsqueeze (looked, axis)"

# what: (changes, why); valid graphs all, of which some give other numbers if they are fused nonetheless
LEFT: dict[str, tuple[tuple[Change, ...], str]] = {
    "not transposed": (
        (*FEW, ("[0, 2, 1]", "[0, 1, 2]"), (STACK, "Concat <axis = 1> (own, merged)")),
        "its right side is not transposed by [0, 2, 1]",
    ),
    "ids of two inputs": (
        (("(ids, last)", "(others, last)"),),
        "its ids come from ids and others, wanted one input of all",
    ),
    "no Concat": ((*FEW, (STACK, "Identity (merged)")), "its vectors are not a Concat along axis 1"),
    "another axis": (
        (*FEW, (STACK, "Concat <axis = 2> (merged, merged)")),
        "its vectors are not a Concat along axis 1",
    ),
    "a computed shape": (
        (*FLAT, ("(f, vectors)", "(f, shape)"), ("f = ", "shape = Identity (vectors)\n f = ")),
        "its vectors are not a Concat along axis 1",
    ),
    "no table": ((*FEW, (STACK, "Concat <axis = 1> (own, own)")), "none of its vectors is looked up in a table"),
    "two widths": (
        (*FEW, *FLAT, (LOOK_UP, "Gather (wide, id)"), ("(dense, m, looked)", "(dense, looked)"),
         ("(f, vectors)", "(f, nines)")),
        "its vectors are [3, 6] wide, wanted one width",
    ),
    "fewer vectors": ((*ALONE, *FLAT, ("(f, vectors)", "(f, halves)")), "v does not make [rows, 4, 3] of its vectors"),
    "of unknown width": (
        (*FLAT, ("f = Concat <axis = 1> (dense", "d = Neg (dense)\n f = Concat <axis = 1> (d")),
        "d is not known to be [rows, 3]",
    ),
    "computed vectors": (
        (("own = Unsqueeze (dense, axis)", "own = Neg (row)"), ("(own, merged, row)", "(merged, own, row)")),
        "Neg gives some of its vectors, wanted Gather of a constant table, or Unsqueeze",
    ),
    "an input of three axes": (
        ((STACK, "Concat <axis = 1> (merged, row, third)"),),
        "third gives some of its vectors, wanted Gather of a constant table, or Unsqueeze",
    ),
    "a table of three axes": (
        ((LOOK_UP, "Gather (deep, id)"), (VIEW, "Identity (looked)"), ("merged, row)", "merged, looked)")),
        "looked: its table is float32 [4, 1, 3], wanted float32 [rows, dim]",
    ),
    "float64": (
        (*FEW, (LOOK_UP, "Gather (precise, id)"), (STACK, "Concat <axis = 1> (row, row)"),
         ("Concat <axis = 1> (dense, chosen)", "Cast <to = 1> (chosen)")),
        "looked: its table is float64 [4, 3], wanted float32 [rows, dim]",
    ),
    "rows on their side": (
        (*FEW, (VIEW, "Unsqueeze (looked, behind)"), (STACK, "Concat <axis = 1> (row, row)")),
        "looked: Unsqueeze does not make [rows, 1, 3] of its rows",
    ),
    "rows in other shape": (
        (*FEW, ("merged = Gather (tables, at)", "merged = Gather (tables, at)\n m = Reshape (merged, bent)"),
         (STACK, "Concat <axis = 1> (m, m)")),
        "merged: Reshape does not make [rows, 2, 3] of its rows",
    ),
    "one offset of all": (
        (("(picked, offsets)", "(picked, after)"),),
        "merged: what is added to its ids is no constant, one a table",
    ),
    "computed offsets": (
        (("(picked, offsets)", "(picked, picked)"),),
        "merged: what is added to its ids is no constant, one a table",
    ),
    "constant ids": (
        (("(picked, offsets)", "(fixed, offsets)"),),
        "merged: what is added to its ids is no constant, one a table",
    ),
    "descending": (
        (("(picked, offsets)", "(picked, down)"),),
        "merged: the offsets of its tables do not ascend within 9 rows",
    ),
    "an empty table": (
        (("(picked, offsets)", "(picked, same)"),),
        "merged: the offsets of its tables do not ascend within 9 rows",
    ),
    "before the first row": (
        (("(picked, offsets)", "(picked, before)"),),
        "merged: the offsets of its tables do not ascend within 9 rows",
    ),
    "all columns in one table": (
        (*FEW, (LOOK_UP, "Gather (table, ids)"), ("merged, row)", "merged, looked)")),
        "looked: its ids are not known to be [rows]",
    ),
    "one id for all tables": (
        (("(picked, offsets)", "(single, offsets)"),),
        "merged: its ids are [rows, 1], wanted [rows, 2]",
    ),
    "from the end of who knows": (
        (("id = Gather <axis = 1> (ids, last)", "more = Abs (ids)\n id = Gather <axis = 1> (more, minus)"),),
        "looked: column -1 of ids of unknown width",
    ),
    "two columns in one table": (
        (("(picked, offsets)", "(picked, none)"),),
        "merged: 2 columns of ids for 1 tables",
    ),
    "dots used twice": (
        (("(dense, chosen)", "(dense, chosen, more)"), ("chosen = ", "more = Flatten (dots)\n chosen = ")),
        "its dots are used more than once",
    ),
    "all dots, too": ((("(dense, chosen)", "(dense, chosen, flat)"),), "its dots are used more than once"),
    "halves of the dots": (
        (*ALONE[1:], ("(dots, square)", "(dots, half)")),
        "Reshape, Gather pick of its dots, wanted Reshape and Gather by a constant",
    ),
    "all rows in one": (
        (*ALONE[1:], ("(dots, square)", "(dots, mixed)")),
        "Reshape, Gather pick of its dots, wanted Reshape and Gather by a constant",
    ),
    "dots one below the other": (
        (*ALONE[1:], ("Reshape (dots, square)", "Flatten <axis = 2> (dots)")),
        "Flatten, Gather pick of its dots, wanted Reshape and Gather by a constant",
    ),
    "some rows": (
        (("chosen = Gather <axis = 1> (flat, pairs)", "chosen = Gather <axis = 0> (flat, few)"),
         ("Concat <axis = 1> (dense, chosen)", "Identity (chosen)")),
        "Reshape, Gather pick of its dots, wanted Reshape and Gather by a constant",
    ),
    "computed pairs": (
        (("chosen = ", "which = Abs (pairs)\n chosen = "), ("(flat, pairs)", "(flat, which)")),
        "Reshape, Gather pick of its dots, wanted Reshape and Gather by a constant",
    ),
    "squares": (
        (("(flat, pairs)", "(flat, diagonal)"),),
        "it takes a vector's product with itself, too",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT)
def test_what_is_left_and_why(what: str, tmp_path: Path) -> None:
    changes, why = LEFT[what]
    model = graph(*changes)
    before, after, said = fuse(model, tmp_path)
    assert (said.ok, said.why) == (False, f"left as it was: dots: {why}")
    np.testing.assert_array_equal(answers(after, model), answers(before, model))


@pytest.mark.parametrize(
    "changes",
    [
        (("(dense, chosen)", "(chosen, dense)"),),
        (("(dense, chosen)", "(less, chosen)"), ("chosen = ", "less = Neg (dense)\n chosen = ")),
        (FEW[0], ("(flat, pairs)", "(flat, three)"), (STACK, "Concat <axis = 1> (own, merged)"),
         ("1> (dense, chosen)", "0> (dense, chosen)")),
    ],
)  # fmt: skip
def test_what_is_joined_with_the_dots_may_stay_outside(changes: tuple[Change, ...], tmp_path: Path) -> None:
    model = graph(*changes)
    before, after, said = fuse(model, tmp_path)
    assert "dots: its dots alone; y does not join dense vectors and them along axis 1" in said.why
    assert {n.op_type for n in onnx.load(after).graph.node} - {"Neg"} == {NAME, "Concat"}
    np.testing.assert_allclose(answers(after, model), answers(before, model), rtol=1e-5, atol=1e-5)
