"""Train a spotter on words of your own: a folder with one folder of recordings for each word.

    python examples/train_own_words.py "my recordings" checkpoints/mine

Any format that libsndfile reads, any rate; a recording longer than a second is cut to its loudest second. File names
such as anna_nohash_0.wav tell the speaker, so that no speaker is both trained and tested on.
"""

import sys

import kwslib
from kwslib.training import train


def main(recordings, out, epochs=30):
    corpus = kwslib.pack(recordings, f"{out}-corpus")
    print({split: f"{clips} clips" for split, clips in corpus.card["clips"].items()})
    config = kwslib.load_config(
        "mamba_light",
        init="mamba_light",
        corpus=corpus.root,
        out=out,
        epochs=epochs,
        batch_size=16,
        background_snr=None,
    )
    card = train(config)
    print(f"best on validation: {card['validation']['accuracy']:.1%}, epoch {card['validation']['epoch']}")
    return kwslib.load(out)


if __name__ == "__main__":  # packing starts worker processes, which import this file
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))
