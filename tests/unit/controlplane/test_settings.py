from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.errors import UsageProblem
from controlplane.settings import parse, parse_store


def test_a_directory_or_a_store() -> None:
    assert parse(["--config", "/etc/mesh"]).config == Path("/etc/mesh")
    found = parse(["--store", "etcd://10.0.0.1:2379,[::1]:2380,etcd-2/mesh/a/"])
    assert found.config is None
    assert found.store is not None
    assert (found.store.members, found.store.prefix) == (("10.0.0.1:2379", "[::1]:2380", "etcd-2:2379"), "/mesh/a")
    assert found.store.tls is False
    for arguments in ([], ["--config", "d", "--store", "etcd://h"]):
        with pytest.raises(UsageProblem, match="either --config DIR or --store"):
            parse(arguments)
    with pytest.raises(UsageProblem, match="about --store"):
        parse(["--config", "d", "--store-user", "x"])
    with pytest.raises(UsageProblem, match="minutes"):
        parse(["--store", "etcd://h", "--store-compact", "-1"])


def test_tls_and_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_store("etcds://h").tls
    found = parse_store("etcd://me@h/p?ca=/ca.pem&cert=/c.pem&key=/k.pem", password="hush")
    assert (found.tls, found.ca, found.cert, found.key, found.user) == (True, "/ca.pem", "/c.pem", "/k.pem", "me")
    assert "hush" not in f"{found} {found!r}"
    monkeypatch.setenv("UNDERPASS_STORE_PASSWORD", "secret")
    settings = parse(["--store", "etcd://h", "--store-user", "me"])
    assert settings.store is not None
    assert settings.store.password == "secret"
    assert "secret" not in repr(settings)
    settings = parse(["--store", "etcd://h"])
    assert settings.store is not None
    assert settings.store.password == "", "nobody asked to be anybody"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://h", "begins with etcd://"),
        ("etcd://", "not HOST:PORT"),
        ("etcd://h:0", "not HOST:PORT"),
        ("etcd://h:x", "not HOST:PORT"),
        ("etcd://h,,g", "not HOST:PORT"),
        ("etcd://::1:2379", "brackets"),
        ("etcd://h?cert=/c", "given together"),
        ("etcd://h?nope=1", "nope is not known"),
        ("etcd://h?ca", "--store"),
        ("etcd://h/p#x", "# is not known"),
        ("etcd://me:secret@h", "every process of this machine could read"),
        ("etcd://me@h", "needs --store-password-file"),
        ("etcd://[::1", "--store"),
    ],
)
def test_what_a_store_is_not(url: str, why: str) -> None:
    with pytest.raises(UsageProblem, match=why) as caught:
        parse_store(url)
    assert "secret" not in str(caught.value)
