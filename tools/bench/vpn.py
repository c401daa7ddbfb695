"""`microvm vpn run` against a real server on this host: how long, how much memory, how fast.

Absolute figures: nothing here is compared. Needs root, for the server's network namespace.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MIB = 1 << 20


def vpn(size_mib: int, runs: int) -> Any:
    """Each run boots and connects; the last fetches as well."""
    from tests.guest.vpn_server import missing, vpn_server

    if (why := missing()) is not None:
        return {"skipped": why}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with vpn_server(folder, "udp", size_mib * MIB) as server:
            server.set_password("me", "secret")
            (folder / "auth").write_text("me\nsecret\n")
            (folder / "client.ovpn").write_text(server.client_config())
            return [_run(folder, size_mib if run == runs - 1 else 0) for run in range(runs)]


def _run(folder: Path, size_mib: int) -> dict[str, Any]:
    from tests.guest.vpn_server import NAME, WEB_PORT

    words = ["vpn", "run", str(folder / "client.ovpn"), "--auth-file", str(folder / "auth")]
    argv = [sys.executable, "-m", "microvm", *words, "--socks", "127.0.0.1:0", "--json"]
    begin = time.monotonic()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        listen, ready = "", begin
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "ready":
                listen, ready = event["listen"], time.monotonic()
            elif event.get("state") == "connected":
                break
        found: dict[str, Any] = {
            "boot_s": round(ready - begin, 2),
            "connect_s": round(time.monotonic() - ready, 2),
            "pss_kib": _pss(process.pid),
        }
        if size_mib:
            url, begin = f"http://{NAME}:{WEB_PORT}/data", time.monotonic()
            fetch = ["curl", "-sS", "--fail", "-o", os.devnull, "--socks5-hostname", listen, url]
            subprocess.run(fetch, check=True)
            found["fetch_mib_per_s"] = round(size_mib / (time.monotonic() - begin), 2)
        process.send_signal(signal.SIGINT)
    return found


def _pss(pid: int) -> dict[str, int]:
    """Of a process and those below it, by name."""
    tasks = Path(f"/proc/{pid}/task").iterdir()  # a child is its thread's
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    (line,) = (line for line in rollup.splitlines() if line.startswith("Pss:"))
    found = {Path(f"/proc/{pid}/comm").read_text().strip(): int(line.split()[1])}
    for child in children:
        found |= _pss(int(child))
    return found
