"""Finds the command that installs one of this project's extras: it depends on how the project was installed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

__all__ = ["command_for", "install_command"]

DISTRIBUTION = "pushsum-opt"
CHECKOUT = Path(__file__).resolve().parent.parent


def install_command(extra: str) -> str:
    """Return the shell command that installs what an extra of this project asks for.

    The project may not be on a package index, so its name alone is not enough: the command names the folder or address
    from which it was installed. Where that is unknown, or gone, the command names the packages of the extra.
    """
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # imported by PYTHONPATH
        editable = {"url": CHECKOUT.as_uri(), "dir_info": {"editable": True}}
        return command_for(extra, editable if (CHECKOUT / "setup.py").is_file() else None, ())
    text = distribution.read_text("direct_url.json")  # PEP 610: pip, uv and pdm write it, except for an index
    return command_for(extra, json.loads(text) if text else None, distribution.requires or ())


def command_for(extra: str, origin: Mapping[str, Any] | None, requires: Sequence[str]) -> str:
    """Return the command for an extra.

    Args:
        origin: what ``direct_url.json`` says; None where there is none.
        requires: the requirements of the distribution, with their markers.
    """
    source = _source(origin or {}, extra)
    if source is not None:
        return f"pip install {source}"
    marker = re.compile(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""")
    packages = [one.split(";")[0].strip() for one in requires if marker.search(one)]
    return f"pip install {' '.join(map(_quote, packages))}" if packages else f'pip install "{DISTRIBUTION}[{extra}]"'


def _source(origin: Mapping[str, Any], extra: str) -> str | None:
    """Return what pip is to install from, with its options; None where it is not known or no longer there."""
    url = str(origin.get("url", ""))
    if not url:
        return None
    below = f"#subdirectory={origin['subdirectory']}" if origin.get("subdirectory") else ""
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        at = vcs.get("requested_revision") or vcs.get("commit_id")
        return _quote(f"{DISTRIBUTION}[{extra}] @ {vcs['vcs']}+{url}{f'@{at}' if at else ''}{below}")
    parts = urlsplit(url)
    if parts.scheme != "file":
        return _quote(f"{DISTRIBUTION}[{extra}] @ {url}{below}")
    path = Path(url2pathname(parts.path))
    if not path.exists():
        return None
    if path.is_file():  # a wheel or an archive
        return _quote(f"{path}[{extra}]")
    folder = path / origin["subdirectory"] if below else path
    option = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"{option}{_quote(f'{folder}[{extra}]')}"


def _quote(text: str) -> str:
    """Quote for a shell: in double quotes, which every shell knows; not where they would change the text."""
    return shlex.quote(text) if any(one in text for one in '"$`\\!') else f'"{text}"'
