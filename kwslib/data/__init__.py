"""From recordings to batches of features.

corpus packs a source (folder: word folders, archives, Speech Commands; recordings: what a manifest names; synthetic:
espeak-ng) into one corpus; survey shows what is in it; tasks selects the clips of a split and numbers their classes;
features and augment turn waves into what a model sees; batches feeds training. audio holds every operation on samples,
fetch the downloads. A new source is one class with the four members that folder.py describes; a committed corpus
depends on each bit of audio, folder and synthetic."""
