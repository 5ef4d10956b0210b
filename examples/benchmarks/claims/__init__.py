"""The tables of evidence.py, one file each, and what they share: `room` and `contenders`."""
