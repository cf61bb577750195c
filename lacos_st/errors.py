"""`LacosError`: the one exception for what a user can mend."""


class LacosError(ValueError):
    """A mistake that the user can mend: the message says what, why and what to do. The CLI exits with 2."""
