"""The exceptions of the project, and what each asks of the reader.

CurationError
├── ConfigError      the user's settings are wrong: nothing was started; the message names the field and the fix
├── BadShardError    this shard can't be done as things stand: other shards go on; retrying changes nothing
└── OutageError      the world around is broken (network, object store): the shard stays undone; a retry may heal it

A row that can't be measured is none of these: it gets a fault (see verdicts.py) and the shard goes on.
"""


class CurationError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(CurationError):
    """Settings are wrong; raised before any work, naming the field and the fix."""


class BadShardError(CurationError):
    """One shard can't be done: what was expected and what was found."""


class OutageError(CurationError):
    """The network or the store fails as a whole; the shard stays undone and may be retried."""
