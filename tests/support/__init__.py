"""What tests share: the oracle, small trainings, and ranks of one process."""
