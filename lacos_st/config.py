"""`LacosConfig`: one dataclass is the Python arguments, the CLI's flags and the YAML recipe."""


class LacosError(ValueError):
    """A mistake that the user can mend: the message says what, why and what to do. The CLI exits with 2."""
