"""Errors a user can meet. Each says what was expected, what was got and what to do; the CLI prints no traceback."""


class XTokenError(Exception):
    """Base of every error that is the user's to mend. The command line turns it into one line and exit code 1."""


class WrongUseError(XTokenError):
    """What was asked for is wrong in itself: the same command can never succeed (exit code 2)."""


class ConfigError(WrongUseError):
    """A run config, an option or a combination of them is wrong (exit code 2)."""


class TokenizerError(XTokenError):
    """A tokenizer spec names nothing that can be loaded, or a file is not what its name says."""


class SpecError(TokenizerError, WrongUseError):
    """A tokenizer spec is wrong: it names nothing, or a pattern is missing, unknown or out of place (exit code 2)."""


class AlignmentError(XTokenError):
    """Two encodings do not describe the same text."""


class ProjectionError(XTokenError):
    """A projection file is damaged, of another schema, or of another tokenizer pair."""


class DataError(XTokenError):
    """Text or prepared data is missing, empty, damaged, or does not belong to this run."""


class LogitsError(XTokenError):
    """Logits, or hidden states and a head, that a loss cannot be computed from: of a wrong shape, or not finite."""


class CheckpointError(XTokenError):
    """A checkpoint is missing, incomplete or of another model."""


class StoppedError(XTokenError):
    """A signal ended the training after it was saved; the same command goes on from there (exit code 85)."""


class UnavailableError(XTokenError):
    """This machine or installation lacks what a feature needs."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with the message where the condition does not hold."""
    if not condition:
        raise ConfigError(message)


def require_positive(config: object, *names: str) -> None:
    """Raises ConfigError for the first of these attributes, numbers, that is not positive."""
    for name in names:
        require(getattr(config, name) > 0, f"{name} must be positive, got {getattr(config, name)}")
