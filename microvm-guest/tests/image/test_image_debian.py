"""Packages come from the system's apt: found, fetched once, verified, or refused with a remedy."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from microvm_guest.image.cache import open_cache
from microvm_guest.image.debian import (
    Candidate,
    fetch,
    packages_starting_with,
    parse_uris,
    version_of,
)
from microvm_guest.image.errors import SourceUnavailable
from microvm_guest.image.layout import CacheLayout
from microvm_guest.image.progress import Silent
from microvm_guest.image.source import debian_source

CONTENT = b"!<arch>\nnot much of a package"
NAME = "hello_1%3a2.0~deb12u1-1_amd64.deb"
SHA256 = hashlib.sha256(CONTENT).hexdigest()

APT_GET = """\
#!/bin/sh
echo "apt-get $*" >> "$HOME/apt.log"
case "$*" in
*--print-uris\\ {package}) {uris} ;;
*--print-uris*) echo 'E: Unable to locate package' >&2; exit 100 ;;
*) {download} ;;
esac
"""
APT_CACHE = """\
#!/bin/sh
printf '{packages}\\n'
"""

FakeApt = Callable[..., None]


@pytest.fixture
def fake_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    """Puts programs that answer like apt first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "content").write_bytes(CONTENT)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))

    def install(
        *,
        package: str = "hello",
        sha256: str = SHA256,
        download: str = f'cp "$HOME/content" {NAME}',
        packages: str = "hello",
        known: bool = True,
    ) -> None:
        uris = f"echo \"'http://host/{NAME}' {NAME} {len(CONTENT)} SHA256:{sha256}\""
        for name, text in (
            (
                "apt-get",
                APT_GET.format(
                    package=package, uris=uris if known else "exit 100", download=download
                ),
            ),
            ("apt-cache", APT_CACHE.format(packages=packages)),
        ):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    return install


def fetched(layout: CacheLayout, package: str = "hello") -> Path:
    with open_cache(layout, lambda text: pytest.fail(text)) as cache:
        return fetch(cache, package, Silent())


def test_what_apt_would_fetch_is_read() -> None:
    text = f"'http://host/pool/h/hello.deb' {NAME} 123 SHA256:{SHA256.upper()}\n"
    assert parse_uris("hello", text) == Candidate(
        package="hello", filename=NAME, size=123, sha256=SHA256
    )
    assert version_of(NAME) == "1:2.0~deb12u1-1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "E: no such package\n",
        "'http://h/x' x_1_all.deb 12 MD5Sum:abc\n",
        f"'http://h/x' ../x_1_all.deb 12 SHA256:{SHA256}\n",
    ],
)
def test_what_apt_says_otherwise_is_no_candidate(text: str) -> None:
    assert parse_uris("x", text) is None


def test_a_package_is_fetched_once(layout: CacheLayout, fake_apt: FakeApt, tmp_path: Path) -> None:
    fake_apt()
    place = fetched(layout)
    assert place == layout.downloads / NAME
    assert place.read_bytes() == CONTENT
    assert fetched(layout) == place
    log = (tmp_path / "apt.log").read_text().splitlines()
    assert len([line for line in log if "--print-uris" not in line]) == 1


def test_without_lists_a_package_fetched_before_will_do(
    layout: CacheLayout, fake_apt: FakeApt
) -> None:
    fake_apt()
    place = fetched(layout)
    fake_apt(known=False)
    assert fetched(layout) == place


def test_an_unknown_package_is_refused_with_the_way_out(
    layout: CacheLayout, fake_apt: FakeApt
) -> None:
    fake_apt(known=False)
    with pytest.raises(SourceUnavailable, match="no package hello") as caught:
        fetched(layout)
    assert "apt-get update" in str(caught.value.remedy)


def test_a_network_that_fails_is_told_with_apts_words(
    layout: CacheLayout, fake_apt: FakeApt
) -> None:
    fake_apt(download="echo 'Err:1 Could not resolve host' >&2; exit 100")
    with pytest.raises(SourceUnavailable, match="could not fetch") as caught:
        fetched(layout)
    assert "Could not resolve host" in str(caught.value.remedy)
    assert list(layout.downloads.iterdir()) == []
    assert list(layout.work.iterdir()) == []


def test_other_bytes_than_apt_promised_are_refused(layout: CacheLayout, fake_apt: FakeApt) -> None:
    fake_apt(sha256="0" * 64)
    with pytest.raises(SourceUnavailable, match=SHA256):
        fetched(layout)
    assert list(layout.downloads.iterdir()) == []


def test_a_download_that_brings_nothing_is_refused(layout: CacheLayout, fake_apt: FakeApt) -> None:
    fake_apt(download="true")
    with pytest.raises(SourceUnavailable, match="came as nothing"):
        fetched(layout)


def test_a_half_fetched_package_is_fetched_again(layout: CacheLayout, fake_apt: FakeApt) -> None:
    fake_apt()
    place = fetched(layout)
    place.write_bytes(CONTENT[:-1])
    assert fetched(layout).read_bytes() == CONTENT


def test_apts_names_are_listed(fake_apt: FakeApt) -> None:
    fake_apt(packages="linux-source-6.12\\nlinux-source-6.1")
    assert packages_starting_with("linux-source-") == ("linux-source-6.1", "linux-source-6.12")


def test_an_apt_without_kernel_source_is_told_what_to_do(
    layout: CacheLayout, fake_apt: FakeApt
) -> None:
    fake_apt(packages="")
    with (
        pytest.raises(SourceUnavailable, match=r"6\.1 or later") as caught,
        open_cache(layout, lambda text: pytest.fail(text)) as cache,
    ):
        debian_source(cache, None, Silent())
    assert "--kernel-source" in str(caught.value.remedy)


def test_a_series_apt_does_not_have_is_answered_with_those_it_has(
    layout: CacheLayout, fake_apt: FakeApt
) -> None:
    fake_apt(packages="linux-source-6.1\\nlinux-source-6.12")
    with (
        pytest.raises(SourceUnavailable, match=r"linux-source-6\.5") as caught,
        open_cache(layout, lambda text: pytest.fail(text)) as cache,
    ):
        debian_source(cache, "6.5", Silent())
    assert "6.1, 6.12" in str(caught.value.remedy)
