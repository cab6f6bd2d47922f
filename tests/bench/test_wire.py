import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from redline.bench.connections import Answer, parse_answer
from redline.bench.wire import Reader, decode_answer, differs, encode_binary, encode_v1, http_message, parse_target
from redline.errors import UsageError
from redline.tensors import DTYPES, Arrays

_OK = b"HTTP/1.1 200 OK\r\n"


def _response(arrays: Arrays) -> Answer:
    """A v2 answer that carries the same tensors as a request does."""
    body, head = encode_binary(arrays)
    table = json.loads(body[:head])
    new_head = json.dumps({"model_name": "m", "outputs": table["inputs"]}).encode()
    headers = {b"inference-header-content-length": str(len(new_head)).encode()}
    return Answer(200, headers, new_head + body[head:], 0)


@given(st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(max_dims=3, max_side=5))))
def test_tensors_survive_the_binary_wire(array: np.ndarray) -> None:
    got = decode_answer("http-binary", _response({"a": array, "b": array[:1]}))
    np.testing.assert_array_equal(got["a"], array)
    assert got["a"].dtype == array.dtype
    assert got["b"].shape == array[:1].shape


def test_the_message_says_what_the_protocol_wants() -> None:
    arrays = {"x": np.ones((2, 3), np.float32)}
    head, _, body = http_message(parse_target("http://h:81", "m", "http-binary"), arrays).partition(b"\r\n\r\n")
    fields = dict(line.split(b": ") for line in head.split(b"\r\n")[1:])
    size = int(fields[b"Inference-Header-Content-Length"])
    assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h:81")
    assert int(fields[b"Content-Length"]) == len(body) == size + 24
    table = json.loads(body[:size])
    assert table["parameters"] == {"binary_data_output": True}
    assert table["inputs"][0] == {
        "name": "x",
        "datatype": "FP32",
        "shape": [2, 3],
        "parameters": {"binary_data_size": 24},
    }
    assert json.loads(encode_v1(arrays)) == {"instances": [{"x": [1, 1, 1]}, {"x": [1, 1, 1]}]}


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (_OK + b"Content-Length: 2\r\n\r\nhi", b"hi"),
        (_OK + b"content-length:0\r\n\r\n", b""),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n", b"hi0123456789"),
    ],
)
def test_an_answer_is_read_once_it_is_whole(raw: bytes, body: bytes) -> None:
    for cut in range(len(raw)):
        need = parse_answer(raw[:cut])
        assert isinstance(need, int)
        assert cut < need <= len(raw) + 8
    answer = parse_answer(raw + b"next")
    assert isinstance(answer, Answer)
    assert (answer.body, answer.size) == (body, len(raw))


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n",
        _OK + b"\r\n",
        _OK + b"Content-Length: -1\r\n\r\n",
        _OK + b"Content-Length: 1e9\r\n\r\n",
        _OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n",
        _OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabcd\r\n",
        b"HTTP/1.1 200 " + b"x" * 70_000,
    ],
)
def test_malformed_http_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_answer(raw)


@given(st.binary(max_size=80), st.booleans())
def test_no_bytes_break_the_parser(tail: bytes, chunked: bool) -> None:
    head = b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b""
    for raw in (tail, _OK + head + tail):
        try:
            parse_answer(raw)
        except ValueError:
            continue


_KEYS = st.sampled_from(["outputs", "predictions", "name", "data", "shape", "datatype"])
_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner) | st.dictionaries(_KEYS, inner)
)


@given(st.binary(max_size=60) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_no_body_breaks_the_reader(body: bytes) -> None:
    for protocol in ("http-binary", "http-json", "v1"):
        assert Reader(protocol).http(Answer(200, {}, body, 0)) in (None, "malformed answer")
    assert Reader("v1").http(Answer(503, {}, body, 0)) == "HTTP 503"


@pytest.mark.parametrize(
    ("got", "why"),
    [
        ({"y": [1.0, 2.0005]}, None),
        ({"": [1.0, 2.0]}, None),
        ({"y": [1.0, 2.1]}, "differs from the golden answer by 0.1, allowed 0.001"),
        ({"y": [1.0, float("nan")]}, "differs"),
        ({"y": [1.0]}, "has shape [1]"),
        ({"z": [1.0, 2.0]}, "['y'] are missing"),
    ],
)
def test_golden_answers(got: dict[str, list[float]], why: str | None) -> None:
    found = differs({k: np.array(v) for k, v in got.items()}, {"y": np.array([1.0, 2.0], np.float32)}, 1e-3)
    assert found is None if why is None else why in (found or "")


@pytest.mark.parametrize(
    ("url", "model", "protocol"),
    [
        ("ftp://h:1", "m", "v1"),
        ("http://h:1/path", "m", "v1"),
        ("http://h:99999", "m", "v1"),
        ("http://", "m", "v1"),
        ("http://h:1", "", "v1"),
        ("http://h:1", "a/b", "v1"),
        ("http://h:1", "m\r\nX: y", "v1"),
        ("http://h:1", "m", "v3"),
    ],
)
def test_bad_targets_are_usage_errors(url: str, model: str, protocol: str) -> None:
    with pytest.raises(UsageError):
        parse_target(url, model, protocol)
