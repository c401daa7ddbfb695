"""The ``tap`` net backend: an interface of the host (Linux)."""
