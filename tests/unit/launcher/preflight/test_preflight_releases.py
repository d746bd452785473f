import pytest

from ftplan.launcher.preflight.releases import is_before, satisfies


def test_releases_have_an_order():
    assert is_before("5.9.0", "5.17")
    assert is_before("2.13.0rc1", "2.13.0")
    assert not is_before("2.11", "2.11.0")
    assert not is_before("580.65.06", "580")
    assert not is_before("nightly", "2.11")


@pytest.mark.parametrize(
    ("version", "specifier", "expected"),
    [
        ("2.4.6", "<3,>=1.26", True),
        ("3.0.0", "<3,>=1.26", False),
        ("0.23.3", "<0.24.0,>=0.23.1", True),
        ("1.4.2", "~=1.4.1", True),
        ("1.5.0", "~=1.4.1", False),
        ("1.9", "~=1.4", True),
        ("1.3", "~=1.4", False),
        ("5.1.0", "!=5.1.0", False),
        ("5.1.1", "!=5.1.0,>=5", True),
        ("4.46.2", "==4.46.*", True),
        ("4.47.0", "==4.46.*", False),
        ("4.46.1", "!=4.46.*", False),
        ("2.0", ">2.0", False),
        ("1.0", "", True),
        ("2.13.0+cpu", "==2.13.0", True),
        ("3.0.0rc1", ">=3", False),
        ("3.1.0rc1", ">=3", True),
        ("nightly", ">=3", True),
    ],
)
def test_specifiers(version, specifier, expected):
    assert satisfies(version, specifier) is expected
