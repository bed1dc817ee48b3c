"""A target that stands before another one."""

from bench.judging.target import Target


class WrappedTarget(Target):
    """A target with the facts of the `exact` one. Its subclasses query `self.exact`.

    The exact target counts calls and bad gradients.
    """

    def __init__(self, exact: Target) -> None:
        super().__init__(
            exact,
            classes=exact.classes,
            access=exact.access,
            stochastic=exact.stochastic,
            device=exact.device,
        )
        self.exact = exact
