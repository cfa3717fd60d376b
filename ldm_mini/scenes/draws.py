"""Random choices that are the same on every machine and with every version of numpy."""

import numpy as np


class Draws:
    """Choices made one after another from the raw 64-bit words of PCG64, keyed by integers such as (seed, split).

    numpy promises the raw words, not what its `Generator` methods make of them; and plain integers are faster here.
    """

    def __init__(self, *key: int):
        self._bits, self._words = np.random.PCG64(np.random.SeedSequence(key)), []

    def word(self) -> int:
        """The next number of 64 random bits."""
        if not self._words:
            self._words = self._bits.random_raw(64).tolist()  # drawn many at a time: faster
        return self._words.pop()

    def below(self, stop: int) -> int:
        """One of 0 .. stop-1 (the bias of the remainder is below 1e-16)."""
        return self.word() % stop

    def between(self, low: int, high: int) -> int:
        """One of low .. high, both included; low if the range is empty."""
        return low + self.word() % max(high - low + 1, 1)

    def choice(self, options):
        """One element of a sequence."""
        return options[self.word() % len(options)]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return (self.word() >> 11) * 2.0 ** -53 < probability

    def sample(self, options, count: int) -> list:
        """`count` different elements of a sequence."""
        pool = list(options)
        return [pool.pop(self.word() % len(pool)) for _ in range(count)]

    def bytes(self, shape) -> np.ndarray:
        """An array of random bytes, uint8."""
        count = int(np.prod(shape))
        words = self._bits.random_raw(-(-count // 8)).astype("<u8")
        return words.view(np.uint8)[:count].reshape(shape)
