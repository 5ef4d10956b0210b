"""Listeners on the points of a round: statistics, stall lines, the check of the first step, the start line."""
