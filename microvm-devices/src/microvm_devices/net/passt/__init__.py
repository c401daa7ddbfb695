"""The ``passt`` net backend: the host's own network, with no privileges and no set-up."""
