"""The ONNX file of a trained model: made, checked by onnxruntime on clips, and only then given its name."""

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import torch

from kwslib.data.audio import Unreadable, decode, to_float
from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import select
from kwslib.export.graph import ClipGraph, plain, unrolled, window_of
from kwslib.export.stream import StreamGraph, at_once
from kwslib.io import SAMPLE_RATE, KwsError, replacing, write_json
from kwslib.listening.stream import rule, threshold_of
from kwslib.spotter import load

CLOSE = 1e-3  # largest difference of a logit from PyTorch's
BATCH = 16
CALIBRATE = 64  # clips


def export(model, path=None, streaming=False, int8=False, clips=None):
    """Write a trained model as an ONNX file and, beside it, what a program must know of it as JSON -> that, a dict.

    model: a KeywordSpotter, or what `load` takes. path: of the file; None: <name>[-streaming][-int8].onnx here, where
    the name is that of the pretrained model, or of the checkpoint's folder or file.
    streaming: the graph of one chunk, with a state, instead of one window (see StreamGraph, ClipGraph). int8: weights
    and activations of its linear layers and convolutions in 8 bits. clips: what it is checked on, a packed corpus (its
    validation clips) or a folder of recordings; None: noise and tones.

    Raises KwsError, and leaves no file, where a logit of the float graph differs by 1e-3 or an answer differs on any
    clip, and for a model or a wish that has no graph."""
    needed()
    spotter = load(model) if isinstance(model, (str, Path)) else model
    path = Path(path or name_of(model, spotter) + "-streaming" * streaming + "-int8" * int8 + ".onnx")
    waves, targets, source = clips_of(spotter, clips)
    graph = (StreamGraph if streaming else ClipGraph)(spotter).eval()
    card = describe(spotter, graph)
    proto = to_onnx(graph, *((graph.chunk, graph.size) if streaming else (card["samples"],)))
    with replacing(path) as scratch:
        save(proto, card, scratch)
        card["check"] = {"clips": len(waves), "source": source, **check(spotter, graph, scratch, waves)}
        if int8:
            whole_logits = logits_of(session(scratch), graph, waves)
            proto = quantise(graph, scratch, calibration(spotter, clips, waves))
            save(proto, card, scratch)
            card["int8"] = compare(whole_logits, logits_of(session(scratch), graph, waves), targets)
            save(proto, card, scratch)
        card["bytes"] = scratch.stat().st_size
        write_json(path.with_suffix(".json"), card)
    return card | {"path": str(path)}


def name_of(model, spotter):
    """The pretrained model's name, or that of the checkpoint's folder or file; the card's where there is no path."""
    if not isinstance(model, (str, Path)):
        return spotter.card["model"]
    path = Path(model).resolve()
    return (path.parent if path.name == "model.safetensors" else path).name.removesuffix(".safetensors")


def needed():
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise KwsError(f"export needs the package {e.name}; install kwslib[export]") from None


def clips_of(spotter, source):
    """(waves float32 (n, window), targets (n,) or None, what they are) from a packed corpus, a folder or nothing."""
    window = window_of(spotter)
    if source is None:
        g = torch.Generator().manual_seed(0)
        t, loud = torch.arange(window) / SAMPLE_RATE, torch.logspace(-3, -0.5, 16)[:, None]
        pitch = torch.logspace(2, 3.5, 16)[:, None] * (1 + 0.3 * torch.sin(9 * t))
        tones = torch.sin(2 * torch.pi * (pitch / SAMPLE_RATE).cumsum(1))
        return loud * (tones + 0.1 * torch.randn(16, window, generator=g)), None, "tones in noise"
    source = Path(source)
    if (source / "card.json").is_file():
        recipe = spotter.card.get("recipe", {})
        split = select(load_corpus(source), recipe.get("task", "all"), "validation", recipe.get("seed", 0))
        if split.labels != spotter.labels:
            raise KwsError(
                f"corpus {source} holds {', '.join(split.labels)}, not the model's labels; give another --clips"
            )
        return fit(to_float(split.waves), window), split.targets.numpy(), "validation clips"
    files = sorted(f for f in source.rglob("*") if f.suffix.lower() in (".wav", ".flac", ".ogg", ".opus", ".mp3"))
    if not files:
        raise KwsError(f"--clips {source} does not exist, or is no corpus and holds no recordings; give another")
    try:
        waves = [fit(torch.from_numpy(decode(str(f), window / SAMPLE_RATE))[None], window) for f in files]
    except Unreadable as e:
        raise KwsError(f"--clips {source} has a file that cannot be read ({e}); take it out") from None
    return torch.cat(waves), None, "recordings"


def fit(waves, window):
    """(n, N) cut, or padded with zeros, to (n, window)."""
    return torch.nn.functional.pad(waves, (0, window - waves.shape[1]))


def describe(spotter, graph):
    """What a program must know of the graph to use it: names, sizes in samples at 16 kHz, labels, and when a word is
    heard (see kwslib.listening.stream): `threshold` is a log-odds, or one for each label."""
    how = rule(spotter.card, "carried" if isinstance(graph, StreamGraph) else "windows")
    how |= {"threshold": threshold_of(how, None)}
    card = {"model": spotter.card["model"], "labels": spotter.labels, "sample_rate": SAMPLE_RATE}
    card |= {"detector": "detector" in spotter.card, "inputs": graph.inputs, "outputs": graph.outputs}
    card |= {key: how[key] for key in ("window_s", "hop_s", "smooth", "threshold", "refractory_s")}
    if isinstance(graph, StreamGraph):
        return card | {"streaming": True, "samples": graph.chunk, "state": graph.size, "frames": graph.frames}
    return card | {"streaming": False, "samples": window_of(spotter)}


def to_onnx(graph, *sizes):
    """The ModelProto of a graph whose inputs have these sizes, (any number, size) each. Raises KwsError."""
    example = tuple(torch.zeros(2, size) for size in sizes)
    shapes = tuple({0: torch.export.Dim("batch")} for _ in sizes)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with plain(graph), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)
            names = {"input_names": list(graph.inputs), "output_names": list(graph.outputs)}
            proto = torch.onnx.export(program, **names, dynamo=True, verbose=False).model_proto
        except Exception as e:  # of many kinds, each of one exporter's step
            reason = str(e).strip().split("\n")[0]
            raise KwsError(f"{type(graph.model).__name__} cannot be exported to ONNX: {reason}") from e
    return whole(proto)


def whole(proto):
    """The graph with the meaning of its recurrences, and without the exporter's notes, a third of the file."""
    from onnx import helper

    opset = next(o.version for o in proto.opset_import if not o.domain)
    names = sorted({node.op_type for node in proto.graph.node if node.domain == "kwslib"})
    proto.functions.extend(unrolled(name, opset) for name in names)
    if names and all(o.domain != "kwslib" for o in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid("kwslib", 1))
    del proto.graph.value_info[:], proto.metadata_props[:], proto.graph.metadata_props[:]
    for part in [*proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output]:
        del part.metadata_props[:]
        part.doc_string = ""
    return proto


def save(proto, card, path):
    """Write a ModelProto, with the card as its property "kwslib"."""
    del proto.metadata_props[:]
    proto.metadata_props.add(key="kwslib", value=json.dumps(card))
    path.write_bytes(proto.SerializeToString())


def session(path, threads=1):
    """An onnxruntime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_stream(runs, graph, waves):
    """Logits (B, chunks, labels) of waves (B, N), a whole number of chunks, from a streaming session."""
    state, found = np.zeros((len(waves), graph.size), np.float32), []
    for chunk in waves.split(graph.chunk, 1):
        logits, _, state = runs.run(None, {"chunk": chunk.numpy(), "state": state})
        found.append(logits)
    return np.stack(found, 1)


def ends(graph, chunks):
    """The frame of the blocks with which each chunk ends; below 0 where that lies before the stream."""
    return graph.first + graph.frames * np.arange(1, chunks + 1) - 1


def until_heard(graph, waves):
    """Windows (B, N) with zeros after them, until a streaming graph has heard the whole of them."""
    chunks = -(-waves.shape[1] // graph.chunk) - graph.first // graph.frames
    return fit(waves, chunks * graph.chunk)


def logits_of(runs, graph, waves):
    """A session's logits (n, labels) of windows (n, N); a streaming one's when it has heard a whole window."""
    if isinstance(graph, StreamGraph):
        return np.concatenate([run_stream(runs, graph, until_heard(graph, w))[:, -1] for w in waves.split(BATCH)])
    return np.concatenate([runs.run(["logits"], {"wave": w.numpy()})[0] for w in waves.split(BATCH)])


def check(spotter, graph, path, waves):
    """{"largest_difference": of a logit from PyTorch's, on any clip}; streaming: after any chunk of it. Raises KwsError
    where it is 1e-3 or more, or an answer differs."""
    runs, furthest, other = session(path), 0.0, 0
    for part in waves.split(BATCH):
        if isinstance(graph, StreamGraph):
            part = until_heard(graph, part)
            found = run_stream(runs, graph, part)
            rows = ends(graph, found.shape[1])
            found, right = found[:, rows >= 0], at_once(spotter, part)[:, rows[rows >= 0]].numpy()
        else:
            found, right = logits_of(runs, graph, part), spotter.logits(part).numpy()
        furthest = max(furthest, float(np.abs(found - right).max()))
        other += int((found.argmax(-1) != right.argmax(-1)).sum())
    if not furthest < CLOSE or other:
        told = f"differ by up to {furthest:.2g} from PyTorch's, and {other} answers do"
        raise KwsError(f"the logits of {spotter.card['model']} in onnxruntime {told}; nothing was written")
    return {"largest_difference": furthest}


def calibration(spotter, source, waves):
    """Windows (n, N), whose activations set the ranges of 8 bits: training clips of a corpus, else those at hand."""
    if source is None or not (Path(source) / "card.json").is_file():
        return waves[:CALIBRATE]
    corpus = load_corpus(source)
    rows = np.flatnonzero((corpus.splits == "training") & np.isin(corpus.words, spotter.labels))
    rows = rows[:: max(1, len(rows) // CALIBRATE)][:CALIBRATE]
    return fit(to_float(torch.from_numpy(corpus.waves[rows])), waves.shape[1]) if len(rows) else waves[:CALIBRATE]


class Feeds:
    """What onnxruntime calibrates on: the inputs of a graph, one window or one chunk after the other."""

    def __init__(self, runs, graph, waves):
        self.feeds = self._chunks(runs, graph, waves) if isinstance(graph, StreamGraph) else self._windows(waves)

    @staticmethod
    def _windows(waves):
        return ({"wave": wave[None].numpy()} for wave in waves)

    @staticmethod
    def _chunks(runs, graph, waves):
        state = np.zeros((1, graph.size), np.float32)
        for chunk in waves.flatten()[: 8 * SAMPLE_RATE].split(graph.chunk)[:-1]:
            feed = {"chunk": chunk[None].numpy(), "state": state}
            yield feed
            state = runs.run(["next_state"], feed)[0]

    def get_next(self):
        return next(self.feeds, None)


def quantise(graph, path, waves):
    """The ModelProto in 8 bits: convolutions with the ranges of `waves`, linear layers with those of each input. The
    spectrum and what has no weights stay float."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    proto = onnx.load(path)
    weights = {i.name for i in proto.graph.initializer}
    fixed = {name for name in weights if name.startswith(("spectrum.", "front"))}
    nodes = [n.name for n in proto.graph.node if fixed & set(n.input) or not weights & set(n.input)]
    options = {"nodes_to_exclude": nodes, "per_channel": True, "weight_type": QuantType.QInt8}
    # unsigned activations: onnxruntime has no kernel on x86 for signed ones, and then convolves in float
    fixed_ranges = options | {"activation_type": QuantType.QUInt8, "op_types_to_quantize": ["Conv"]}
    logging.disable(logging.WARNING)  # both advise a step that the exporter has done
    try:
        if any(n.op_type == "Conv" for n in proto.graph.node):
            quantize_static(path, path, Feeds(session(path), graph, waves), **fixed_ranges)
        quantize_dynamic(path, path, op_types_to_quantize=["MatMul", "Gemm"], **options)
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(path)


def compare(whole, small, targets):
    """What 8 bits cost: the largest difference of a logit, how often the answer stays, and both accuracies."""
    same = float((whole.argmax(1) == small.argmax(1)).mean())
    found = {"clips": len(whole), "largest_difference": float(np.abs(whole - small).max()), "same_answers": same}
    if targets is not None:
        kinds = (("accuracy", small), ("accuracy_float", whole))
        found |= {key: float((logits.argmax(1) == targets).mean()) for key, logits in kinds}
    return found
