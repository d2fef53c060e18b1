"""Words in continuous audio. Data flows from top to bottom.

windows.py     a recording of any kind, in windows; how a detector scores them
ears.py        the two ways to listen: by windows, and with a carried state
frames.py      all Mamba blocks of one frame as one compiled call
stream.py      samples in chunks of any length and rate come in, events come out
microphone.py  what `kws listen` hears and shows

It reads models and features, and knows nothing of training."""
