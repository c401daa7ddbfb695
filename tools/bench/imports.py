"""What `import microvm` costs, and what it does not import."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

from tools.bench.stats import summary


def imports(pairs: int) -> dict[str, Any]:
    def start_ms(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return (time.perf_counter() - start) * 1e3

    start_ms("import microvm")
    bare, ours = [], []
    for _ in range(pairs):
        bare.append(start_ms("pass"))
        ours.append(start_ms("import microvm"))
    modules = subprocess.run(
        [sys.executable, "-c", "import microvm, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    heavy = {"trio", "pluggy", "importlib_metadata", "cffi"} & set(modules)
    return {
        "interpreter_ms": summary(bare),
        "with_import_ms": summary(ours),
        "added_ms": round(statistics.median(ours) - statistics.median(bare), 3),
        "heavy_modules": sorted(heavy),
    }
