"""Several replicas on one real etcd: every replica serves a change, a lost etcd takes nothing away, and it heals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from controlplane.snapshot.urls import ROUTE
from tests.support import shop
from tests.support.ads import AdsStream
from tests.support.certificates import Authority
from tests.support.controlplane import ControlPlaneProcess, wait_for
from tests.support.etcd import EtcdProcess, b64, cluster, free_port
from underpass.api import envoy
from underpass.cli import app
from underpass.cli.errors import FAILED, OK, UNREACHABLE, USAGE

Pair = tuple[ControlPlaneProcess, ControlPlaneProcess]

pytestmark = [pytest.mark.needs("etcd"), pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EtcdProcess, Pair]]:
    """An etcd and two replicas for tests that leave them as they are."""
    scratch = tmp_path_factory.mktemp("shared")
    with EtcdProcess(scratch) as etcd, ExitStack() as stack:
        url = f"etcd://{etcd.address}/mesh"
        one, two = (stack.enter_context(replica(scratch, name, url)) for name in ("one", "two"))
        yield etcd, (one, two)


@pytest.fixture
def empty(shared: tuple[EtcdProcess, Pair]) -> Pair:
    """The two replicas, with nothing in the store."""
    etcd, pair = shared
    etcd.call("kv/deleterange", key=b64("/mesh/config/"), range_end=b64("/mesh/config0"))
    for plane in pair:
        wait_for("nothing is left", lambda plane=plane: plane.json("/api/v1/config/status") == [])
    return pair


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    with EtcdProcess(tmp_path) as running:
        yield running


def replica(scratch: Path, name: str, url: str, *flags: str) -> ControlPlaneProcess:
    directory = scratch / name
    directory.mkdir(exist_ok=True)
    return ControlPlaneProcess(None, directory, "--store", url, "--name", name, *flags)


@pytest.fixture
def pair(tmp_path: Path, etcd: EtcdProcess) -> Iterator[Pair]:
    url = f"etcd://{etcd.address}/mesh"
    with ExitStack() as stack:
        one, two = (stack.enter_context(replica(tmp_path, name, url)) for name in ("one", "two"))
        yield one, two


def config(plane: ControlPlaneProcess, *arguments: str) -> int:
    return app.main(["config", *arguments, "--control-plane", plane.http])


def verdicts(plane: ControlPlaneProcess) -> dict[str, tuple[str, str, int]]:
    return {
        f"{item['kind']}/{item['name']}": (item["state"], item["file"], item["line"])
        for item in plane.json("/api/v1/config/status")
    }


def weight(plane: ControlPlaneProcess) -> int:
    """The share of v1 in the rule as it is in force."""
    for item in plane.json("/debug/configz"):
        if item["kind"] == "VirtualService":
            return int(item["spec"]["http"][1]["route"][0]["weight"])
    return -1


def shares(response: Any) -> list[int]:
    """The weights of the one split that a response has."""
    [table] = [envoy.RouteConfiguration.FromString(item.resource.value) for item in response.resources]
    routes = [route for host in table.virtual_hosts for route in host.routes]
    [found] = [route.route.weighted_clusters.clusters for route in routes if route.route.HasField("weighted_clusters")]
    return [cluster.weight.value for cluster in found]


def store(plane: ControlPlaneProcess) -> Any:
    return plane.json("/api/v1/store")


def write(directory: Path, share: int = 10) -> tuple[str, str]:
    services, rules = directory / "service.yaml", directory / "rules.yaml"
    shop.write(services, shop.service(80, 8080))
    shop.write(rules, shop.rules(share))
    return str(services), str(rules)


def newest(plane: Any) -> str:
    """The id of the last revision; empty without one."""
    revisions = plane.json("/api/v1/config/history")["revisions"]
    return str(revisions[0]["id"]) if revisions else ""


def test_every_replica_serves_a_change_within_a_second(
    tmp_path: Path, empty: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = pair = empty
    services, rules = write(tmp_path)
    before = [newest(plane) for plane in pair]
    assert config(one, "apply", "-f", services, "-f", rules) == OK
    said = capsys.readouterr().out
    assert "VirtualService default/greeter created" in said
    for plane in pair:
        wait_for("the rule is in force", lambda plane=plane: weight(plane) == 10, 1.0)
        assert verdicts(plane)["VirtualService/greeter"] == ("accepted", rules, 1), "where its author wrote it"
        assert verdicts(plane)["DestinationRule/greeter"][0] == "accepted"
    # History is written when the clients have been served.
    for plane, old in zip(pair, before, strict=True):
        wait_for("the revision is kept", lambda plane=plane, old=old: newest(plane) != old, 5.0)
    ids = [newest(plane) for plane in pair]
    assert ids[0] == ids[1], "a revision's name is its content"

    with AdsStream(one.xds, delta=True) as first, AdsStream(two.xds, delta=True) as second:
        for stream in (first, second):
            request = envoy.DeltaDiscoveryRequest(type_url=ROUTE, resource_names_subscribe=["80"])
            request.node.id = "sidecar~10.0.0.1~client.default~default.svc.cluster.local"
            stream.send(request)
            response = stream.recv()
            assert shares(response) == [10, 90]
            stream.ack(response)
        shop.write(Path(rules), shop.rules(70))
        began = time.monotonic()
        assert config(two, "apply", "-f", rules) == OK
        assert shares(first.recv()) == [70, 30], "the other replica's client"
        assert shares(second.recv()) == [70, 30]
        assert time.monotonic() - began < 1.0
    capsys.readouterr()
    assert config(two, "apply", "-f", rules) == OK
    assert capsys.readouterr().out == "VirtualService default/greeter unchanged\n"

    # What was in force before comes back on all replicas, from whichever it is asked of.
    assert config(two, "rollback", ids[0]) == OK
    assert "until the next change of the store" in capsys.readouterr().out
    for plane in pair:
        wait_for("the old rule is in force", lambda plane=plane: weight(plane) == 10, 1.0)

    assert config(one, "delete", "VirtualService/greeter") == OK
    for plane in pair:
        wait_for("the rule is gone", lambda plane=plane: weight(plane) == -1, 1.0)
    assert config(one, "delete", "VirtualService/greeter") == FAILED
    assert "not in the store" in capsys.readouterr().err


def test_what_would_be_rejected_is_not_stored_and_a_version_is_a_guard(
    tmp_path: Path, empty: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = empty
    services, rules = write(tmp_path)
    assert config(one, "apply", "-f", services, "-f", rules, "--dry-run") == OK
    assert "created (dry run)" in capsys.readouterr().out
    assert store(one)["objects"] == 0

    bad = tmp_path / "bad.yaml"
    broken = Path(rules).read_text().replace("weight: 10", "weight: -3", 1)
    assert broken != Path(rules).read_text()
    bad.write_text(shop.service(80, 8080) + "---\n" + broken + "---\nkey: [\n")
    assert config(one, "apply", "-f", str(bad)) == FAILED
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "nothing was written"
    assert [line.partition(": ")[0].rpartition(":")[0] for line in lines[:-1]] == [str(bad)] * 2
    assert any("VirtualService default/greeter: " in line and "weight" in line for line in lines)
    assert store(one)["objects"] == 0, "nor is the good part of it"

    assert config(one, "apply", "-f", services, "-f", rules) == OK
    wait_for("two has it", lambda: weight(two) == 10)
    capsys.readouterr()
    assert config(two, "get", "virtualservice/greeter", "-o", "yaml") == OK
    mine = tmp_path / "mine.yaml"
    mine.write_text(capsys.readouterr().out.replace("weight: 10", "weight: 20").replace("weight: 90", "weight: 80"))
    assert "resourceVersion" in mine.read_text()
    shop.write(Path(rules), shop.rules(30))
    assert config(one, "apply", "-f", rules) == OK
    capsys.readouterr()
    assert config(two, "apply", "-f", str(mine)) == FAILED
    assert "[conflict]" in capsys.readouterr().out
    wait_for("the other's change stands", lambda: weight(two) == 30)

    assert config(one, "apply") == USAGE
    assert config(one, "get") == OK
    assert f"{rules}:1" in capsys.readouterr().out


def test_more_than_one_request_takes(tmp_path: Path, empty: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = empty
    many = tmp_path / "many"
    many.mkdir()
    for part in range(3):
        rules = [shop.rules(10, name=f"s{part}-{number}") for number in range(120)]  # more than one transaction
        padding = "# what a request takes is counted in bytes\n" * 8000
        (many / f"{part}.yaml").write_text("---\n".join((padding, *rules)))
    broken = (many / "2.yaml").read_text() + "---\nkey: [\n"
    (many / "2.yaml").write_text(broken)
    assert config(one, "apply", "-f", str(many)) == FAILED
    assert capsys.readouterr().out.endswith("nothing was written\n")
    assert store(one)["objects"] == 0, "the parts that are good were not written before the last was judged"
    (many / "2.yaml").write_text(broken.removesuffix("---\nkey: [\n"))
    assert config(one, "apply", "-f", str(many), "--dry-run") == OK
    assert store(one)["objects"] == 0
    assert config(one, "apply", "-f", str(many), "-o", "json") == OK
    capsys.readouterr()
    wait_for("the other has them all", lambda: store(two)["objects"] == 360)
    assert config(two, "get", "VirtualService", "-n", "default", "-o", "json") == OK
    out = capsys.readouterr().out
    assert len(json.loads(out)["objects"]) == 360
    assert config(two, "delete", "-f", str(many)) == OK
    wait_for("nothing is left", lambda: store(one)["objects"] == 0)
    assert config(two, "get", "VirtualService/s0-1") == FAILED
    assert config(two, "get", "-o", "xml") == USAGE
    assert config(two, "delete") == USAGE
    assert config(two, "delete", "VirtualService") == USAGE


def test_what_others_write_is_judged_too(shared: tuple[EtcdProcess, Pair], empty: Pair) -> None:
    etcd, pair = shared[0], empty
    key = "/mesh/config/VirtualService/default/greeter"
    etcd.put(key, shop.rules(10))
    for plane in pair:
        wait_for("plain YAML is read", lambda plane=plane: weight(plane) == 10)
    etcd.put(key, shop.rules(10).replace("hosts: [greeter]", "hosts: 3"))
    for plane in pair:
        found = wait_for(
            "it is refused", lambda plane=plane: verdicts(plane)["VirtualService/greeter"][0] == "rejected"
        )
        assert found
        assert verdicts(plane)["VirtualService/greeter"][1:] == ("etcd:VirtualService/default/greeter", 5)
        assert weight(plane) == 10, "the last good version stays"
    etcd.put("/mesh/config/nonsense", '{"underpass": 7}')
    for plane in pair:

        def codes(plane: ControlPlaneProcess = plane) -> set[str]:
            return {item["code"] for item in plane.json("/api/v1/config/status")}

        wait_for("a later form is refused by name", lambda: "unknown-form" in codes())


def test_a_lost_store_takes_nothing_away_and_what_was_missed_is_made_up_for(
    tmp_path: Path,
    etcd: EtcdProcess,
    pair: Pair,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two = pair
    services, rules = write(tmp_path)
    assert config(one, "apply", "-f", services, "-f", rules) == OK
    for plane in pair:
        wait_for("the rule is in force", lambda plane=plane: weight(plane) == 10)
    before = one.json("/api/v1/config/history")["revisions"][-1]["id"]

    etcd.kill()
    shop.write(Path(rules), shop.rules(40))
    for plane in pair:
        wait_for("the loss is noticed", lambda plane=plane: not store(plane)["available"])
        capsys.readouterr()
        assert config(plane, "apply", "-f", rules) == UNREACHABLE
        error = capsys.readouterr().err
        assert "the store etcd://" in error
        assert "does not answer" in error
        assert "nothing was written, and what is in force stays" in error
        assert config(plane, "rollback", before) == UNREACHABLE
        assert config(plane, "replicas") == UNREACHABLE
        assert config(plane, "get") == OK
        assert "has lost its store" in capsys.readouterr().out
        assert plane.get("/ready") == (200, "ready\n")
        assert weight(plane) == 10
        assert "underpass_store_available 0.0" in plane.get("/metrics")[1]

    # One of them stands still while the store comes back, so that the revisions it missed are compacted away.
    pid = json.loads((tmp_path / "two" / "addresses.json").read_text())["pid"]
    os.kill(pid, signal.SIGSTOP)
    etcd.start()
    wait_for("it is back", lambda: store(one)["available"], 6.0)
    for share in (20, 30, 50):
        shop.write(Path(rules), shop.rules(share))
        assert config(one, "apply", "-f", rules) == OK
    assert config(one, "delete", "DestinationRule/greeter") == OK
    etcd.compact()
    os.kill(pid, signal.SIGCONT)
    for plane in pair:
        wait_for("the last change is in force", lambda plane=plane: weight(plane) == 50, 6.0)
        wait_for("what is gone is gone", lambda plane=plane: "DestinationRule/greeter" not in verdicts(plane))
        assert plane.log.count("store lost") == 1, "one line for one outage"
    assert (store(one)["relists"], store(two)["relists"]) == (0, 1)

    listed = wait_for("both have a lease", lambda: len(store(one)["replicas"]) == 2 and store(one)["replicas"])
    assert {item["name"] for item in listed} == {"one", "two"}
    assert sum(store(plane)["leads"] for plane in pair) == 1
    leader = next(plane for plane in pair if store(plane)["leads"])
    other = next(plane for plane in pair if plane is not leader)
    leader.stop()
    wait_for("the other one leads", lambda: store(other)["leads"], 4.0)
    assert config(other, "replicas") == OK
    assert "leads" in capsys.readouterr().out


@pytest.mark.slow
def test_a_replica_with_a_copy_does_not_wait(tmp_path: Path) -> None:
    etcd = EtcdProcess(tmp_path)
    url = f"etcd://{etcd.address}/mesh"
    copy = tmp_path / "copy"
    with etcd, replica(tmp_path, "three", url, "--store-copy", str(copy)) as three:
        services, rules = write(tmp_path)
        assert config(three, "apply", "-f", services, "-f", rules) == OK
        wait_for("it is in force", lambda: weight(three) == 10)
        wait_for("the copy has it", lambda: copy.exists() and "VirtualService" in copy.read_text())
    assert copy.stat().st_mode & 0o777 == 0o600
    with replica(tmp_path, "three", url, "--store-copy", str(copy)) as three:
        assert three.get("/ready")[0] == 200
        assert weight(three) == 10
        assert not store(three)["available"]
        etcd.start()
        try:
            wait_for("the store is back", lambda: store(three)["available"])
            shop.write(Path(rules), shop.rules(20))
            assert config(three, "apply", "-f", rules) == OK
            wait_for("and is followed", lambda: weight(three) == 20)
        finally:
            etcd.kill()


@pytest.mark.slow
def test_members_come_and_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with cluster(tmp_path) as members, ExitStack() as stack:
        by_address = {member.address: member for member in members}
        url = f"etcd://{','.join(by_address)}/mesh"
        one, two = (stack.enter_context(replica(tmp_path, name, url)) for name in ("one", "two"))
        services, rules = write(tmp_path)
        assert config(one, "apply", "-f", services, "-f", rules) == OK

        def change(share: int) -> None:
            shop.write(Path(rules), shop.rules(share))
            assert config(one, "apply", "-f", rules) == OK
            for plane in (one, two):
                wait_for("the change is in force", lambda plane=plane: weight(plane) == share, 5.0)

        change(20)
        lost = by_address[store(one)["member"]]
        lost.kill()
        wait_for("another member is spoken to", lambda: by_address[store(one)["member"]] is not lost)
        wait_for("it answers", lambda: store(one)["available"])
        change(30)

        second = next(member for member in members if member is not lost)
        second.kill()
        for plane in (one, two):  # one member is left: it answers connections, and has no leader
            wait_for("there is no majority", lambda plane=plane: not store(plane)["available"], 20.0)
            assert config(plane, "apply", "-f", rules) == UNREACHABLE
            assert weight(plane) == 30
        second.spawn()
        lost.spawn()
        for plane in (one, two):
            wait_for("there is a majority again", lambda plane=plane: store(plane)["available"], 20.0)
        change(60)
        assert "Traceback" not in one.log + two.log
    capsys.readouterr()


@pytest.mark.slow
def test_the_leader_lets_old_revisions_go_and_is_missed_when_it_dies(tmp_path: Path, etcd: EtcdProcess) -> None:
    url = f"etcd://{etcd.address}/mesh"
    flags = ("--store-compact", "0.02")
    with ExitStack() as stack:
        one, two = (stack.enter_context(replica(tmp_path, name, url, *flags)) for name in ("one", "two"))
        wait_for("one leads", lambda: store(one)["leads"] or store(two)["leads"])
        leader, other = (one, two) if store(one)["leads"] else (two, one)
        services, rules = write(tmp_path)
        assert config(one, "apply", "-f", services) == OK
        revision = int(etcd.call("kv/range", key=b64("x"))["header"]["revision"])
        for share in (10, 20, 30):
            shop.write(Path(rules), shop.rules(share))
            assert config(other, "apply", "-f", rules) == OK

        def gone() -> bool:
            try:
                etcd.call("kv/range", key=b64("x"), revision=revision)
            except urllib.error.HTTPError as error:
                return "compacted" in error.read().decode()
            return False

        wait_for("what is old is gone", gone)
        assert leader.stop(number=signal.SIGKILL) == -signal.SIGKILL
        began = time.monotonic()
        wait_for("the other one leads", lambda: store(other)["leads"], 15.0)
        assert time.monotonic() - began < 11.0
        assert weight(other) == 30
        assert store(other)["relists"] == 0


@pytest.mark.slow
def test_a_store_that_stands_still_and_one_that_lost_its_disk(
    tmp_path: Path, etcd: EtcdProcess, pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    one, _ = pair
    services, rules = write(tmp_path, 40)
    assert config(one, "apply", "-f", services, "-f", rules) == OK
    wait_for("the rule is in force", lambda: weight(one) == 40)

    # It stands still instead of dying: connections stay open, and nobody answers.
    etcd.pause()
    capsys.readouterr()
    assert config(one, "apply", "-f", services, "-f", rules) == UNREACHABLE
    assert "Deadline" in capsys.readouterr().err
    assert weight(one) == 40
    etcd.resume()
    wait_for("it is back", lambda: store(one)["available"])

    # Its disk is lost: an empty store does not empty the mesh until a second look says the same.
    etcd.wipe()
    wait_for("it is seen", lambda: "surprising" in one.log, 10.0)
    assert weight(one) == 40
    wait_for("it is believed in the end", lambda: weight(one) == -1, 10.0)


def test_a_replica_waits_for_a_store_that_is_not_there_yet(tmp_path: Path) -> None:
    etcd, port = EtcdProcess(tmp_path), free_port()
    url = f"etcd://{etcd.address}/mesh"
    waiting = replica(tmp_path, "one", url, "--http", f"127.0.0.1:{port}")
    waiting.http = f"127.0.0.1:{port}"
    with ThreadPoolExecutor(1) as threads:
        started = threads.submit(waiting.start)

        def ready() -> int:
            try:
                return waiting.get("/ready")[0]
            except OSError:
                return 0

        wait_for("it says that it is not ready", lambda: ready() == 503)
        assert waiting.get("/livez")[0] == 200
        assert not store(waiting)["available"]
        with etcd:
            started.result(20)
            with waiting.running():
                assert ready() == 200

    lonely = replica(tmp_path, "two", url, "--http", f"127.0.0.1:{port}")
    with ThreadPoolExecutor(1) as threads:
        failed = threads.submit(lonely.start)
        wait_for("it waits", lambda: ready() == 503)
        assert lonely.stop() == 0, "a signal ends the wait"
        with pytest.raises(AssertionError):
            failed.result(20)


def test_tls_and_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ipaddress import ip_address

    from cryptography import x509

    authority = Authority(tmp_path)
    server = authority.issue("server", x509.IPAddress(ip_address("127.0.0.1")))
    client = authority.issue("client", x509.DNSName("underpass"))
    mine = (tmp_path / "mine.pem", tmp_path / "mine-key.pem")
    for source, target in zip(client, mine, strict=True):
        shutil.copy(source, target)
    with EtcdProcess(tmp_path, "--auth-token-ttl", "1", "--bcrypt-cost", "4", tls=(*server, authority.ca)) as etcd:
        etcd.call("auth/user/add", name="root", password="admin")
        etcd.call("auth/role/add", name="root")
        etcd.call("auth/user/grant", user="root", role="root")
        etcd.call("auth/role/add", name="mesh")
        everything = {"permType": "READWRITE", "key": b64("/mesh"), "range_end": b64("/mesi")}
        etcd.call("auth/role/grant", name="mesh", perm=everything)
        etcd.call("auth/user/add", name="underpass", password="secret")
        etcd.call("auth/user/grant", user="underpass", role="mesh")
        etcd.call("auth/enable")

        password = tmp_path / "password"
        password.write_text("wrong\n")
        url = f"etcds://{etcd.address}/mesh?ca={authority.ca}&cert={mine[0]}&key={mine[1]}"
        flags = ("--store-user", "underpass", "--store-password-file", str(password))
        with pytest.raises(AssertionError, match="refuses user underpass"):
            replica(tmp_path, "wrong", url, *flags).start()
        password.write_text("secret\n")
        services, rules = write(tmp_path)
        with replica(tmp_path, "one", url, *flags) as one, replica(tmp_path, "two", url, *flags) as two:
            assert config(one, "apply", "-f", services, "-f", rules) == OK
            for plane in (one, two):
                wait_for("the rule is in force", lambda plane=plane: weight(plane) == 10, 2.0)
            time.sleep(1.6)  # tokens that nobody uses end after a second; those in use are renewed
            shop.write(Path(rules), shop.rules(60))
            assert config(two, "apply", "-f", rules) == OK
            for plane in (one, two):
                wait_for("the change is in force", lambda plane=plane: weight(plane) == 60, 2.0)
            # Its certificate is renewed, as a certificate manager does it: nobody has to start anything again.
            renewed = authority.issue("renewed", x509.DNSName("underpass"))
            for source, target in zip(renewed, mine, strict=True):
                shutil.copy(source, target.with_suffix(".new"))
                target.with_suffix(".new").replace(target)
            etcd.kill()
            etcd.start()  # which knows none of the tokens that it gave out
            for plane in (one, two):
                wait_for("it is back", lambda plane=plane: store(plane)["available"], 10.0)
            shop.write(Path(rules), shop.rules(80))
            assert config(two, "apply", "-f", rules) == OK
            for plane in (one, two):
                wait_for("the change is in force", lambda plane=plane: weight(plane) == 80, 2.0)
            assert "secret" not in one.log
    capsys.readouterr()
