"""Nobody is let in who should not be."""

import base64
import subprocess
from pathlib import Path

import pytest

from lightwam.errors import ConfigError
from lightwam.serving.access import Keys, check_exposure, is_loopback, read_keys, tls

KEY, OTHER = "a" * 32, "b" * 32


def basic(credentials: str) -> str:
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


WRONG = [None, "", KEY, f"Basic {KEY}", basic(KEY), basic(f"{KEY}:"), basic(f"me:{KEY}x"), "Basic é", "Basic /w=="]


@pytest.mark.parametrize("header", [*WRONG, f"Api-Key {OTHER}", f"Api-Key {KEY}x", "Api-Key "])
def test_a_wrong_or_missing_key_is_refused(header: str | None) -> None:
    assert not Keys([KEY]).admit(header)


@pytest.mark.parametrize(
    "header", [f"Api-Key {KEY}", f"Bearer {KEY}", f"api-key {KEY}", f"Api-Key {OTHER}", basic(f"me:{KEY}")]
)
def test_every_configured_key_is_accepted(header: str) -> None:
    assert Keys([KEY, OTHER]).admit(header)


def test_without_keys_every_client_is_accepted() -> None:
    assert Keys().admit(None)


@pytest.mark.parametrize("key", ["short", "with a space in it, and long", "schlüssel" * 4, "a\nb" * 12])
def test_keys_that_cannot_be_used_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="key 1"):
        Keys([key])


def test_keys_come_from_a_file_and_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# robots\n{KEY}  # the left one\n\n")
    keys = read_keys(file, f" {OTHER} ,")
    assert keys.admit(f"Api-Key {KEY}")
    assert keys.admit(f"Api-Key {OTHER}")
    file.write_text("# none yet\n")
    with pytest.raises(ConfigError, match="must have one key a line"):
        read_keys(file, None)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "absent", None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.3", "robot.local", ""])
def test_a_server_without_keys_listens_to_this_machine_only(host: str) -> None:
    with pytest.raises(ConfigError, match="--allow-anyone"):
        check_exposure(host, Keys(), anyone=False)
    check_exposure(host, Keys([KEY]), anyone=False)
    check_exposure(host, Keys(), anyone=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    check_exposure(host, Keys(), anyone=False)


def test_tls_files_are_checked_before_anything_listens(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout"
    subprocess.run([*command.split(), str(key), "-out", str(certificate)], check=True, capture_output=True)
    assert tls(certificate, key) is not None
    assert tls(None, None) is None
    with pytest.raises(ConfigError, match="must be PEM files"):
        tls(key, certificate)
    with pytest.raises(ConfigError, match="needs --tls-certificate"):
        tls(None, key)
    with pytest.raises(ConfigError, match=r"absent\.pem"):
        tls(tmp_path / "absent.pem", None)
