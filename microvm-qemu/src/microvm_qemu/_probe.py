"""Finding a QEMU and finding out what it can do.

Blocking, but never for more than 5 s, and for less than a millisecond when the answer is known.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from microvm.abc import ProbeReport
from microvm.errors import BackendUnavailable, ConfigError
from microvm.virtio.fence import TOTAL_STORE_ORDER, WHY_NOT
from microvm_qemu._cache import ProgramCache, ProgramId, cache_file
from microvm_qemu._facts import INSTALL, Obstacle, QemuFacts, obstacle
from microvm_qemu._options import QemuOptions, parse_options

BACKEND = "qemu"

KVM_DEVICE = "/dev/kvm"


@attrs.frozen(kw_only=True)
class FoundQemu:
    """A QEMU that can run our machines, and what to start it with."""

    program: str
    """Its absolute path."""
    facts: QemuFacts
    setpriv: str | None
    """A setpriv that can set the death signal; without one, a Python shim does."""


def probe(options: Mapping[str, Any]) -> ProbeReport:
    """The backend's probe: never raises, runs programs only when it meets them for the first time.

    Options that are wrong are left to `create`, which lists them; the probe looks at the default.
    """
    try:
        checked = parse_options(options)
    except ConfigError:
        checked = QemuOptions()
    try:
        found = find(checked)
    except BackendUnavailable as error:
        return ProbeReport(backend=BACKEND, usable=False, reason=error.message, remedy=error.remedy)
    accelerated = checked.accel == "kvm"
    return ProbeReport(
        backend=BACKEND,
        usable=True,
        reason=f"QEMU {found.facts.version_text}, "
        + ("on KVM." if accelerated else "in software (TCG)."),
        accelerated=accelerated,
        details={
            "program": found.program,
            "version": found.facts.version_text,
            "accel": checked.accel,
            "sandbox": "seccomp" if found.facts.sandbox else "none: built without seccomp",
            "death signal set by": found.setpriv or f"{sys.executable} (no setpriv)",
            "devices": ", ".join(sorted(found.facts.devices)),
        },
    )


def find(options: QemuOptions) -> FoundQemu:
    """The QEMU that those options lead to.

    Raises:
        BackendUnavailable: there is none that can run a machine, with the reason and a remedy.
    """
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        raise BackendUnavailable(
            "The qemu backend needs Linux: it lives on memfds, pidfds and parent-death signals.",
            remedy="Use the backend that is made for this system.",
        )
    if not TOTAL_STORE_ORDER:
        raise BackendUnavailable(WHY_NOT, remedy="Run on an x86-64 host.")
    program = _locate(options.program)
    setpriv = shutil.which("setpriv")
    try:
        identity = ProgramId.of(program)
        setpriv_identity = ProgramId.of(setpriv) if setpriv is not None else None
    except OSError as error:
        raise _unusable(program, error.strerror or str(error)) from error
    knowledge = _look(identity, setpriv_identity, cache_file(os.environ))
    hindrance = obstacle(knowledge.facts, program, options.accel)
    if hindrance is None and options.accel == "kvm":
        hindrance = kvm_obstacle(KVM_DEVICE)
    if hindrance is not None:
        raise BackendUnavailable(hindrance.reason, remedy=hindrance.remedy)
    return FoundQemu(
        program=os.path.abspath(program),
        facts=knowledge.facts,
        setpriv=os.path.abspath(setpriv) if setpriv and knowledge.setpriv else None,
    )


def _locate(name: str) -> str:
    path = shutil.which(name)
    if path is not None:
        return path
    if os.sep not in name:
        raise BackendUnavailable(f"There is no {name} on PATH.", remedy=f"Install it. {INSTALL}")
    what = "is not an executable file" if os.path.exists(name) else "does not exist"
    raise _unusable(name, f"it {what}")


def _unusable(program: str, why: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"{program} can't be used: {why}.",
        remedy=f"Name another with backend_options={{'program': ...}}, or install one. {INSTALL}",
    )


def kvm_obstacle(device: str) -> Obstacle | None:
    """What keeps us from using that KVM device, or None."""
    if os.access(device, os.R_OK | os.W_OK):
        return None
    if not os.path.exists(device):
        return Obstacle(
            f"accel='kvm' was asked for, and there is no {device}.",
            "Load the module kvm_intel or kvm_amd, or leave accel away to run in software.",
        )
    return Obstacle(
        f"accel='kvm' was asked for, and {device} is not yours to use.",
        "Join its group (usermod -aG kvm $USER, then log in again), or leave accel away to run "
        "in software.",
    )


# --- asking, or remembering ------------------------------------------------------------------


@attrs.frozen
class _Knowledge:
    facts: QemuFacts
    setpriv: bool
    """Whether setpriv can set a death signal."""


@functools.lru_cache(maxsize=8)
def _look(qemu: ProgramId, setpriv: ProgramId | None, file: Path | None) -> _Knowledge:
    """What is known of both programs, from the cache in `file` or from themselves.

    Only good answers are remembered, here and there: what failed may work the next time.

    Raises:
        BackendUnavailable: the first is not a QEMU, or does not answer as one.
    """
    cache = ProgramCache(file)
    stored = cache.get(setpriv) if setpriv is not None else False
    try:
        facts = QemuFacts.from_json(cache.get(qemu))
    except ValueError:
        pass
    else:
        if isinstance(stored, bool):
            return _Knowledge(facts, stored)
    knowledge = _asked(qemu, setpriv)
    found: dict[ProgramId, Any] = {qemu: knowledge.facts.to_json()}
    if setpriv is not None:
        found[setpriv] = knowledge.setpriv
    cache.put(found)
    return knowledge


def _asked(qemu: ProgramId, setpriv: ProgramId | None) -> _Knowledge:
    # Not imported when the cache knows.
    from microvm.console import visible_text
    from microvm_qemu._ask import ANSWER_WITHIN_S, Answer, ask
    from microvm_qemu._command import SANDBOX
    from microvm_qemu._parse import Answers, facts_from

    questions = {
        "version": [qemu.path, "-version"],
        "sandbox": [qemu.path, "-sandbox", SANDBOX, "-version"],
        "machines": [qemu.path, "-machine", "help"],
        "objects": [qemu.path, "-object", "help"],
        "devices": [qemu.path, "-device", "help"],
        "accelerators": [qemu.path, "-accel", "help"],
    }
    if setpriv is not None:
        questions["setpriv"] = [setpriv.path, "--help"]
    answers = ask(questions)
    told = answers.pop("setpriv", None)
    texts: dict[str, str] = {}
    taken: dict[str, bool] = {}
    for name, answer in answers.items():
        if isinstance(answer, OSError):
            raise _unusable(qemu.path, f"it can't be run ({answer.strerror})") from answer
        if not answer.complete:
            raise _unusable(
                qemu.path, f"it did not answer within {ANSWER_WITHIN_S:g} s, or without end"
            )
        texts[name] = answer.text
        taken[name] = answer.returncode == 0
    facts = facts_from(
        Answers(
            version=texts["version"],
            machines=texts["machines"],
            objects=texts["objects"],
            devices=texts["devices"],
            accelerators=texts["accelerators"],
            sandbox=taken["sandbox"],
        )
    )
    if facts is None:
        first = texts["version"].strip().partition("\n")[0][:80]
        said = f"; it said {visible_text(first.encode())!r}" if first else ""
        raise _unusable(qemu.path, f"it does not tell a QEMU's version{said}")
    return _Knowledge(facts, isinstance(told, Answer) and "--pdeathsig" in told.text)
