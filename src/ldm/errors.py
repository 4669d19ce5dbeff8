"""What can go wrong, by kind. Every message is a sentence that names the file, key or argument."""


class LdmError(Exception):
    """The root of all errors this library raises on purpose."""


class CheckpointError(LdmError, ValueError):
    """A file that cannot be loaded, or written, exactly."""


class InputError(LdmError, ValueError):
    """An argument, prompt or image that cannot be used."""


class KeywordError(InputError, TypeError):
    """An argument whose name is not known."""


class DeviceError(LdmError, ValueError):
    """A device that is not known or not there."""


class NumericError(LdmError, ArithmeticError):
    """A result that is not finite, with the stage and step where it arose."""
