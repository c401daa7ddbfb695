"""The lab: a machine whose KVM boots unmodified Linux, on a host whose KVM can't, or has none.

Debian's stock kernel runs in QEMU's software emulation on a CPU with AMD's SVM and nested paging,
so that /dev/kvm in there is the real thing. Its root is this host's root file system, read-only
over 9p below a tmpfs, so that the same Python, environment and checkout are there and nothing
that a command does survives, but for what it writes below `--out`.

Code runs 10 to 30 times slower than on the host: two programs in one lab can be compared, and
nothing else. `__main__.py` is the command, and says how it ends.
"""
