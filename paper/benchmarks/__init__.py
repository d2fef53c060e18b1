"""What is timed: the scan and its peers, whole models, training, streams, exports, large corpora. Each file is a
command or a part of one; paper/reports draws the tables and figures."""
