"""`make torture`: thousands of damaged inputs and interrupted runs, each of which must end in one clear sentence."""
