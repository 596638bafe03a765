"""What is asked: one nginx worker that is two endpoints, and a sink for uploads. The same for every path."""

from dataclasses import dataclass
from pathlib import Path

from bench.machine import run

PORT_A, PORT_B, PORT_SINK = 9001, 9002, 9003
BODY = 64 << 20
BIG = 1 << 30
# A reply as small services give them: some hundred bytes with head.
REPLY = '{{"endpoint":"{name}","message":"about as much as a small service has to say on an ordinary day"}}'


@dataclass(frozen=True)
class Files:
    """Where configuration, logs and the bodies (in memory) of one run are."""

    directory: Path

    @property
    def bodies(self) -> Path:
        """The web root: `body` has BODY bytes, `big` BIG and `part` a 32nd of it; all are sparse."""
        return self.directory / "www"

    def log(self, name: str) -> Path:
        """A log file."""
        return self.directory / f"{name}.log"

    def prepare(self) -> None:
        """Make the bodies, all holes. `directory` should be on a tmpfs: a disk is not what is measured.

        A hole is one page of zeros, whoever reads it. Pages of their own, twice the CPU's cache together, are read at
        cache speed by 32 clients in lockstep and at memory speed by 32 that are apart, and the ratio of two paths would
        say which.
        """
        self.bodies.mkdir(parents=True, exist_ok=True)
        for name, size in (("body", BODY), ("big", BIG), ("part", BIG // 32)):
            with (self.bodies / name).open("wb") as file:
                file.truncate(size)


def nginx(files: Files, name: str) -> list[str]:
    """Command line of an nginx with one worker that serves endpoint a on PORT_A and b on PORT_B; writes its config.

    `big` and `part`, which nobody reads for a while, are sent by copying: sendfile would queue pages of the page cache,
    which are nobody's kernel memory.
    """
    servers = "\n".join(
        f"""  server {{
    listen {port} backlog=4096 reuseport;
    location / {{ default_type application/json; return 200 '{REPLY.format(name=endpoint)}\\n'; }}
    location /body {{ alias {files.bodies}/body; }}
    location /big {{ sendfile off; alias {files.bodies}/big; }}
    location /part {{ sendfile off; alias {files.bodies}/part; }}
  }}"""
        for endpoint, port in (("a", PORT_A), ("b", PORT_B))
    )
    config = files.directory / f"nginx-{name}.conf"
    config.write_text(
        f"""worker_processes 1;
worker_priority -19;
daemon off;
user root;
pid {files.directory}/nginx-{name}.pid;
error_log {files.log("nginx-" + name)};
events {{ worker_connections 8192; }}
http {{
  access_log off;
  sendfile on;
  keepalive_requests 1000000000;
  keepalive_timeout 3600s;
{servers}
}}
"""
    )
    run("nginx", "-t", "-q", "-c", str(config))
    return ["nginx", "-c", str(config)]
