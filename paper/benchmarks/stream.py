"""What listening costs: CPU seconds per second of audio, and memory, beside openWakeWord and microWakeWord.

    python -m paper.benchmarks.stream --out results/stream.json [--seconds 30] [--rate 16000]

Noise comes in chunks of 80 ms, as a microphone gives them; a decision falls every 100 ms, of the others every 80 and
30 ms. Each engine runs on one thread of a process of its own, whose memory counts with Python and its libraries; the
best of five passes counts. Where the time goes is from one more pass under a clock around each part. An engine that
cannot be imported is left out.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from kwslib.io import KwsError, cli, write_json

CHUNK = 0.08  # s
ENGINES = {
    "Mamba-Light, carried": ("mamba_light", "carried"),
    "Mamba-Light, windows": ("mamba_light", "windows"),
    "Mamba-MFCC Small, carried": ("mamba_mfcc_small", "carried"),
    "Mamba-Mel Small, carried": ("mamba_mel_small", "carried"),
    "Mamba-Mel Small, windows": ("mamba_mel_small", "windows"),
    "openWakeWord 0.4.0, alexa": ("openwakeword", None),
    "microWakeWord, alexa": ("microwakeword", None),
}


def noise(seconds, rate=16000):
    return np.random.default_rng(0).normal(0, 0.05, int(seconds * rate)).astype(np.float32)


def hearer(engine, mode, rate):
    """(a function of one chunk of float samples, the stream or None). Raises ImportError."""
    if engine == "openwakeword":
        import openwakeword

        model = openwakeword.Model([openwakeword.models["alexa"]["model_path"]])
        return lambda chunk: model.predict((chunk * 32767).astype(np.int16)), None
    if engine == "microwakeword":
        from pymicro_wakeword import MicroWakeWord, MicroWakeWordFeatures, Model

        word, features = MicroWakeWord.from_builtin(Model.ALEXA), MicroWakeWordFeatures()

        def hear(chunk):
            for frame in features.process_streaming((chunk * 32767).astype("<i2").tobytes()):
                word.process_streaming(frame)

        return hear, None
    import torch

    import kwslib

    torch.set_num_threads(1)
    stream = kwslib.load(engine).stream(mode=mode)
    return lambda chunk: stream.feed(chunk, rate), stream


def measure(engine, mode, seconds, rate):
    """CPU seconds per second of audio, peak memory in MB, and the parts' shares, of this process."""
    hear, stream = hearer(engine, mode, rate)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wave, size = noise(seconds, rate), round(CHUNK * rate)
    chunks = [wave[at : at + size] for at in range(0, len(wave), size)]
    for chunk in chunks[: round(3 / CHUNK)]:  # compiles, and fills the first window
        hear(chunk)
    passes = [cpu(lambda: [hear(chunk) for chunk in chunks]) / seconds for _ in range(5)]
    found = {"cpu_s_per_s": min(passes), "passes": passes}
    found |= {"loaded_mb": loaded, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if stream is not None:
        found |= parts(stream, hear, chunks, seconds)
        state = stream.state_dict()
        found["state_kb"] = sum(t.numel() * t.element_size() for t in state.values()) / 1024
    return found


def cpu(work):
    begin = time.process_time()
    work()
    return time.process_time() - begin


def parts(stream, hear, chunks, seconds):
    """CPU seconds per second of audio in features, model and the rest (samples, decisions, Python)."""
    clock = dict.fromkeys(("features", "model", "blocks"), 0.0)

    def timed(owner, name, part):
        call = getattr(owner, name)

        def wrapped(*arguments, **options):
            begin = time.process_time()
            try:
                return call(*arguments, **options)
            finally:
                clock[part] += time.process_time() - begin

        setattr(owner, name, wrapped)

    ear = stream.ear
    if stream.mode == "carried":
        timed(ear, "powers", "features")
        timed(ear, "features", "features")
        for carry in ear.carry:
            timed(carry, "blocks", "blocks")  # a part of the model
        timed(ear, "modelled", "model")
    else:
        timed(ear.spotter.frontend, "forward", "features")
        timed(ear.spotter.frontend, "features", "features")
        timed(ear, "powers_of", "features")
        timed(ear.spotter.model, "forward", "model")
    total = cpu(lambda: [hear(chunk) for chunk in chunks])
    found = {part: value / seconds for part, value in clock.items() if value}
    rest = total / seconds - found["features"] - found["model"]
    return {"parts": found | {"rest": rest}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="file to write, such as results/stream.json")
    parser.add_argument("--seconds", type=float, default=30.0, help="of audio in a pass (default 30)")
    parser.add_argument("--rate", type=int, default=16000, help="of the samples, in Hz (default 16000)")
    parser.add_argument("--engine", choices=ENGINES, help="only this, in this process, as JSON")
    a = parser.parse_args()
    if a.engine:
        print(json.dumps(measure(*ENGINES[a.engine], a.seconds, a.rate)))
        return
    if not a.out:
        raise KwsError("--out is missing; give the file to write")
    found = {}
    for name in ENGINES:
        command = [sys.executable, "-m", "paper.benchmarks.stream", "--engine", name, "--seconds", str(a.seconds)]
        rate = a.rate if "Mamba" in name else 16000  # the others take no other
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, "--rate", str(rate)], capture_output=True, text=True, env=env)
        if done.returncode:
            print(f"{name}: left out ({(done.stderr.strip().splitlines() or ['no message'])[-1]})")
            continue
        found[name] = json.loads(done.stdout.splitlines()[-1])
        e = found[name]
        parts = ", ".join(f"{part} {value:.4f}" for part, value in e.get("parts", {}).items())
        print(f"{name}: {e['cpu_s_per_s']:.4f} CPU s/s, {e['peak_mb']:.0f} MB ({e['loaded_mb']:.0f} loaded); {parts}")
    write_json(a.out, {"seconds": a.seconds, "rate": a.rate, "chunk_s": CHUNK, "engines": found})


if __name__ == "__main__":
    cli(main)
