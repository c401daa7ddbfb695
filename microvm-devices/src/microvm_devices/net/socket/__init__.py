"""The ``socket`` net backend: a program that speaks QEMU's framing, by a socket."""
