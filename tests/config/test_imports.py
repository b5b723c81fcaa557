"""Names in other packages."""

import math

import pytest

from dualrate.config.imports import imported


def test_a_name_in_any_package_is_found():
    assert imported("math:pi") == math.pi
    assert imported("os.path:join")("a", "b") == "a/b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("math", "a name in another package is written package.module:name, got 'math'"),
        ("", "package.module:name"),
        ("math:", "package.module:name"),
        (":pi", "package.module:name"),
        (".math:pi", "package.module:name"),
        ("math:pi.real", "package.module:name"),
        ("math:pi:1", "package.module:name"),
        ("../math:pi", "package.module:name"),
        ("no_such_package.x:y", "no_such_package.x cannot be imported: No module .*PYTHONPATH"),
        ("math:tau_squared", "math .*has no 'tau_squared'"),
    ],
)
def test_what_names_nothing_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        imported(text)
