"""This process in its job: which rank it is, who has started it, which of the ranks train, and how it ends."""
