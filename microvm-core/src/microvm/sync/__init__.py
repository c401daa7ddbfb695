"""The same machines without async: for scripts, threads, notebooks, and beside asyncio.

    from microvm.sync import Machine

    with Machine() as machine:
        print(machine.run(["uname", "-a"]).stdout.decode())

The names and arguments are those of `microvm.Machine` and its kin; a call returns when it is done.
Every machine of the process lives on one trio loop, on a thread that is started with the first
of them. Any thread may use a machine, several at once.

* Ctrl-C in a call cancels what the call does, then comes out of it as ever.
* No call takes a timeout: `fail_after` and `move_on_after` bound all calls within their block.
* When the interpreter exits, in whatever way that runs `atexit`, machines that are left are ended.
* A process forked from this one can't use its machines, and does not end them.
* Streams to ports are plain blocking sockets, a command's streams are binary files.
* What plugins bring of their own comes here by a `Portal`, as `microvm_guest.openvpn.sync` does.

Importing this costs no trio: that comes with the first machine.
"""

from microvm.sync._channels import Listener
from microvm.sync._deadlines import Deadline, TooSlowError, fail_after, move_on_after
from microvm.sync._files import GuestFiles
from microvm.sync._forward import Forward
from microvm.sync._guest import Guest
from microvm.sync._jobs import GuestJob, JobOutput
from microvm.sync._machine import Machine
from microvm.sync._portal import Portal
from microvm.sync._process import GuestProcess
from microvm.sync._streams import StreamWriter

__all__ = [
    "Deadline",
    "Forward",
    "Guest",
    "GuestFiles",
    "GuestJob",
    "GuestProcess",
    "JobOutput",
    "Listener",
    "Machine",
    "Portal",
    "StreamWriter",
    "TooSlowError",
    "fail_after",
    "move_on_after",
]
