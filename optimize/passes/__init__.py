"""One pass a file: a frozen config whose type picks the function that applies it."""

from redline.optimize.passes.export_onnx import ExportOnnx
from redline.optimize.passes.merge_embeddings import MergeEmbeddings
from redline.optimize.passes.quantize_dynamic import QuantizeDynamic
from redline.optimize.passes.quantize_static import QuantizeStatic
from redline.optimize.passes.registry import Pass, apply, retrains, writes

__all__ = ["ExportOnnx", "MergeEmbeddings", "Pass", "QuantizeDynamic", "QuantizeStatic", "apply", "retrains", "writes"]
