"""Something public that goes away warns for two minor releases, in the name of the line that uses it."""

from __future__ import annotations

import linecache
import re

import pytest

from pushsum_opt._deprecate import deprecated, warn_deprecated

TEXT = "ps.old() is deprecated since 1.3 and will be removed in 1.5: use ps.new()"


@deprecated("ps.old()", since="1.3", instead="ps.new()")
def old(value, *, twice=False):
    """Return a value."""
    return 2 * value if twice else value


def test_a_deprecated_function_works_and_names_itself_both_releases_and_what_to_use():
    with pytest.warns(DeprecationWarning, match=f"^{re.escape(TEXT)}$"):
        assert old(3, twice=True) == 6
    assert (old.__name__, old.__doc__) == ("old", "Return a value.")


def test_a_deprecated_argument_warns_in_the_name_of_the_line_that_passes_it():
    def construct(hosts=None):
        if hosts is not None:
            warn_deprecated("PushSum(hosts=...)", since="0.9", instead="PushSum(host=...)")

    with pytest.warns(DeprecationWarning, match=r"removed in 0\.11") as caught:
        construct(hosts=2)  # this line
    construct()
    assert [linecache.getline(one.filename, one.lineno).strip() for one in caught] == [
        "construct(hosts=2)  # this line"
    ]


def test_a_deprecated_function_warns_in_the_name_of_the_line_that_calls_it():
    with pytest.warns(DeprecationWarning, match="ps.old") as caught:
        old(1)  # this line
    assert [linecache.getline(one.filename, one.lineno).strip() for one in caught] == ["old(1)  # this line"]
