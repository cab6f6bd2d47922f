"""The honest rival: eager PyTorch behind plain KServe, quiet, on one thread, validating and batching nothing.

python bench/peers/kserve_eager.py BASELINE --http-port 8080 --grpc-port 8081
BASELINE is an artifact folder whose engine is torch_eager.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

from redline import artifact
from redline.errors import UsageError
from redline.runtimes import engines
from redline.tensors import WIRE, Arrays


class Eager(Model):  # type: ignore[misc]
    def __init__(self, found: artifact.Artifact) -> None:
        super().__init__(found.manifest.name)
        self._manifest = found.manifest
        self._engine = engines.load("torch_eager", found.model, {"threads": 1})
        self.ready = True

    async def predict(
        self, payload: InferRequest | dict[str, Any], *_: object, **__: object
    ) -> InferResponse | dict[str, Any]:
        if isinstance(payload, dict):
            rows = payload["instances"]
            arrays = {t.name: np.asarray([r[t.name] for r in rows], t.dtype) for t in self._manifest.inputs}
            answers = self._engine.infer(arrays)
            return {"predictions": [{n: a[i].tolist() for n, a in answers.items()} for i in range(len(rows))]}
        return self._response(payload, self._engine.infer({i.name: i.as_numpy() for i in payload.inputs}))

    def _response(self, request: InferRequest, answers: Arrays) -> InferResponse:
        outputs = []
        for name, array in answers.items():
            output = InferOutput(name, list(array.shape), WIRE[array.dtype.name])
            output.set_data_from_numpy(np.ascontiguousarray(array), binary_data=True)
            outputs.append(output)
        return InferResponse(request.id or "", self.name, outputs, use_binary_outputs=request.use_binary_outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("--http-port", type=int, default=8080)
    parser.add_argument("--grpc-port", type=int, default=8081)
    args = parser.parse_args()
    found = artifact.load(args.baseline)
    if found.manifest.engine != "torch_eager":
        raise SystemExit(str(UsageError(f"{args.baseline}: wanted engine torch_eager, got {found.manifest.engine}")))
    model = Eager(found)
    server = ModelServer(http_port=args.http_port, grpc_port=args.grpc_port, access_log_format=None)
    for name in ("kserve", "kserve.trace", "uvicorn", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    server.start([model])


if __name__ == "__main__":
    main()
