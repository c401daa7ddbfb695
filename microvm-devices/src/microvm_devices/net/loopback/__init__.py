"""The ``loopback`` net backend: a cable plugged into itself."""
