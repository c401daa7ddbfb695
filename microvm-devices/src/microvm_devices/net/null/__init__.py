"""The ``null`` net backend: a cable that leads nowhere."""
