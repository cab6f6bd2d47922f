"""A gRPC server that answers with its input, and a measurement of it: `python grpc_echo.py PORT`."""

import asyncio
import sys
import threading

import numpy as np
from grpc import aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from redline.bench.measuring import Load, Subject, measure


class Echo(service_pb2_grpc.GRPCInferenceServiceServicer):
    async def ModelInfer(  # noqa: N802 # the protocol's name
        self, request: service_pb2.ModelInferRequest, _: object
    ) -> service_pb2.ModelInferResponse:
        answer = service_pb2.ModelInferResponse(model_name="m")
        answer.outputs.add(name="y", datatype="FP32", shape=[1, 2])
        answer.raw_output_contents.append(request.raw_input_contents[0])
        return answer


async def serve(port: int, started: threading.Event) -> None:
    server = aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Echo(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    started.set()
    await server.wait_for_termination()


def client(port: int) -> None:
    x = np.ones((1, 2), np.float32)
    for want in (x, x + 1):
        subject = Subject(f"grpc://127.0.0.1:{port}", "m", [{"x": x}], [{"y": want}], 1e-6, "grpc")
        r = measure(subject, rate_rps=100, duration_s=0.5, p99_ms=500, load=Load(warmup_s=0.1), attempts=1)
        print(r.status, r.samples > 20, r.errors, r.why)


if __name__ == "__main__":
    import subprocess

    if len(sys.argv) == 3:
        client(int(sys.argv[1]))
    else:
        started = threading.Event()
        threading.Thread(target=lambda: asyncio.run(serve(int(sys.argv[1]), started)), daemon=True).start()
        started.wait(20)
        subprocess.run([sys.executable, __file__, sys.argv[1], "client"], check=True, timeout=50)
