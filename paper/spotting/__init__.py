"""Spotting in continuous audio: a detector of commands, and wake words, trained, judged on streams, beside other
engines. Chapters 6 to 8 tell what these commands found."""
