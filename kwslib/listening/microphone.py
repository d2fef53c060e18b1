"""What `kws listen` hears and shows: a microphone or a file in chunks, a live line, events."""

import json
import queue
import sys

import numpy as np

from kwslib.io import SAMPLE_RATE, KwsError
from kwslib.listening.windows import recording

CHUNK = 0.08  # s


def microphone(device=None):
    """(samples float32 (n,), rate), chunk by chunk, of an input that sounddevice knows; None: the default one."""
    try:
        import sounddevice
    except ImportError:
        raise KwsError("listening needs sounddevice; pip install 'kwslib[listen]', or give --wav FILE") from None
    except OSError as e:  # there is no PortAudio
        raise KwsError(f"sounddevice cannot start ({e}); install PortAudio, or give --wav FILE") from None
    heard = queue.Queue()
    try:
        rate = int(sounddevice.query_devices(device, "input")["default_samplerate"])
        options = dict(samplerate=rate, device=device, channels=1, dtype="float32", blocksize=round(CHUNK * rate))
        with sounddevice.InputStream(callback=lambda block, *_: heard.put(block[:, 0].copy()), **options):
            while True:
                yield heard.get(), rate
    except (sounddevice.PortAudioError, ValueError) as e:
        raise KwsError(f"no microphone can be opened ({e}); name one with --microphone, or give --wav FILE") from None


def file_chunks(path):
    """(samples, rate) of a sound file, chunk by chunk."""
    size = round(CHUNK * SAMPLE_RATE)
    for block in recording(path, None):
        for at in range(0, len(block), size):
            yield block[at : at + size], SAMPLE_RATE


def listen(stream, chunks, as_json=False):
    """Feed the chunks to the stream and print every event, with its time in s, as it comes.

    On a terminal, a line below shows the level in dB of full scale and the three most likely words."""
    live = sys.stderr.isatty() and not as_json
    for events in heard(stream, chunks, live):
        if live and events:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        for event in events:
            text = json.dumps(event._asdict()) if as_json else f"{event.time:9.2f} s  {event.word}  {event.score:.1f}"
            print(text, flush=True)
    if live:
        print(file=sys.stderr)


def heard(stream, chunks, live):
    """The events of each chunk, then of the end; Ctrl-C is an end."""
    try:
        for samples, rate in chunks:
            yield stream.feed(samples, rate)
            if live and len(stream.scores):
                print("\r\x1b[K" + line(stream, samples), end="", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        pass
    yield stream.finish()


def line(stream, samples):
    """The live line: time, level, and the scores of the most likely words."""
    level = 10 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-10)
    scores = stream.scores[-1]
    best = "  ".join(f"{stream.spotter.labels[i]} {scores[i]:+.1f}" for i in np.argsort(-scores)[:3])
    return f"{stream.times[-1]:9.1f} s  {level:6.1f} dB {'#' * int(max(0, level + 60) / 3):20}  {best}"[:118]
