"""The command line: `kws pack | data | train | test | predict | listen | wake | export | bench`, most also as modules:
`python -m kwslib.train`."""

import argparse
import difflib
import itertools
import json
import math
import os
import statistics
import sys
import timeit
from functools import partial
from typing import Literal, get_args, get_origin

from kwslib.io import CLIP, KwsError, cli

SHOWN = 3  # skipped files


def parser_of(name, description, **options):
    return argparse.ArgumentParser(f"kws {name}", description=description, allow_abbrev=False, **options)


def model_parser(name, description, **positional):
    """A parser of what `test`, `predict`, `listen` and `bench` share."""
    parser = parser_of(name, description)
    where = "checkpoint file, the folder that holds model.safetensors, or a pretrained name such as mamba_light"
    parser.add_argument("checkpoint", help=where, **positional)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default cpu)")
    return parser


SOURCES = """sources:
  synthetic        words that espeak-ng speaks
  speech_commands  Speech Commands v0.02, downloaded to the folder that OUT is in
  folder, zip, tar one folder a word, WORD/CLIP; or SPLIT/WORD/CLIP, where the splits are called train or training;
                   validation, valid, val or dev; test or testing. A folder _background_noise_ holds noise
  manifest         a table, .csv or .jsonl, also gzipped (.gz), with a header or keys of these:
                     path     of a recording, from the manifest's folder
                     word     empty or no column: the folder that holds the recording
                     speaker  empty: as --speaker-from says
                     split    training, validation or testing; empty: drawn from the speaker
                     start    seconds; cuts a word out of a long recording, the second around the middle of
                     end      start and end (empty: start + 1), the loudest second of a longer word

splits: of 100 speakers about 80 train, 10 validate and 10 test, by a hash of the name, unless split folders, a
manifest, or validation_list.txt and testing_list.txt (one WORD/CLIP a line) say otherwise.

speakers: --speaker-from prefix takes a file's name up to the first _ or - (anna_01.wav); parent the folder that holds
it (WORD/SPEAKER/CLIP); a regular expression what its first group finds in the path, as in 's[0-9]+' or '/([^/]+)_take'.
Without it, the name up to _nohash_, or else the whole name."""


def pack(argv=None):
    """Pack recordings, or synthetic speech, into a corpus."""
    from kwslib.data import corpus

    parser = parser_of("pack", pack.__doc__, epilog=SOURCES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="synthetic, speech_commands, a folder, zip or tar, or a manifest; see below")
    parser.add_argument("out", help="folder of the packed corpus")
    parser.add_argument("--words", type=lambda text: text.split(","), help="only these, with commas between")
    parser.add_argument("--only", metavar="MANIFEST", help="take the paths that this manifest names, in its splits")
    rule = "parent, prefix or a regular expression: how a path says who speaks"
    parser.add_argument("--speaker-from", metavar="RULE", help=rule)
    parser.add_argument("--strict", action="store_true", help="refuse unreadable clips instead of skipping them")
    parser.add_argument("--workers", type=int, help="processes (default: one for each core)")
    parser.add_argument("--seed", type=int, default=0, help="of synthetic speech (default 0)")
    parser.add_argument("--speakers", type=int, nargs=3, metavar="N", help="synthetic: how many for each split")
    parser.add_argument("--snr", type=float, nargs=2, metavar="DB", help="synthetic: range of the SNR")
    arguments = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    card = corpus.pack(**arguments).card
    print(f"{card['name']}, licence: {card['licence']}")
    for split in corpus.SPLITS:
        print(f"  {split:10} {card['clips'][split]:6} clips, {card['speakers'][split]} speakers")
    print(
        f"  {len(card['words'])} words; {card['noise_seconds']} s of noise; {card['short']} clips short, "
        f"{card['clipped']} clipped, {card['silent']} silent; {len(card['skipped'])} files skipped"
    )
    for skipped in card["skipped"][:SHOWN]:
        print(f"  skipped {skipped['path']}: {skipped['reason']}")
    if len(card["skipped"]) > SHOWN:
        print(f"  ... all of them are in {arguments['out']}/card.json")


def data(argv=None):
    """Show a packed corpus: counts, lengths, levels, and the clips that deserve a listen."""
    from kwslib.data import survey
    from kwslib.data.corpus import load_corpus
    from kwslib.io import write_csv

    parser = parser_of("data", data.__doc__)
    parser.add_argument("corpus", help="folder of the packed corpus")
    parser.add_argument("--figure", metavar="FILE", help="draw it, too (png, pdf or svg; needs kwslib[figures])")
    parser.add_argument("--list", metavar="FILE", help="write all suspicious clips to this CSV file")
    a = parser.parse_args(argv)
    corpus = load_corpus(a.corpus)
    found = survey.survey(corpus)
    if a.figure:
        survey.draw(corpus, found, a.figure)
    print(*survey.report(corpus, found), sep="\n")
    if a.list:
        write_csv(a.list, found["suspects"], survey.COLUMNS)


def train_parser():
    """The parser of `kws train`: every key of Config is an option, with its meaning and default."""
    from kwslib.training.config import Config

    epilog = "A value is YAML: null, 5e-4, [0, 30]. A list may lack its brackets: --task yes no _unknown_."
    parser = parser_of("train", train.__doc__, epilog=epilog, usage="kws train [--config RECIPE] [--KEY VALUE] …")
    parser.add_argument("--config", metavar="RECIPE", help="a file, or the name of a recipe that comes with kwslib")
    keys = parser.add_argument_group("keys of the recipe")
    for key, field in Config.model_fields.items():
        kind, default = field.annotation, field.default
        default = default if isinstance(default, str) else json.dumps(default)  # JSON is YAML
        choices = f"{', '.join(get_args(kind))}: " if get_origin(kind) is Literal else ""
        text = f"{choices}{field.description} (default: {default})".replace("%", "%%")
        count = "+" if "list" in str(kind) else None
        keys.add_argument(f"--{key.replace('_', '-')}", help=text, metavar="VALUE", nargs=count)
    return parser


def train(argv=None):
    """Train a model. A run that was stopped continues when the same command is given again."""
    from kwslib.training import train as run
    from kwslib.training.config import load_config, parse_yaml
    from kwslib.training.device import leave

    parser = train_parser()
    argv = sys.argv[1:] if argv is None else argv
    parts = [(a.partition("=") if a.startswith("--") else ("", "", a)) for a in argv]
    given, unknown = parser.parse_known_args([name.replace("_", "-") + equals + value for name, equals, value in parts])
    if unknown:
        close = difflib.get_close_matches(unknown[0], [o for a in parser._actions for o in a.option_strings], 1)
        hint = f"did you mean {close[0]}?" if close else "kws train --help lists all"
        raise KwsError(f"{unknown[0]!r} is not an option; {hint}")
    values = {k: v for k, v in vars(given).items() if v is not None}
    name = values.pop("config", None)
    for key, value in values.items():
        found = list(map(parse_yaml, [value] if isinstance(value, str) else value))
        values[key] = found[0] if len(found) == 1 else found
    config = load_config(name, **values)
    if config.horizon > 1 and "horizon" not in values and config.epochs != load_config(name).epochs:
        raise KwsError(
            f"the recipe's horizon is {config.horizon:g}: its rate falls over {config.horizon:g} runs and is cut off; "
            f"with --epochs of your own add --horizon 1 to let it fall, or --horizon {config.horizon:g} to cut it off"
        )
    run(config)
    leave()


def test(argv=None):
    """Read the test split, once, with a finished checkpoint, and write the result files."""
    from kwslib.evaluation import evaluate

    parser = model_parser("test", test.__doc__)
    parser.add_argument("--corpus", required=True, help="folder of the packed corpus")
    parser.add_argument("--out", required=True, help="results folder, such as results/subset")
    a = parser.parse_args(argv)
    result = evaluate(a.checkpoint, a.corpus, a.out, device=a.device)
    t, (low, high) = result["test"], result["test"]["interval"]
    found = f"test accuracy {t['accuracy']:.2%}, 95 % interval {low:.2%} to {high:.2%}"
    print(f"{result['model']}: {found}, n = {t['n']} clips of {t['speakers']} speakers")


def predict(argv=None):
    """Name the keyword in recordings."""
    from kwslib.spotter import load

    parser = model_parser("predict", predict.__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="wav, flac, ogg or mp3, at any rate, of any length")
    parser.add_argument("--top", type=int, default=3, help="how many labels to print (default 3)")
    a = parser.parse_args(argv)
    spotter = load(a.checkpoint, a.device)
    for file in a.files:
        print(f"{file}: " + "  ".join(f"{label} {p:.1%}" for label, p in spotter.predict(file)[: a.top]))


def listen(argv=None):
    """Hear words in a microphone or a file, as they come."""
    from kwslib.listening.ears import EARS
    from kwslib.listening.microphone import file_chunks, microphone
    from kwslib.listening.microphone import listen as run
    from kwslib.machine import pick_device, threads
    from kwslib.spotter import load

    parser = model_parser("listen", listen.__doc__, nargs="?", default="mamba_light")
    source, limit = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    source.add_argument("--wav", metavar="FILE", help="a sound file instead of the microphone")
    source.add_argument("--microphone", metavar="NAME", help="an input by sounddevice's name or number")
    rate = "false alarms an hour that the card has thresholds for: of each wake word, or of all commands together"
    limit.add_argument("--rate", type=float, metavar="R", help=rate)
    limit.add_argument("--threshold", type=number, help="log-odds at which a word is heard, instead of the card's")
    parser.add_argument("--mode", choices=EARS, help="hear every window anew, or every frame once (see docs)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line: word, time in s, score")
    a = parser.parse_args(argv)
    numbered = a.microphone and a.microphone.isdecimal()
    with threads(1):  # of operators so small, more threads only wait
        spotter = load(a.checkpoint, pick_device(a.device))
        stream = spotter.stream(mode=a.mode, threshold=a.threshold, alarms_per_hour=a.rate)
        chunks = file_chunks(a.wav) if a.wav else microphone(int(a.microphone) if numbered else a.microphone)
        try:
            run(stream, chunks if a.json else announced(stream, chunks), a.json)
        except BrokenPipeError:  # whoever read the events, such as head, has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def number(text):
    """A float of the command line that is neither infinite nor nan."""
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def announced(stream, chunks):
    """The chunks; with the first, a line says what is listened for."""
    first = next(chunks, None)
    limits = " to ".join(f"{t:.1f}" for t in sorted({min(stream.thresholds), max(stream.thresholds)}))
    words = ", ".join(stream.spotter.labels)
    print(f"listening for {words}: an event is a log-odds of {limits} or more", file=sys.stderr)
    yield from [] if first is None else itertools.chain([first], chunks)


def bench(argv=None):
    """Time a model from wave to logits: milliseconds of a batch of one-second clips, and clips a second."""
    import torch

    from kwslib.machine import threads
    from kwslib.spotter import load

    parser = model_parser("bench", bench.__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64], help="clips in a batch (default 1 8 64)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()], help="default: 1, all")
    argv = sys.argv[1:] if argv is None else argv
    a = parser.parse_args([x for x in argv if x != "--model-path"])  # the checkpoint was an option once
    spotter = load(a.checkpoint, a.device)
    for count, size in itertools.product(dict.fromkeys(a.threads), a.batch):
        timer = timeit.Timer(partial(lambda waves: spotter.logits(waves).cpu(), torch.randn(size, CLIP) * 0.1))
        with threads(count):
            number, _ = timer.autorange()  # enough for a fifth of a second
            low, middle, high = (t / number for t in statistics.quantiles(timer.repeat(7, number)))
        times = f"{1000 * middle:9.2f} ms (quartiles {1000 * low:.2f}, {1000 * high:.2f})"
        print(f"threads {count}, batch {size:3}: {times}  {size / middle:9,.0f} clips/s")


def wake(argv=None):
    """Train a detector of your own wake words, from their text alone or with your recordings."""
    from kwslib.wake import train as run

    parser = parser_of("wake", wake.__doc__)
    parser.add_argument("phrases", nargs="+", metavar="PHRASE", help="what to listen for, such as 'hey computer'")
    parser.add_argument("--out", required=True, help="folder of the detector")
    takes = "your own recordings, in FOLDER/PHRASE/ (for one phrase, FOLDER itself will do); may be repeated"
    parser.add_argument("--recordings", action="append", default=[], metavar="FOLDER", help=takes)
    negatives = "speech without the phrases: a folder, zip or packed corpus; may be repeated"
    parser.add_argument(
        "--negatives", action="append", default=[], dest="negative_paths", metavar="PATH", help=negatives
    )
    rate = "a rate of false alarms, per hour, that gets a threshold beside those for 0.5, 1 and 2"
    parser.add_argument("--alarms-per-hour", type=float, default=1.0, metavar="RATE", help=rate)
    parser.add_argument("--steps", type=int, default=600, help="of each of two models, 64 windows each (default 600)")
    parser.add_argument("--clips", type=int, default=450, help="synthetic clips of each phrase (default 450)")
    parser.add_argument("--seed", type=int, default=0, help="of all random draws (default 0)")
    a = vars(parser.parse_args(argv))
    card = run(**a)
    for rate, found in card["detector"]["thresholds"].items():
        how = "" if float(rate) * card["validation"]["hours"] >= 1 else " (extrapolated)"
        print(f"threshold for {rate} false alarms an hour{how}: " + ", ".join(f"{p} {t:.2f}" for p, t in found.items()))
    print(f"{a['out']} holds the detector, its card and its curve")


def export(argv=None):
    """Write a trained model as an ONNX file, checked by onnxruntime before it has its name."""
    from kwslib.export import export as write

    parser = model_parser("export", export.__doc__)
    parser.add_argument("--to", choices=["onnx"], default="onnx", help="kind of file (default onnx)")
    parser.add_argument("--out", help="file to write (default: the model's name, here)")
    parser.add_argument("--streaming", action="store_true", help="the graph of a stream's next chunk, with a state")
    parser.add_argument("--int8", action="store_true", help="weights and activations in 8 bits")
    parser.add_argument("--clips", help="packed corpus or folder of recordings that the file is checked on")
    a = parser.parse_args(argv)
    card = write(a.checkpoint, a.out, a.streaming, a.int8, a.clips)
    print(f"{card['path']}: {card['bytes']:,} bytes; {card['samples']} samples in, {len(card['labels'])} labels out")
    check = "checked on {clips} clips ({source}): largest difference of a logit {largest_difference:.1g}"
    print(check.format(**card["check"]))
    if a.int8:
        print("int8: " + ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in card["int8"].items()))


COMMANDS = {
    "pack": pack,
    "data": data,
    "train": train,
    "test": test,
    "predict": predict,
    "listen": listen,
    "wake": wake,
    "export": export,
    "bench": bench,
}


def command(argv):
    """Run `kws argv…`."""
    listed = "\n".join(f"  {name:8} {run.__doc__}" for name, run in COMMANDS.items())
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: kws COMMAND …\n\nKeyword spotting with Mamba.\n\n{listed}\n\nkws COMMAND --help says more.")
        return 0
    if argv[0] not in COMMANDS:
        raise KwsError(f"{argv[0]!r} is not a command of kws; choose one of {', '.join(COMMANDS)}")
    return COMMANDS[argv[0]](argv[1:])


def main():
    cli(lambda: command(sys.argv[1:]))
