import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from redline.errors import RedlineError, RequestError
from redline.runtimes import codec
from redline.tensors import Tensor

INPUTS = (Tensor(name="a", dtype="float32", shape=("rows", 2)), Tensor(name="b", dtype="bool", shape=("rows",)))


@given(st.binary(max_size=200), st.none() | st.binary(max_size=4) | st.integers(0, 300).map(lambda n: b"%d" % n))
def test_any_bytes_are_decoded_or_refused(body: bytes, length: bytes | None) -> None:
    for decode in (lambda: codec.decode_v2(body, length, INPUTS, INPUTS), lambda: codec.decode_v1(body, INPUTS)):
        with suppress(RequestError):
            decode()


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_ENTRY = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b"]) | _ANY},
    optional={
        "datatype": st.sampled_from(["FP32", "BOOL"]) | _ANY,
        "shape": st.lists(st.integers(-2, 3), max_size=3) | _ANY,
        "data": _ANY,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-9, 40) | _ANY}) | _ANY,
    },
)


@given(st.fixed_dictionaries({"inputs": st.lists(_ENTRY, max_size=3) | _ANY}, optional={"outputs": _ANY}), st.binary())
def test_any_json_is_decoded_or_refused(table: dict[str, Any], tail: bytes) -> None:
    text = json.dumps(table).encode()
    with suppress(RequestError):
        codec.decode_v2(text + tail, b"%d" % len(text), INPUTS, INPUTS)


@given(st.data(), st.sampled_from(list(codec.WIRE)), st.booleans())
def test_every_value_comes_back(data: st.DataObject, dtype: str, binary: bool) -> None:
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else {}
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=finite or None))
    spec = Tensor(name="x", dtype=dtype, shape=("rows", array.shape[1]))
    text, length = codec.encode_v2("m", codec.Call({}, {"x": binary}), {"x": array})
    table = json.loads(text[:length])
    body = json.dumps({"inputs": table["outputs"]}).encode()
    back = codec.decode_v2(body + (text[length:] if length else b""), b"%d" % len(body), (spec,), (spec,)).arrays["x"]
    assert (back.dtype == array.dtype and back.tobytes() == array.tobytes()) or (
        back == array
    ).all()  # JSON has no -0 int
    predictions = json.loads(codec.encode_v1({"x": array}))["predictions"]
    assert (codec.decode_v1(json.dumps({"instances": predictions}).encode(), (spec,))["x"] == array).all()


def test_binary_tensors_are_views_of_an_aligned_body() -> None:
    spec = Tensor(name="x", dtype="float32", shape=("rows", 2))
    head = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}'
    head += b" " * (-len(head) % 8)
    body = head + np.array([1, 2], np.float32).tobytes()
    array = codec.decode_v2(body, b"%d" % len(head), (spec,), (spec,)).arrays["x"]
    assert array.tolist() == [[1, 2]] and not array.flags.owndata and not array.flags.writeable


@pytest.mark.parametrize("values", [[float("nan")], [float("inf")]])
def test_answers_that_json_cannot_carry_are_not_bent(values: list[float]) -> None:
    with pytest.raises(RedlineError, match="not finite"):
        codec.encode_v1({"score": np.array(values, np.float32)})
