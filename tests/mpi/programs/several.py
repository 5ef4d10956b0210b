"""Runs programs one after the other on the same ranks: python several.py PROGRAM [its arguments] -- PROGRAM ...

Words NAME=VALUE before a program are environment variables for it alone. Each rank prints "=== NUMBER" before each.
"""

import os
import runpy
import sys
from itertools import groupby
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = [list(words) for between, words in groupby(sys.argv[1:], lambda word: word == "--") if not between]
BEFORE = dict(os.environ)

for number, words in enumerate(PROGRAMS):
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        os.environ[name] = value
    print(f"\n=== {number}", flush=True)
    sys.argv = [str(HERE / words[0]), *words[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
    os.environ.clear()
    os.environ.update(BEFORE)
