"""Errors that are shown to a person as one message, and the exit code each one means."""


class ServiceError(Exception):
    """The work failed; the message says what was wrong, where, and what to do."""

    exit_code = 1


class UsageError(ServiceError):
    """The command or `service.toml` asks for something that cannot be."""

    exit_code = 2


class Blocked(ServiceError):
    """A gate or a check refused; nothing was promoted or loaded."""

    exit_code = 3
