"""The cache lies where the XDG specification and the user say."""

from pathlib import Path

import pytest

from microvm_guest.image.errors import CacheError
from microvm_guest.image.layout import cache_layout


@pytest.mark.parametrize(
    ("environ", "root"),
    [
        ({"HOME": "/home/u"}, "/home/u/.cache/microvm"),
        ({"HOME": "/home/u", "XDG_CACHE_HOME": "/c"}, "/c/microvm"),
        ({"HOME": "/home/u", "XDG_CACHE_HOME": ""}, "/home/u/.cache/microvm"),
        ({"HOME": "/home/u", "XDG_CACHE_HOME": "rel"}, "/home/u/.cache/microvm"),
        ({"HOME": "/home/u", "XDG_CACHE_HOME": "/c", "MICROVM_CACHE_DIR": "/m"}, "/m"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/microvm"),
    ],
)
def test_the_nearest_wish_wins(environ: dict[str, str], root: str) -> None:
    assert cache_layout(environ).root == Path(root)


@pytest.mark.parametrize(
    "environ", [{}, {"HOME": ""}, {"HOME": "rel"}, {"HOME": "/h", "MICROVM_CACHE_DIR": "rel"}]
)
def test_without_an_absolute_place_there_is_no_cache(environ: dict[str, str]) -> None:
    with pytest.raises(CacheError) as caught:
        cache_layout(environ)
    assert "MICROVM_CACHE_DIR" in str(caught.value)
