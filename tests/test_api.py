"""The public surface: these names and no others."""

import inspect
from pathlib import Path

import pytest

import gmodiff


def test_exported_names():
    assert set(gmodiff.__all__) == {
        "Bracket", "GMODiffError", "GainMap", "HDRImage", "load_model", "read", "read_bracket", "reconstruct", "write",
    }  # fmt: skip


@pytest.mark.parametrize("name", gmodiff.__all__)
def test_every_name_loads_and_is_documented(name):
    assert inspect.getdoc(getattr(gmodiff, name))
    assert name in dir(gmodiff)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'merge_everything'"):
        gmodiff.merge_everything  # noqa: B018


def test_no_public_function_shares_its_name_with_a_module():
    """Importing a submodule sets the package attribute of its name: a function of that name would vanish behind it."""
    assert not set(gmodiff.__all__) & {path.stem for path in Path(gmodiff.__file__).parent.glob("*.py")}
