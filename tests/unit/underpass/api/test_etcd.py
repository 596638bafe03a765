from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiers import repository
from underpass.api import etcd


def test_the_shipped_descriptors_are_those_of_the_protos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("grpc_tools")
    monkeypatch.chdir(repository())
    etcd.generate(str(tmp_path / "etcd.binpb"))
    assert (tmp_path / "etcd.binpb").read_bytes() == Path("underpass/api/etcd.binpb").read_bytes()


def test_messages() -> None:
    request = etcd.message("RangeRequest")(key=b"a", range_end=b"b")
    assert request.SerializeToString() == b"\x0a\x01a\x12\x01b"
    with pytest.raises(KeyError):
        etcd.message("Nonsense")
