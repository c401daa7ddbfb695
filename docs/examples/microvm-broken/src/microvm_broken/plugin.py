"""What a plugin looks like to its user when its library has moved on."""

raise RuntimeError("broken on purpose")
