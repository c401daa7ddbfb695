import inspect

from microvm import errors
from microvm.config import ConfigProblem
from microvm.errors import ConfigError, GuestNotReady, MicrovmError


def family() -> list[type[MicrovmError]]:
    return [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, MicrovmError)
    ]


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [error.code for error in family()]
    assert len(set(codes)) == len(codes)


def test_a_code_begins_with_that_of_the_party_at_fault() -> None:
    for error in family():
        base = error.__mro__[1]
        if base is not MicrovmError and issubclass(base, MicrovmError):
            assert error.code.startswith(base.code + "."), error


def test_the_message_holds_remedy_and_console_lines() -> None:
    error = GuestNotReady("It is silent.", remedy="Wait longer.", console=["line 1", "line 2"])
    assert str(error) == "It is silent.\nWait longer.\nLast console lines:\n  line 1\n  line 2"


def test_builtin_ancestors_are_those_a_caller_expects() -> None:
    assert issubclass(GuestNotReady, TimeoutError)
    assert issubclass(ConfigError, ValueError)


def test_a_config_error_lists_its_problems() -> None:
    problem = ConfigProblem("boot.kernel", "is a directory.", "Give a file.")
    assert str(ConfigError("Can't build:", problems=[problem])) == (
        "Can't build:\n  boot.kernel: is a directory. Give a file."
    )
