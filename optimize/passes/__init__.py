"""One pass a file: a frozen config whose type picks the function that applies it."""

from redline.optimize.passes.export_onnx import ExportOnnx
from redline.optimize.passes.fuse_kernels import FuseKernels
from redline.optimize.passes.merge_embeddings import MergeEmbeddings
from redline.optimize.passes.prune import Prune
from redline.optimize.passes.qat import Qat
from redline.optimize.passes.quantize_dynamic import QuantizeDynamic
from redline.optimize.passes.quantize_static import QuantizeStatic
from redline.optimize.passes.registry import Pass, apply, retrains, writes
from redline.optimize.passes.tensorrt import TensorRT

__all__ = [
    "ExportOnnx",
    "FuseKernels",
    "MergeEmbeddings",
    "Pass",
    "Prune",
    "Qat",
    "QuantizeDynamic",
    "QuantizeStatic",
    "TensorRT",
    "apply",
    "retrains",
    "writes",
]
