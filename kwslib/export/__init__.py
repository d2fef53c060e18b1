"""A trained model as a file for other runtimes: `kws export MODEL --to onnx`.

    graph.py      the model in plain operations, wave to probabilities
    stream.py     the same for one chunk of a stream, with a state
    write.py      the ONNX file: written, checked by onnxruntime on clips, and only then given its name

Needs the extra `export`: onnx, onnxruntime and onnxscript."""

from kwslib.export.write import export

__all__ = ["export"]
