"""Ports that nobody in the guest is to guess."""

import pytest

from microvm.errors import ConfigError
from microvm.forwards.addresses import MAX_VSOCK_PORT
from microvm.forwards.host_ports import COUNT, FIRST_PORT, listen_unguessed
from microvm.testing.channels import MemoryChannels


class Crowded(MemoryChannels):
    """Of which the first ports that are asked for are taken."""

    def __init__(self, taken):
        super().__init__()
        self.taken = taken
        self.asked = []

    def listen(self, port):
        self.asked.append(port)
        if len(self.asked) <= self.taken:
            raise ConfigError(f"Port {port} has a listener already.")
        return super().listen(port)


def test_the_ports_are_chosen_by_chance_above_those_of_users_and_of_the_host():
    ports = [listen_unguessed(MemoryChannels())[0] for _ in range(100)]
    assert len(set(ports)) == 100
    assert all(FIRST_PORT <= port < FIRST_PORT + COUNT for port in ports)
    assert FIRST_PORT + COUNT - 1 == MAX_VSOCK_PORT
    assert max(ports) - min(ports) > COUNT // 4


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_port_that_is_taken_is_passed_over(taken):
    channels = Crowded(taken)
    port, _ = listen_unguessed(channels)
    assert len(channels.asked) == taken + 1
    assert list(channels.listeners) == [port] == channels.asked[-1:]
