# ruff: noqa: N802 (protobuf messages have no types, and gRPC names the methods)
"""gRPC: KServe's servicer for what it does well, our own where it converts tensors to lists or loses the reason."""

import asyncio
import logging
from typing import Any, NoReturn

import grpc
import numpy as np
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from redline.errors import RedlineError, RequestError, UsageError
from redline.runtimes import codec
from redline.runtimes.predictor import NotReadyError, OverloadedError, Predictor
from redline.tensors import WIRE, Arrays

log = logging.getLogger("redline.serve")
_CONTENTS = {
    "bool": "bool_contents",
    "int8": "int_contents",
    "uint8": "uint_contents",
    "int32": "int_contents",
    "int64": "int64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
}
Context = grpc.aio.ServicerContext[Any, Any]


class Servicer(InferenceServicer):  # type: ignore[misc]
    def __init__(self, predictor: Predictor, dataplane: DataPlane, repository: ModelRepositoryExtension) -> None:
        super().__init__(dataplane, repository)
        self._predictor = predictor

    async def ServerReady(self, request: Any, context: Context) -> Any:
        return pb.ServerReadyResponse(ready=self._predictor.unready is None)

    async def ModelReady(self, request: Any, context: Context) -> Any:
        await self._know(request.name, context)
        return pb.ModelReadyResponse(ready=self._predictor.unready is None)

    async def ModelMetadata(self, request: Any, context: Context) -> Any:
        await self._know(request.name, context)
        return await super().ModelMetadata(request, context)

    async def RepositoryModelLoad(self, request: Any, context: Context) -> NoReturn:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "an artifact is served as it is: load is closed")

    async def RepositoryModelUnload(self, request: Any, context: Context) -> NoReturn:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "an artifact is served as it is: unload is closed")

    async def ModelInfer(self, request: Any, context: Context) -> Any:
        await self._know(request.model_name, context)
        try:
            self._predictor.check_open()
            call = decode(request, self._predictor)
            answers = await self._predictor.infer(call.arrays)
            return encode(self._predictor, call, answers, bool(request.raw_input_contents))
        except RequestError as e:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        except NotReadyError as e:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(e))
        except OverloadedError as e:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(e))
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as e:
            log.exception("gRPC ModelInfer")
            await context.abort(grpc.StatusCode.INTERNAL, str(e) if isinstance(e, RedlineError) else "internal error")

    async def _know(self, name: str, context: Context) -> None:
        if name != self._predictor.name:
            text = f"unknown model {name!r}; this server has {self._predictor.name!r}"
            await context.abort(grpc.StatusCode.NOT_FOUND, text)


def decode(request: Any, predictor: Predictor) -> codec.Call:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise RequestError(f"{len(request.inputs)} inputs, but {len(raw)} raw_input_contents")
    specs = {spec.name: spec for spec in predictor.inputs}
    arrays: Arrays = {}
    for i, entry in enumerate(request.inputs):
        spec = specs.get(entry.name)
        if spec is None or spec.name in arrays:
            raise RequestError(f"input {entry.name!r} is unknown or given twice; wanted {sorted(specs)}")
        shape = codec.shape_of({"datatype": entry.datatype, "shape": list(entry.shape)}, spec)
        if raw:
            arrays[spec.name] = codec.from_buffer(raw[i], shape, spec)
        elif spec.dtype not in _CONTENTS:
            raise RequestError(f"input {spec.name!r}: {entry.datatype} travels in raw_input_contents only")
        else:
            values = getattr(entry.contents, _CONTENTS[spec.dtype])
            arrays[spec.name] = codec.from_values(list(values), shape, spec)
    wanted = {output.name: True for output in request.outputs}
    return codec.Call(arrays, codec.choose_outputs(wanted, predictor.outputs, True), request.id)


def encode(predictor: Predictor, call: codec.Call, answers: Arrays, raw: bool) -> Any:
    """Raw where the request was raw, or where a type (FP16) has no other form."""
    response = pb.ModelInferResponse(model_name=predictor.name, id=call.id)
    raw = raw or any(answers[name].dtype.name not in _CONTENTS for name in call.outputs)
    for name in call.outputs:
        array = answers[name]
        output = response.outputs.add(name=name, datatype=WIRE[array.dtype.name], shape=array.shape)
        if raw:
            response.raw_output_contents.append(np.ascontiguousarray(array).tobytes())
        else:
            getattr(output.contents, _CONTENTS[array.dtype.name]).extend(array.ravel().tolist())
    return response


async def start(servicer: Servicer, address: str, max_body: int) -> tuple[grpc.aio.Server, int]:
    """A listening server and its port."""
    limits = [("grpc.max_receive_message_length", max_body), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=[*limits, ("grpc.so_reuseport", 0)])
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as e:
        raise UsageError(f"can't listen on {address} for gRPC; name another port (0: any free one)") from e
    await server.start()
    return server, port
